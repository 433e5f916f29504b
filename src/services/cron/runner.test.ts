import { afterAll, afterEach, beforeAll, beforeEach, expect, spyOn, test } from 'bun:test'
import { mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { OrbError } from '../../errors.ts'
import type { ExecRequest, ExecResult } from '../../runtime/commands.ts'
import type { ComputerPaths } from '../../runtime/paths.ts'
import type { ComputerRow } from '../../store/types.ts'
import type { CronJob } from '../types.ts'
import { type Order, Runner } from './runner.ts'
import { TestStore, testJob } from './testing.ts'

/** Runs that are under way, by the command of each. */
interface Begun {
  computer: string
  request: ExecRequest
  end: PromiseWithResolvers<ExecResult>
}

const rootfs = mkdtempSync(join(tmpdir(), 'orb-cron-root-'))
let db: TestStore
let begun: Begun[]
let killed: string[]
let counted: string[]
let gone: Set<string>
let upProblem: Error | null
/** When computers are up; null: at once. */
let comingUp: Promise<void> | null
let runner: Runner

const paths = (): ComputerPaths => ({ dir: '', disk: '', mount: '', rootfs, log: '', checkpoints: '' })

beforeAll(() => {
  mkdirSync(join(rootfs, 'agent/code'), { recursive: true })
  symlinkSync('/', join(rootfs, 'agent/out'))
})
afterAll(() => rmSync(rootfs, { recursive: true }))

beforeEach(() => {
  db = new TestStore()
  begun = []
  killed = []
  counted = []
  gone = new Set()
  upProblem = null
  comingUp = null
  runner = new Runner({
    store: db.store,
    runtime: {
      async up() {
        if (comingUp) await comingUp
        if (upProblem) throw upProblem
      },
      exec(computer, request) {
        const end = Promise.withResolvers<ExecResult>()
        begun.push({ computer: computer.id, request, end })
        return end.promise
      },
      async killCommand(computer, purpose, id) {
        killed.push(`${computer.id} ${purpose} ${id}`)
        begun.find(({ request }) => request.id === id)?.end.resolve(result({ exitCode: 137 }))
      },
      paths,
    },
    metrics: { inc: (name, labels) => void counted.push(`${name} ${labels?.['status']}`) },
    exists: (id) => !gone.has(id),
    environment: (computer, more) => ({ BASE: computer.id, ...more }),
  })
})
afterEach(() => db.remove())

const result = (more: Partial<ExecResult> = {}): ExecResult => ({
  exitCode: 0,
  stdout: '',
  stderr: '',
  truncated: false,
  timedOut: false,
  durationMs: 5,
  ...more,
})
const order = (computer: ComputerRow, name: string, more: Partial<CronJob> = {}): Order => ({
  computer,
  job: testJob(name, more),
  firedAt: 1000,
  skip: null,
  patienceMs: null,
})
/** Lets everything that can go on do so. */
const settle = () => Bun.sleep(0)
const commands = () => begun.map(({ request }) => request.argv[2])
const statuses = (computerId: string) => db.store.cron.runs(computerId, null, 500).map(({ status }) => status)

test('a run has its own environment, directory, limits and cgroup', async () => {
  const [ended] = runner.start([
    order(db.computer('a'), 'x', { env: { A: '1' }, working_dir: '/agent', timeout_secs: 7 }),
  ])
  await settle()
  const [row] = db.store.cron.runs('a', null, 1)
  expect(row).toMatchObject({ status: 'running', startedAt: expect.any(Number), finishedAt: null, firedAt: 1000 })
  expect(begun[0]?.request).toEqual({
    argv: ['bash', '-c', 'x'],
    env: { BASE: 'a', A: '1' },
    cwd: '/agent',
    purpose: 'cron',
    id: row?.id.slice('run_'.length),
    timeoutMs: 7000,
    maxBytes: 16_384,
    keep: 'start',
  })
  begun[0]?.end.resolve(result({ stdout: 'out', durationMs: 42 }))
  expect(await ended).toMatchObject({ status: 'success', exitCode: 0, stdout: 'out', stderr: null, durationMs: 42 })
  expect(db.store.cron.runs('a', null, 1)).toMatchObject([{ id: (await ended)?.id, status: 'success', stdout: 'out' }])
  expect(counted).toEqual(['orb_cron_runs_total success'])
})

test.each([
  [result({ exitCode: 3, stderr: 'no' }), { status: 'failure', exitCode: 3, stdout: null, stderr: 'no', error: null }],
  [
    result({ timedOut: true, exitCode: 124, stdout: 'half' }),
    { status: 'timeout', exitCode: null, stdout: 'half', error: 'it ran longer than 30 s' },
  ],
])('%p', async (came, expected) => {
  const [ended] = runner.start([order(db.computer('a'), 'x')])
  await settle()
  begun[0]?.end.resolve(came)
  expect(await ended).toMatchObject(expected)
})

test('a computer that cannot be brought up, a directory that is not there: the run is an error that says why', async () => {
  const computer = db.computer('a')
  const [missing] = runner.start([order(computer, 'x', { working_dir: '/agent/missing' })])
  expect(await missing).toMatchObject({
    status: 'error',
    exitCode: null,
    durationMs: null,
    error: 'the working directory /agent/missing cannot be entered (ENOENT)',
  })
  // The server's own /tmp is not what the link leads to.
  const [outside] = runner.start([order(computer, 'x', { working_dir: '/agent/out/tmp' })])
  expect(await outside).toMatchObject({ status: 'error', error: expect.stringContaining('ENOENT') })
  upProblem = new Error('mount of /var/lib/orb/x failed')
  const [secret] = runner.start([order(computer, 'x')])
  expect(await secret).toMatchObject({ status: 'error', error: 'the command could not be started' })
  upProblem = new OrbError('no_capacity', 'no room')
  const [told] = runner.start([order(computer, 'x')])
  expect(await told).toMatchObject({ status: 'error', error: 'no room' })
  expect(begun).toEqual([])
})

test('a computer that is deleted meanwhile is not brought up again', async () => {
  const computer = db.computer('a')
  const [ended] = runner.start([order(computer, 'x')])
  gone.add('a')
  expect(await ended).toMatchObject({ status: 'error', error: 'the computer was deleted' })
  expect(begun).toEqual([])
})

test('a computer with many runs of hours leaves places to others, and goes on as its own end', async () => {
  const [a, b] = [db.computer('a'), db.computer('b')]
  runner.start(Array.from({ length: 16 }, (_, n) => order(a, `a${n}`)))
  const [ended] = runner.start([order(b, 'b')])
  await settle()
  expect(commands()).toEqual(['a0', 'a1', 'a2', 'a3', 'b'])
  expect([runner.isBusy('a', 'a3'), runner.isWaiting('a', 'a3')]).toEqual([true, false])
  expect([runner.isBusy('a', 'a4'), runner.isWaiting('a', 'a4')]).toEqual([true, true])
  expect(db.store.cron.runs('a', 'a4', 1)).toMatchObject([{ status: 'running', startedAt: null }])
  begun[4]?.end.resolve(result())
  expect(await ended).toMatchObject({ status: 'success' })
  expect(commands()).toHaveLength(5)
  begun[2]?.end.resolve(result())
  await settle()
  expect(commands().slice(5)).toEqual(['a4'])
  expect(db.store.cron.runs('a', 'a4', 1)).toMatchObject([{ status: 'running', startedAt: expect.any(Number) }])
  expect([runner.isBusy('a', 'a2'), runner.isWaiting('a', 'a4')]).toEqual([false, false])
})

test('an organisation with many runs of hours leaves places to others', async () => {
  const own = ['a', 'b', 'c', 'd'].map((id) => db.computer(id))
  runner.start(own.flatMap((computer) => Array.from({ length: 4 }, (_, n) => order(computer, `${computer.id}${n}`))))
  runner.start([order(db.computer('e', 'other'), 'e')])
  await settle()
  expect(commands()).toHaveLength(9)
  expect(commands()[8]).toBe('e')
})

test('one that waits for a place longer than it is to ends as an error; one that has its place goes on', async () => {
  const computer = db.computer('a')
  const patient = (name: string) => ({ ...order(computer, name), patienceMs: 10 })
  const [first] = runner.start([patient('a'), ...['b', 'c', 'd'].map((name) => order(computer, name))])
  const [given, next] = runner.start([patient('e'), order(computer, 'f')])
  expect(await given).toMatchObject({
    status: 'error',
    startedAt: null,
    error: 'no place to run became free in 0.01 s',
  })
  expect(db.store.cron.runs('a', 'e', 1)).toMatchObject([{ status: 'error', finishedAt: expect.any(Number) }])
  expect([runner.isBusy('a', 'e'), runner.isWaiting('a', 'f')]).toEqual([false, true])
  begun[0]?.end.resolve(result())
  expect(await first).toMatchObject({ status: 'success' })
  await settle()
  expect(commands()).toEqual(['a', 'b', 'c', 'd', 'f'])
  begun[4]?.end.resolve(result())
  expect(await next).toMatchObject({ status: 'success' })
})

test('one whose begin cannot be written down ends as an error, and the next has its place', async () => {
  const computer = db.computer('a')
  runner.start(['a', 'b', 'c', 'd'].map((name) => order(computer, name)))
  const [broken, next] = runner.start(['e', 'f'].map((name) => order(computer, name)))
  const begin = spyOn(db.store.cron, 'start').mockImplementationOnce(() => {
    throw new Error('database or disk is full')
  })
  await settle()
  begun[0]?.end.resolve(result())
  expect(await broken).toMatchObject({ status: 'error', error: 'the command could not be started' })
  await settle()
  expect(begin).toHaveBeenCalledTimes(2)
  expect(commands()).toEqual(['a', 'b', 'c', 'd', 'f'])
  begun[4]?.end.resolve(result())
  expect(await next).toMatchObject({ status: 'success' })
})

test('whether a job is busy is known without a look at all that wait', () => {
  const waiting = 1000
  const computer = db.computer('a')
  runner.start(Array.from({ length: waiting }, (_, n) => order(computer, `x${n}`)))
  let looks = 0
  const id = Object.getOwnPropertyDescriptor(computer, 'id')?.value
  Object.defineProperty(computer, 'id', {
    get() {
      looks += 1
      return id
    },
  })
  expect([runner.isBusy('b', 'x'), runner.isWaiting('b', 'x')]).toEqual([false, false])
  expect([runner.isBusy('a', 'x999'), runner.isWaiting('a', 'x999')]).toEqual([true, true])
  expect(looks).toBeLessThan(waiting / 10)
})

test('one that is skipped is written down and takes no room', async () => {
  const computer = db.computer('a')
  const [ended] = runner.start([{ ...order(computer, 'x'), skip: 'the computer was being built' }])
  expect(await ended).toMatchObject({
    status: 'skipped',
    startedAt: null,
    finishedAt: expect.any(Number),
    error: 'the computer was being built',
  })
  expect(begun).toEqual([])
  expect(counted).toEqual(['orb_cron_runs_total skipped'])
})

test('runs that cannot be written down do not begin', async () => {
  const computer = db.computer('a')
  db.store.computers.remove('a')
  expect(() => runner.start([order(computer, 'x')])).toThrow('FOREIGN KEY')
  await settle()
  expect(begun).toEqual([])
  expect(runner.isBusy('a', 'x')).toBe(false)
})

test('a stop waits, then kills what is left, begins nothing more and says so', async () => {
  const computer = db.computer('a')
  runner.start(Array.from({ length: 5 }, (_, n) => order(computer, `x${n}`)))
  await settle()
  const stopped = runner.stop(20)
  for (const { end } of begun.slice(1)) end.resolve(result())
  await stopped
  expect(killed).toEqual([`a cron ${begun[0]?.request.id}`])
  const counts = Object.groupBy(statuses('a'), (status) => status)
  expect([counts.error?.length, counts.success?.length, counts.running]).toEqual([2, 3, undefined])
  expect(() => runner.start([order(computer, 'late')])).toThrow('stopping')
})

test('a stop that comes before a command has begun: there is none to kill, and it never begins', async () => {
  const isUp = Promise.withResolvers<void>()
  comingUp = isUp.promise
  runner.start([order(db.computer('a'), 'x')])
  const stopped = runner.stop(0)
  while (killed.length === 0) await settle()
  isUp.resolve()
  await stopped
  expect(begun).toEqual([])
  expect(db.store.cron.runs('a', null, 1)).toMatchObject([
    { status: 'error', error: expect.stringContaining('orb was stopped') },
  ])
})

test('what a former orb began is killed and shown as an error, and is not begun again', async () => {
  const computer = db.computer('a')
  runner.start([order(computer, 'x')])
  await settle()
  const [row] = db.store.cron.runs('a', null, 1)
  begun = []
  await runner.recover(new Map([['a', computer]]))
  expect(killed).toEqual([`a cron ${row?.id.slice('run_'.length)}`])
  expect(db.store.cron.runs('a', null, 1)).toMatchObject([
    {
      status: 'error',
      finishedAt: expect.any(Number),
      exitCode: null,
      error: expect.stringContaining('orb was stopped'),
    },
  ])
  expect(begun).toEqual([])
  expect(db.store.cron.unfinished()).toEqual([])
})
