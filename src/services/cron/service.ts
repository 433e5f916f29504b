import { OrbError } from '../../errors.ts'
import { log } from '../../log.ts'
import type { Store } from '../../store/store.ts'
import type { ComputerRow, CronRunRow } from '../../store/types.ts'
import { isoTime, isoTimeOrNull } from '../../time.ts'
import { jobId } from '../ids.ts'
import type { FindComputer } from '../lookup.ts'
import type { CronRunView, CronTriggerView, Services } from '../types.ts'
import { Crontabs, type Due, type Entry, lookAtCronFile } from './crontabs.ts'
import { type Order, Runner, type RunnerDeps } from './runner.ts'

export interface CronDeps extends RunnerDeps {
  store: Pick<Store, 'cron' | 'computers'>
  computers(): Iterable<ComputerRow>
  findComputer: FindComputer
  /** Whether a build of the computer runs or waits. */
  isBuilding(computerId: string): boolean
}

export type CronService = Services['cron'] & {
  /** Ends runs that a former orb began, then begins to keep time. */
  start(): Promise<void>
  /** Forgets a computer that was deleted. */
  forget(computerId: string): void
  /** Begins no more runs; those under way get `graceMs`. */
  stop(graceMs: number): Promise<void>
}

/** At each whole second of the clock, so that a job begins within its first. */
const TICK_MS = 1000
/** A cron.json is looked at once in as many ticks: a change counts within 10 s (Orb Cloud contract §15.1). */
const TICKS_PER_LOOK = 8
/** Triggers of one computer that may run or wait at once, as for exec. */
const MAX_TRIGGERS = 32
/** How long a trigger waits for a place: in it so many runs of the default 30 s have had theirs, four at a time. */
const TRIGGER_PATIENCE_MS = 5 * 60_000

/** Commands at set times (Orb Cloud contract §15). */
export function createCron(deps: CronDeps): CronService {
  const { store, runtime, findComputer } = deps
  const runner = new Runner(deps)
  const look = (computer: ComputerRow, last: string | null) => lookAtCronFile(runtime.paths(computer).rootfs, last)
  const crontabs = new Crontabs({ store, look }, Date.now())
  const triggers = new Map<string, number>()
  let timer: Timer | null = null
  let ticks = 0

  function tick(): void {
    attempt('cron jobs could not be begun', () => fire(crontabs.due(Date.now())))
    // The slot says when: so each has its turn however many come and go.
    lookAt((computer) => computer.slot % TICKS_PER_LOOK === ticks)
    ticks = (ticks + 1) % TICKS_PER_LOOK
    timer = setTimeout(tick, TICK_MS - (Date.now() % TICK_MS))
  }

  function lookAt(which: (computer: ComputerRow) => boolean): void {
    for (const computer of deps.computers()) {
      if (!which(computer)) continue
      attempt(`cron.json of ${computer.shortId} could not be looked at`, () => crontabs.look(computer, Date.now()))
    }
  }

  function fire(due: Due[]): void {
    const orders = due.flatMap(({ computer, entry, plannedAt }): Order[] => {
      if (!deps.exists(computer.id)) return []
      return [{ computer, job: entry.job, firedAt: plannedAt, skip: skipReason(computer, entry), patienceMs: null }]
    })
    if (orders.length === 0) return
    runner.start(orders)
    for (const { entry, plannedAt } of due) entry.lastFiredAt = plannedAt
  }

  function skipReason(computer: ComputerRow, { job }: Entry): string | null {
    if (deps.isBuilding(computer.id)) return 'the computer was being built'
    if (job.skip_if_running && runner.isBusy(computer.id, job.name)) return 'the run before had not ended'
    return runner.isWaiting(computer.id, job.name) ? 'the run before had not begun' : null
  }

  async function trigger(computer: ComputerRow, name: string): Promise<CronTriggerView> {
    // The file may be newer than what is known of it; what hinders the computer hinders the run too, and is told there.
    await runtime.up(computer).catch(() => undefined)
    crontabs.look(computer, Date.now())
    const entry = crontabs.of(computer.id).entries.find(({ job }) => job.name === name)
    if (!entry || !deps.exists(computer.id)) throw new OrbError('job_not_found', `there is no cron job ${name}`)
    const firedAt = Date.now()
    const [ended] = runner.start([{ computer, job: entry.job, firedAt, skip: null, patienceMs: TRIGGER_PATIENCE_MS }])
    entry.lastFiredAt = firedAt
    const row = await ended
    if (!row) throw new Error('a run without an end')
    return triggerView(row)
  }

  return {
    list(who, id) {
      const computer = findComputer(who, id)
      crontabs.look(computer, Date.now())
      const { entries, error } = crontabs.of(computer.id)
      return {
        jobs: entries.map(({ job, nextAt, lastFiredAt }) => ({
          ...job,
          next_fire_at: isoTimeOrNull(nextAt),
          last_fired_at: isoTimeOrNull(lastFiredAt),
        })),
        error,
      }
    },

    runs(who, id, { job, limit }) {
      return { runs: store.cron.runs(findComputer(who, id).id, job ?? null, limit).map(runView) }
    },

    async trigger(who, id, name) {
      const computer = findComputer(who, id)
      const parallel = triggers.get(computer.id) ?? 0
      if (parallel >= MAX_TRIGGERS) {
        throw new OrbError('too_many_sessions', `at most ${MAX_TRIGGERS} triggers of a computer may be open at once`)
      }
      triggers.set(computer.id, parallel + 1)
      try {
        return await trigger(computer, name)
      } finally {
        const left = (triggers.get(computer.id) ?? 1) - 1
        if (left === 0) triggers.delete(computer.id)
        else triggers.set(computer.id, left)
      }
    },

    async start() {
      await runner.recover(new Map(store.computers.all().map((computer) => [computer.id, computer])))
      timer = setTimeout(tick, TICK_MS - (Date.now() % TICK_MS))
    },

    forget: (computerId) => crontabs.forget(computerId),

    async stop(graceMs) {
      if (timer) clearTimeout(timer)
      await runner.stop(graceMs)
      // After a reboot the disks are not mounted: what is known then is what is known now.
      lookAt(() => true)
    },
  }
}

function attempt(message: string, work: () => void): void {
  try {
    work()
  } catch (error) {
    log('error', message, { error })
  }
}

const runView = (row: CronRunRow): CronRunView => ({
  id: row.id,
  job_id: jobId(row.computerId, row.jobName),
  job_name: row.jobName,
  fired_at: isoTime(row.firedAt),
  started_at: isoTimeOrNull(row.startedAt),
  finished_at: isoTimeOrNull(row.finishedAt),
  status: row.status,
  exit_code: row.exitCode,
  duration_ms: row.durationMs,
  stdout: row.stdout,
  stderr: row.stderr,
  error: row.error,
})

function triggerView(row: CronRunRow): CronTriggerView {
  const { id: run_id, status } = row
  if (status === 'success' || status === 'failure' || status === 'timeout') {
    return {
      run_id,
      status,
      exit_code: row.exitCode,
      stdout: row.stdout ?? '',
      stderr: row.stderr ?? '',
      duration_ms: row.durationMs,
      timed_out: status === 'timeout',
    }
  }
  return {
    run_id,
    status: 'error',
    exit_code: null,
    stdout: null,
    stderr: null,
    duration_ms: null,
    timed_out: false,
  }
}
