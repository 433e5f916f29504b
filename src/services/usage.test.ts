import { beforeEach, describe, expect, test } from 'bun:test'
import { OrbError } from '../errors.ts'
import type { UsageRow } from '../store/types.ts'
import type { UsageRepository, UsageWindow } from '../store/usage.ts'
import type { Principal } from './types.ts'
import { createUsage } from './usage.ts'

const HOUR = 3_600_000
const DAY = 24 * HOUR
const NOW = Date.UTC(2026, 3, 19, 4, 5, 0, 700)
const ID = 'abc12345-0000-4000-8000-000000000000'
const WHO: Principal = { orgId: 'org', keyId: 'k', scope: 'full', role: 'viewer' }

const row = (more: Partial<UsageRow> = {}): UsageRow => ({
  runtimeMb: 4096,
  diskMb: 1024,
  created: 0,
  deleted: 0,
  existsMs: 0,
  ramMs: 0,
  nvmeMs: 0,
  checkpoints: 0,
  restores: 0,
  restoreMs: 0,
  failures: 0,
  ...more,
})

let rows: UsageRow[]
let windows: UsageWindow[]
let activeAt: number | null

beforeEach(() => {
  rows = []
  windows = []
  activeAt = null
})

const asked = <T>(window: UsageWindow, answer: T): T => {
  windows.push(window)
  return answer
}

function service(rates = { rateRuntime: 0.005, rateDisk: 0.05 }) {
  const usage: Partial<UsageRepository> = {
    now: () => NOW,
    find: (_, id) => (id === ID || id === 'abc12345' ? ID : null),
    ofOrg: (_, window) => asked(window, rows),
    ofComputer: (_, window) => asked(window, rows[0] ?? null),
    activeAt: () => activeAt,
    calls: () => 7,
  }
  return createUsage({
    settings: rates,
    usage: usage as UsageRepository,
    findComputer: (_, id) => {
      if (id !== ID) throw new OrbError('not_found', 'no such computer')
      return { id: ID, createdAt: NOW - 90 * DAY } as ReturnType<Parameters<typeof createUsage>[0]['findComputer']>
    },
  })
}

const read = (query = {}) => service().read(WHO, query)
const stats = (window: '30d' | 'lifetime' = '30d') => service().stats(WHO, ID, window)

describe('usage', () => {
  test('4 GB asleep for 90 % of an hour are 0.4 GB-hours', () => {
    rows = [row({ ramMs: HOUR / 10, nvmeMs: HOUR - HOUR / 10, existsMs: HOUR, checkpoints: 3, created: 1 })]
    expect(read()).toEqual({
      period_start: '2026-03-20T04:05:00Z',
      period_end: '2026-04-19T04:05:00Z',
      runtime_gb_hours: 0.4,
      disk_gb_hours: 1,
      checkpoint_cycles: 3,
      computers_created: 1,
      computers_destroyed: 0,
    })
    expect(windows).toEqual([{ from: NOW - 30 * DAY, to: NOW }])
  })

  test('is the sum of all computers, rounded once', () => {
    // 0.00000028 GB-hours each.
    const small = row({ runtimeMb: 1024, ramMs: 1, checkpoints: 2, deleted: 1 })
    rows = [small, small, small]
    expect(read()).toMatchObject({ runtime_gb_hours: 0.000001, checkpoint_cycles: 6, computers_destroyed: 3 })
  })

  test.each([
    [0.00000125, 4608, 1, 0.000001],
    [0.0000025, 9216, 1, 0.000003],
    [1.0000025, 1024, 3_600_009, 1.000003],
    [1.00000056, 1024, 3_600_002, 1.000001],
    [1.00000028, 1024, 3_600_001, 1],
  ])('%p GB-hours are rounded half up', (_, runtimeMb, ramMs, expected) => {
    rows = [row({ runtimeMb, ramMs })]
    expect(read().runtime_gb_hours).toBe(expected)
  })

  test.each([
    ['nothing', {}, NOW - 30 * DAY, NOW],
    ['a start', { start: '2026-04-01' }, Date.UTC(2026, 3, 1), NOW],
    ['an end', { end: '2026-04-01' }, Date.UTC(2026, 3, 1) - 30 * DAY, Date.UTC(2026, 3, 1)],
    [
      'both',
      { start: '2026-03-01T00:00:00+01:00', end: '2027-01-01' },
      Date.UTC(2026, 1, 28, 23),
      Date.UTC(2027, 0, 1),
    ],
  ])('of a period given by %s', (_, query, from, to) => {
    const view = read(query)
    expect(windows).toEqual([{ from, to }])
    expect(Date.parse(view.period_end)).toBe(Math.floor(to / 1000) * 1000)
  })

  test.each([
    { start: '2026-04-01', end: '2026-04-01' },
    { start: '2026-04-02', end: '2026-04-01' },
    { start: '2030-01-01' },
  ])('of a period that is none is refused: %p', (query) => {
    expect(() => read(query)).toThrow('start must be before')
  })

  test('of one computer names it, by its full id', () => {
    rows = [row({ ramMs: HOUR })]
    expect(read({ computer: 'abc12345' })).toMatchObject({ computer_id: ID, runtime_gb_hours: 4 })
    expect(Object.keys(read())).not.toContain('computer_id')
    rows = []
    expect(read({ computer: ID })).toMatchObject({ computer_id: ID, runtime_gb_hours: 0, disk_gb_hours: 0 })
    expect(() => read({ computer: 'unknown' })).toThrow('no such computer')
  })
})

describe('stats', () => {
  test('of a computer', () => {
    rows = [
      row({
        runtimeMb: 2048,
        diskMb: 4096,
        existsMs: 10 * HOUR + 500,
        ramMs: HOUR + 499,
        nvmeMs: 8 * HOUR,
        checkpoints: 12,
        restores: 2,
        restoreMs: 101,
        failures: 1,
      }),
    ]
    activeAt = NOW - 1500
    expect(stats()).toEqual({
      computer_id: ID,
      window: '30d',
      period_start: '2026-03-20T04:05:00Z',
      period_end: '2026-04-19T04:05:00Z',
      wall_secs: 36_001,
      active_secs: 3600,
      sleep_secs: 28_800,
      sleep_pct: 80,
      active_pct: 10,
      llm_calls: 7,
      checkpoints: 12,
      ckpt_full: 12,
      ckpt_incremental: 0,
      failures: 1,
      runtime_gb_hours: 2.000277,
      disk_gb_hours: 40.000556,
      // 2.0002772… × 0.005 + 40.0005555… / 720 × 0.05
      est_cost_usd: 0.012779,
      last_active_ago_secs: 2,
      avg_restore_ms: 51,
    })
  })

  test('of its whole life begin with its creation', () => {
    rows = [row()]
    expect(stats('lifetime')).toMatchObject({ window: 'lifetime', period_start: '2026-01-19T04:05:00Z' })
    expect(windows[0]?.from).toBe(NOW - 90 * DAY)
  })

  test('of one that was made just now, or by the clock is not made yet, are zeros', () => {
    const zeros = { wall_secs: 0, sleep_pct: 0, active_pct: 0, last_active_ago_secs: null, avg_restore_ms: null }
    rows = [row({ existsMs: 499, ramMs: 499 })]
    expect(stats()).toMatchObject(zeros)
    rows = []
    expect(stats()).toMatchObject({ ...zeros, est_cost_usd: 0 })
    activeAt = NOW + 5000
    expect(stats()).toMatchObject({ last_active_ago_secs: 0 })
  })

  test('have percents of two decimals, half up', () => {
    rows = [row({ existsMs: 80_000, ramMs: 4, nvmeMs: 79_996 })]
    expect(stats()).toMatchObject({ active_pct: 0.01, sleep_pct: 100 })
    rows = [row({ existsMs: 30_000, ramMs: 10_000, nvmeMs: 20_000 })]
    expect(stats()).toMatchObject({ active_pct: 33.33, sleep_pct: 66.67 })
  })

  test('cost what the settings say', () => {
    rows = [row({ runtimeMb: 1024, diskMb: 1024, ramMs: HOUR, existsMs: 720 * HOUR })]
    expect(stats().est_cost_usd).toBe(0.055)
    const rates = { rateRuntime: 0, rateDisk: 1.5 }
    expect(service(rates).stats(WHO, ID, '30d').est_cost_usd).toBe(1.5)
    rows = [row({ runtimeMb: 65_536, diskMb: 1_048_576, ramMs: 3650 * DAY, existsMs: 3650 * DAY })]
    expect(stats()).toMatchObject({ runtime_gb_hours: 5_606_400, est_cost_usd: 28_032 + 6229.333333 })
  })

  test('of an unknown computer are refused', () => {
    expect(() => service().stats(WHO, 'x', '30d')).toThrow('no such computer')
  })
})
