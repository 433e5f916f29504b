import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openStore, type Store } from '../store/store.ts'
import { createMetrics } from './metrics.ts'
import { createOrbMetrics, createSystem } from './system.ts'

let dir: string
let store: Store

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'orb-system-'))
  store = openStore(join(dir, 'orb.db'))
})
afterEach(() => {
  store.close()
  rmSync(dir, { recursive: true, force: true })
})

const system = (problem: string | null = null, dataDir = dir) =>
  createSystem({ store, dataDir, version: '1.2.3', metrics: createOrbMetrics(), checkpointProblem: () => problem })

describe('health', () => {
  test('of a machine that works', () => {
    const { httpStatus, body } = system().health()
    expect([httpStatus, body]).toEqual([
      200,
      expect.objectContaining({
        status: 'healthy',
        service: 'open-resource-broker',
        version: '1.2.3',
        uptime_secs: 0,
        checkpoint: 'ok',
        checks: expect.objectContaining({
          database: expect.objectContaining({ name: 'database', status: 'healthy', dependencies: [] }),
        }),
      }),
    ])
    expect(body).not.toHaveProperty('problems')
    expect(readdirSync(dir).filter((name) => name.startsWith('.probe'))).toEqual([])
  })

  test('without checkpoints is degraded, still 200', () => {
    const { httpStatus, body } = system('no CRIU').health()
    expect([httpStatus, body['status'], body['checkpoint']]).toEqual([200, 'degraded', 'unavailable'])
  })

  test('without its disk or database is 503 and names no path', () => {
    const broken = system(null, join(dir, 'gone')).health()
    expect([broken.httpStatus, broken.body['status']]).toEqual([503, 'unhealthy'])
    expect(broken.body['problems']).toEqual(['disk: cannot be written'])
    const closed = openStore(join(dir, 'other.db'))
    closed.close()
    const { body } = createSystem({
      store: closed,
      dataDir: dir,
      version: '1',
      metrics: createOrbMetrics(),
      checkpointProblem: () => null,
    }).health()
    expect(body['problems']).toEqual(['database: cannot be written'])
    expect(JSON.stringify([broken.body, body])).not.toContain(dir)
  })
})

describe('metrics', () => {
  test('counters, histograms and gauges in the text format', () => {
    const metrics = createMetrics({
      calls_total: { kind: 'counter', text: 'Calls.' },
      call_seconds: { kind: 'histogram', text: 'Time.' },
      open: { kind: 'gauge', text: 'Open now.' },
    })
    metrics.inc('calls_total', { route: '/a"\\\n' })
    metrics.inc('calls_total', { route: '/a"\\\n' })
    metrics.observe('call_seconds', 0.2)
    metrics.observe('call_seconds', 9999)
    metrics.gauge('open', () => [{ value: 3 }])
    const text = metrics.render()
    expect(text).toContain(
      '# HELP calls_total Calls.\n# TYPE calls_total counter\ncalls_total{route="/a\\"\\\\\\n"} 2\n',
    )
    expect(text).toContain('call_seconds_bucket{le="0.1"} 0\ncall_seconds_bucket{le="0.25"} 1\n')
    expect(text).toContain('call_seconds_bucket{le="3600"} 1\ncall_seconds_bucket{le="+Inf"} 2\n')
    expect(text).toContain('call_seconds_sum 9999.2\ncall_seconds_count 2\n')
    expect(text).toEndWith('# TYPE open gauge\nopen 3\n')
  })

  test('an unknown name, or a known one of another kind, is a mistake', () => {
    const metrics = createOrbMetrics()
    expect(() => metrics.inc('orb_nonsense')).toThrow('orb_nonsense')
    expect(() => metrics.inc('orb_restore_seconds')).toThrow('orb_restore_seconds')
  })

  test('the version is there', () => {
    expect(system().metrics()).toContain('orb_build_info{version="1.2.3"} 1\n')
  })
})
