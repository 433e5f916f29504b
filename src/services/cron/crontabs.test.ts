import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import type { FileLook } from '../../runtime/watched-file.ts'
import type { ComputerRow, CronRunRow } from '../../store/types.ts'
import { Crontabs } from './crontabs.ts'
import { TestStore } from './testing.ts'

const at = (time: string): number => Date.parse(`2026-04-19T${time}Z`)
const job = (name: string, more: Record<string, unknown> = {}) => ({
  name,
  schedule: '*/5 * * * *',
  command: 'true',
  ...more,
})
const text = (content: string): FileLook => ({ kind: 'read', stamp: content, bytes: Buffer.from(content) })
const file = (...jobs: unknown[]): FileLook => text(JSON.stringify({ jobs }))

const run = (jobName: string, firedAt: number): CronRunRow => ({
  id: `run_${jobName}_${firedAt}`,
  computerId: 'a',
  jobName,
  firedAt,
  startedAt: null,
  finishedAt: firedAt,
  status: 'skipped',
  exitCode: null,
  durationMs: null,
  stdout: null,
  stderr: null,
  error: null,
})

let db: TestStore
let computer: ComputerRow
let shown: FileLook
/** Stamps that looks were given. */
let stamps: (string | null)[]

beforeEach(() => {
  db = new TestStore()
  computer = db.computer('a')
  stamps = []
})
afterEach(() => db.remove())

const look = (_: ComputerRow, last: string | null): FileLook => {
  stamps.push(last)
  return shown
}
const open = (now: number): Crontabs => new Crontabs({ store: db.store, look }, now)
const start = (now: number, first: FileLook): Crontabs => {
  const crontabs = open(now)
  shown = first
  crontabs.look(computer, now)
  return crontabs
}
const names = (crontabs: Crontabs): string[] => crontabs.of('a').entries.map((entry) => entry.job.name)
const due = (crontabs: Crontabs, now: number) =>
  crontabs.due(now).map(({ entry, plannedAt }) => [entry.job.name, new Date(plannedAt).toISOString().slice(11, 19)])

describe('the file', () => {
  test('counts in its own order once it was looked at, and after a restart without a look', () => {
    const crontabs = start(at('04:01:00'), file(job('b'), job('a')))
    expect(names(crontabs)).toEqual(['b', 'a'])
    db.reopen()
    const later = open(at('04:02:00'))
    expect(names(later)).toEqual(['b', 'a'])
    expect(later.of('a').entries[0]?.nextAt).toBe(at('04:05:00'))
  })

  test('is read again only when it has changed', () => {
    const crontabs = start(at('04:01:00'), file())
    shown = { kind: 'same' }
    crontabs.look(computer, at('04:01:08'))
    expect(stamps).toEqual([null, '{"jobs":[]}'])
    expect(crontabs.of('a').error).toBeNull()
  })

  test('that is broken leaves the last good jobs, and says so until it is mended, over a restart too', () => {
    const crontabs = start(at('04:01:00'), file(job('a')))
    shown = text('{"jobs":')
    crontabs.look(computer, at('04:01:08'))
    expect(names(crontabs)).toEqual(['a'])
    expect(crontabs.of('a').error).toContain('not valid JSON')
    db.reopen()
    const later = open(at('04:02:00'))
    expect([names(later), later.of('a').error]).toEqual([['a'], crontabs.of('a').error])
    shown = file(job('b'))
    later.look(computer, at('04:02:08'))
    expect([names(later), later.of('a').error]).toEqual([['b'], null])
    expect(db.store.cron.errors()).toEqual([])
  })

  test('that may not be read leaves the last good jobs', () => {
    const crontabs = start(at('04:01:00'), file(job('a')))
    shown = { kind: 'refused', stamp: null, reason: 'is not a regular file' }
    crontabs.look(computer, at('04:01:08'))
    expect([names(crontabs), crontabs.of('a').error]).toEqual([['a'], 'cron.json is not a regular file'])
  })

  test('that is not there any more has no jobs, one on a disk that is away has those that it had', () => {
    const crontabs = start(at('04:01:00'), file(job('a')))
    shown = { kind: 'away' }
    crontabs.look(computer, at('04:01:08'))
    expect(names(crontabs)).toEqual(['a'])
    shown = { kind: 'none' }
    crontabs.look(computer, at('04:01:16'))
    expect(names(crontabs)).toEqual([])
    expect(db.store.cron.jobs()).toEqual([])
  })

  test('of a computer that is deleted is forgotten', () => {
    const crontabs = start(at('04:01:00'), file(job('a')))
    db.store.computers.remove('a')
    crontabs.forget('a')
    expect(crontabs.due(at('04:05:00'))).toEqual([])
    expect(db.store.cron.jobs()).toEqual([])
  })
})

describe('a job', () => {
  test('is due at its time, once', () => {
    const crontabs = start(at('04:01:00'), file(job('a'), job('b', { schedule: '* * * * *' })))
    expect(due(crontabs, at('04:01:59.999'))).toEqual([])
    expect(due(crontabs, at('04:02:00.040'))).toEqual([['b', '04:02:00']])
    expect(due(crontabs, at('04:02:01'))).toEqual([])
    expect(due(crontabs, at('04:05:01'))).toEqual([
      ['a', '04:05:00'],
      // Its times of 04:03 and 04:04 were missed.
      ['b', '04:05:00'],
    ])
    expect(due(crontabs, at('04:06:00'))).toEqual([['b', '04:06:00']])
  })

  test('that is disabled is never due', () => {
    const crontabs = start(at('04:01:00'), file(job('a', { enabled: false })))
    expect(crontabs.of('a').entries[0]?.nextAt).toBeNull()
    expect(due(crontabs, at('04:05:00'))).toEqual([])
  })

  test('whose time was missed for long is not caught up', () => {
    const crontabs = start(at('04:01:00'), file(job('a')))
    expect(due(crontabs, at('04:05:31'))).toEqual([])
    expect(due(crontabs, at('04:10:29'))).toEqual([['a', '04:10:00']])
  })

  test('whose time came while orb was away is not caught up', () => {
    start(at('04:01:00'), file(job('a')))
    db.reopen()
    const later = open(at('04:05:00.500'))
    expect(due(later, at('04:05:01'))).toEqual([])
    expect(due(later, at('04:10:00'))).toEqual([['a', '04:10:00']])
  })

  test('that has not changed keeps its time when the file changes at that very moment', () => {
    const crontabs = start(at('04:01:00'), file(job('a')))
    shown = file(job('b'), job('a'))
    crontabs.look(computer, at('04:05:00.010'))
    expect(due(crontabs, at('04:05:00.020'))).toEqual([['a', '04:05:00']])
  })

  test('with another schedule has another time', () => {
    const crontabs = start(at('04:01:00'), file(job('a')))
    shown = file(job('a', { schedule: '*/2 * * * *' }))
    crontabs.look(computer, at('04:01:10'))
    expect(due(crontabs, at('04:02:00'))).toEqual([['a', '04:02:00']])
  })

  test('does not run twice for a time that the clock shows again', () => {
    const crontabs = start(at('04:01:00'), file(job('a')))
    expect(due(crontabs, at('04:05:00'))).toHaveLength(1)
    expect(due(crontabs, at('04:04:30'))).toEqual([])
    expect(due(crontabs, at('04:05:00'))).toEqual([])
    db.store.cron.add([run('a', at('04:05:00'))])
    db.reopen()
    const later = open(at('04:04:59'))
    expect(due(later, at('04:05:00'))).toEqual([])
    expect(due(later, at('04:10:00'))).toHaveLength(1)
  })

  test('does not wait for a clock that was set back by more than an hour', () => {
    const crontabs = start(at('04:01:00'), file(job('a')))
    expect(due(crontabs, at('04:05:00'))).toHaveLength(1)
    expect(due(crontabs, at('02:01:00'))).toEqual([])
    expect(due(crontabs, at('02:05:00'))).toEqual([['a', '02:05:00']])
  })

  test('has its last run when it comes back', () => {
    const crontabs = start(at('04:01:00'), file(job('a')))
    db.store.cron.add([run('a', at('04:00:00')), run('a', at('03:00:00'))])
    shown = file()
    crontabs.look(computer, at('04:01:10'))
    shown = file(job('a'))
    crontabs.look(computer, at('04:01:20'))
    expect(crontabs.of('a').entries[0]?.lastFiredAt).toBe(at('04:00:00'))
  })
})
