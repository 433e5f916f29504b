import { closeSync, constants } from 'node:fs'
import { OrbError } from '../../errors.ts'
import { log } from '../../log.ts'
import type { ExecResult } from '../../runtime/commands.ts'
import { errnoCode, O_PATH, openInRoot } from '../../runtime/libc.ts'
import { withRoot } from '../../runtime/rootfs.ts'
import type { Runtime } from '../../runtime/runtime.ts'
import type { Store } from '../../store/store.ts'
import type { ComputerRow, CronRunRow } from '../../store/types.ts'
import type { Environment } from '../environment.ts'
import { newId } from '../ids.ts'
import type { Metrics } from '../metrics.ts'
import type { CronJob } from '../types.ts'
import { Places } from './places.ts'

/** Limit of the Orb Cloud contract §15.3. */
const OUTPUT_BYTES = 16_384
const WORKING_DIRECTORY = '/agent/code'

export interface RunnerDeps {
  store: Pick<Store, 'cron'>
  runtime: Pick<Runtime, 'up' | 'exec' | 'killCommand' | 'paths'>
  metrics: Pick<Metrics, 'inc'>
  /** False once a computer is being deleted. */
  exists(computerId: string): boolean
  /** Of the agent and of cron: base, proxy URLs, `[agent.env]` with secrets, and `more`. */
  environment(computer: ComputerRow, more: Environment): Environment
}

interface Run {
  computer: ComputerRow
  job: CronJob
  row: CronRunRow
  /** Ends it if it still waits then. */
  patience: Timer | null
  /** It is killed because orb stops. */
  isCutOff: boolean
  ended: PromiseWithResolvers<CronRunRow>
}

/** A run that is asked for. */
export interface Order {
  computer: ComputerRow
  job: CronJob
  /** Planned time, ms since the epoch. */
  firedAt: number
  /** Why it is only written down, or null. */
  skip: string | null
  /** How long it waits for a place, in ms, before it ends as an error; null: as long as it takes. */
  patienceMs: number | null
}

/**
 * Runs jobs in their computers, as far as there are places. Each run is in the database before it begins, so that after
 * a crash none is done twice. The agent is neither woken nor kept awake.
 */
export class Runner {
  private readonly places = new Places<Run>()
  private stopped = false

  constructor(private readonly deps: RunnerDeps) {}

  /** Whether a run of this job has begun or waits for its turn. */
  isBusy(computerId: string, jobName: string): boolean {
    return this.places.isBusy(computerId, jobName)
  }

  isWaiting(computerId: string, jobName: string): boolean {
    return this.places.isWaiting(computerId, jobName)
  }

  /** Writes the runs down and begins them, as far as there is room. Returns the end of each. */
  start(orders: Order[]): Promise<CronRunRow>[] {
    if (this.stopped) throw new OrbError('shutting_down', 'the server is stopping')
    const runs = orders.map(
      (order): Run => ({
        ...order,
        row: newRow(order),
        patience: null,
        isCutOff: false,
        ended: Promise.withResolvers(),
      }),
    )
    const [skipped, others] = [runs.filter(isOver), runs.filter((run) => !isOver(run))]
    for (const run of others) this.places.add(run)
    const admitted = this.admit()
    try {
      this.deps.store.cron.add(runs.map(({ row }) => row))
    } catch (thrown) {
      for (const run of others) if (!this.places.drop(run)) this.places.leave(run)
      throw thrown
    }
    for (const [index, { patienceMs }] of orders.entries()) {
      const run = runs[index]
      if (run && patienceMs !== null) run.patience = setTimeout(() => this.giveUp(run, patienceMs), patienceMs)
    }
    for (const run of skipped) this.over(run)
    for (const run of admitted) void this.execute(run, true)
    return runs.map(({ ended }) => ended.promise)
  }

  /** At start of orb: ends what a former one had begun. */
  async recover(computers: Map<string, ComputerRow>): Promise<void> {
    const { store, runtime } = this.deps
    await Promise.all(
      store.cron.unfinished().map(async (row) => {
        const computer = computers.get(row.computerId)
        if (computer) await runtime.killCommand(computer, 'cron', leafOf(row)).catch((error) => notKilled(row, error))
        store.cron.finish({ ...row, ...INTERRUPTED, finishedAt: Date.now() })
        this.deps.metrics.inc('orb_cron_runs_total', { status: 'error' })
      }),
    )
  }

  /** Begins no more. What has not ended after `graceMs` is killed. */
  async stop(graceMs: number): Promise<void> {
    this.stopped = true
    for (const run of this.places.dropAll()) this.end(run, INTERRUPTED)
    const ends = Promise.allSettled(this.places.all().map(({ ended }) => ended.promise))
    await Promise.race([ends, Bun.sleep(graceMs)])
    for (const run of this.places.all()) {
      run.isCutOff = true
      const killed = this.deps.runtime.killCommand(run.computer, 'cron', leafOf(run.row))
      killed.catch((error) => {
        notKilled(run.row, error)
        this.end(run, INTERRUPTED)
      })
    }
    await ends
  }

  private admit(): Run[] {
    if (this.stopped) return []
    const admitted = this.places.fill()
    for (const { row } of admitted) row.startedAt = Date.now()
    return admitted
  }

  private giveUp(run: Run, waitedMs: number): void {
    if (this.places.drop(run)) this.end(run, couldNotRun(`no place to run became free in ${waitedMs / 1000} s`))
  }

  /** @param written whether its begin is in the database */
  private async execute(run: Run, written: boolean): Promise<void> {
    const outcome = await this.outcomeOf(run, written)
    this.end(run, run.isCutOff ? INTERRUPTED : outcome)
    for (const next of this.admit()) void this.execute(next, false)
  }

  private async outcomeOf(run: Run, written: boolean): Promise<Outcome> {
    try {
      if (!written) this.deps.store.cron.start(run.row.id, run.row.startedAt ?? Date.now())
      const result = await this.command(run)
      const { timedOut, exitCode, durationMs } = result
      return {
        status: timedOut ? 'timeout' : exitCode === 0 ? 'success' : 'failure',
        exitCode: timedOut ? null : exitCode,
        durationMs,
        stdout: result.stdout || null,
        stderr: result.stderr || null,
        error: timedOut ? `it ran longer than ${run.job.timeout_secs} s` : null,
      }
    } catch (thrown) {
      if (thrown instanceof OrbError) return couldNotRun(thrown.message)
      log('error', 'a cron job could not be run', { computer: run.computer.shortId, run: run.row.id, error: thrown })
      return couldNotRun('the command could not be started')
    }
  }

  private async command(run: Run): Promise<ExecResult> {
    const { computer, job, row } = run
    const { runtime, exists, environment } = this.deps
    if (!exists(computer.id)) throw new OrbError('not_found', 'the computer was deleted')
    await runtime.up(computer)
    const cwd = job.working_dir ?? WORKING_DIRECTORY
    await expectDirectory(runtime.paths(computer).rootfs, cwd)
    // From here to the command's begin nothing else has a turn: a computer that is gone would be made anew.
    if (!exists(computer.id)) throw new OrbError('not_found', 'the computer was deleted')
    // There was nothing yet that could be killed.
    if (run.isCutOff) throw new OrbError('shutting_down', 'orb is being stopped')
    return runtime.exec(computer, {
      argv: ['bash', '-c', job.command],
      env: environment(computer, job.env),
      cwd,
      purpose: 'cron',
      id: leafOf(row),
      timeoutMs: job.timeout_secs * 1000,
      maxBytes: OUTPUT_BYTES,
      keep: 'start',
    })
  }

  private end(run: Run, outcome: Outcome): void {
    this.places.leave(run)
    if (run.patience) clearTimeout(run.patience)
    Object.assign(run.row, outcome, { finishedAt: Date.now() })
    try {
      this.deps.store.cron.finish(run.row)
    } catch (error) {
      // The next start of orb will show it as cut off.
      log('error', 'the end of a cron run could not be written down', { run: run.row.id, error })
    }
    this.over(run)
  }

  private over({ row, ended }: Run): void {
    this.deps.metrics.inc('orb_cron_runs_total', { status: row.status })
    ended.resolve(row)
  }
}

type Outcome = Pick<CronRunRow, 'status' | 'exitCode' | 'durationMs' | 'stdout' | 'stderr' | 'error'>

const couldNotRun = (error: string): Outcome => ({
  status: 'error',
  exitCode: null,
  durationMs: null,
  stdout: null,
  stderr: null,
  error,
})

const INTERRUPTED = couldNotRun('orb was stopped before it had ended')

const newRow = ({ computer, job, firedAt, skip }: Order): CronRunRow => ({
  id: newId('run'),
  computerId: computer.id,
  jobName: job.name,
  firedAt,
  startedAt: null,
  finishedAt: skip === null ? null : Date.now(),
  status: skip === null ? 'running' : 'skipped',
  exitCode: null,
  durationMs: null,
  stdout: null,
  stderr: null,
  error: skip,
})

const isOver = ({ row }: Run): boolean => row.status !== 'running'

/** Name of a run's cgroup, by which it is found after a crash. */
const leafOf = (row: CronRunRow): string => row.id.replace('run_', '')

const notKilled = (row: CronRunRow, error: unknown): void =>
  log('error', 'a cron run that was cut off goes on', { run: row.id, error })

/** The launcher would begin in / instead. @throws OrbError */
const expectDirectory = (rootfs: string, path: string): Promise<void> =>
  withRoot(rootfs, (root) => {
    try {
      closeSync(openInRoot(root, path, O_PATH | constants.O_DIRECTORY))
    } catch (thrown) {
      const code = errnoCode(thrown)
      if (code === null) throw thrown
      throw new OrbError('invalid_path', `the working directory ${path} cannot be entered (${code})`)
    }
  })
