import { messageOf, OrbError } from '../../errors.ts'
import { log } from '../../log.ts'
import type { CriuProcess } from '../../runtime/criu-processes.ts'
import type { LogSource } from '../../runtime/logs.ts'
import type { Store } from '../../store/store.ts'
import type { AgentRow, ComputerRow, SleepReason } from '../../store/types.ts'
import { Activity } from './activity.ts'
import { Habits } from './habits.ts'
import { Ladder, type LadderOptions } from './ladder.ts'
import { agentFailed, decide, isSettled, type Step, type Wish } from './machine.ts'
import type { WakeReason } from './news.ts'
import { chooseSleep } from './policy.ts'
import { AgentRecord, type Outbox } from './record.ts'
import { isAtRest, type RecoveryContext, recoverAgent, type Since, shouldRest } from './recovery.ts'
import { situationOf } from './situation.ts'
import type { Slots } from './slots.ts'
import { AgentTree, type Slept, type TreeDeps } from './tree.ts'

export interface LifeDeps extends TreeDeps {
  store: Store
  outbox: Outbox
  slots: Slots
  ladder: LadderOptions
  /** Why this host cannot checkpoint, or null when it can. */
  checkpointProblem: string | null
  /** Whether `[lifecycle] sleep` lets it sleep by itself. */
  maySleep(computer: ComputerRow): boolean
  /** Fetches what an agent waits for whose orb was lost; `wake` is called when that is there. False: it cannot be had. */
  resumeCalls(computerId: string, wake: () => void): boolean
  /** When a former orb last looked after the agents, in ms since the epoch. */
  lastSeenAt: number
}

/** How long a stop of orb waits for an image that is being written or read. */
const LONGEST_IDLING_MS = 5000

/** How many agents are looked after at once. */
export interface RecoveryGates {
  look: Slots
  rest: Slots
}

export interface Recovering {
  known: Promise<void>
  over: Promise<void>
}

/**
 * One computer's agent, from its start to its end. Transitions of one agent come one after another; who asks for a
 * state that is being reached already waits for that.
 */
export class Life {
  readonly ladder: Ladder
  /** Public traffic. */
  readonly activity = new Activity()
  private readonly record: AgentRecord
  private readonly tree: AgentTree
  private readonly habits = new Habits()
  /** Ends a reclaim that is under way. */
  private stopReclaim = new AbortController()
  private queue: Promise<unknown> = Promise.resolve()
  /** Transitions under way or waiting. */
  private busy = 0
  private lastTurn: Promise<unknown> | null = null
  /** The wake that is under way. */
  private waking: Promise<void> | null = null
  /** Takes a dump that still waits for its turn out of the queue, in which a wake would wait behind it. */
  private unwantedDump: AbortController | null = null
  private readonly atNextRun = new Set<() => void>()
  /** What happened, where that could not be made good yet. */
  private unrecovered: Since | null = null
  /** Builds that need it awake. */
  private holds = 0
  private readonly waitingForRelease: (() => void)[] = []
  private readonly deletion = new AbortController()
  /** After a start of orb: what is done before anything else. */
  private firstLook: (() => void) | null = null
  private looking: Promise<void> = Promise.resolve()

  constructor(
    private readonly deps: LifeDeps,
    readonly computer: ComputerRow,
  ) {
    const { runtime, store } = deps
    this.record = new AgentRecord(store.agents, computer, runtime.paths(computer), deps.outbox)
    this.ladder = new Ladder(deps.ladder, {
      maySleep: () => this.holds === 0 && deps.maySleep(computer) && !this.deletion.signal.aborted,
      cpuUs: () => runtime.agentCpuUs(computer),
      freeze: (still) => this.freeze(still),
      reclaim: (still) => this.reclaim(still),
      checkpoint: async (still) => void (await this.checkpoint('llm', still)),
      prepareWake: () => this.tree.readAhead(),
      choose: (elapsedMs, waits) =>
        chooseSleep(
          situationOf(deps, computer, this.habits, elapsedMs, waits, this.tree.reclaimedMs(this.record.existing())),
        ),
      answered: (waitedMs) => this.habits.answered(waitedMs),
      wake: () => this.wake('llm'),
    })
    this.tree = new AgentTree(deps, computer, this.record, this.habits, {
      later: (work) => this.later(work),
      fellAsleep: () => this.ladder.fellAsleep(),
      awoke: () => this.ladder.touch(),
      outstanding: () => this.ladder.outstanding,
    })
  }

  /** Aborts when the computer is deleted. */
  get deleted(): AbortSignal {
    return this.deletion.signal
  }

  /** The row as it stands, transitions included. */
  row(): AgentRow | null {
    return this.record.row()
  }

  logSource(): LogSource {
    return this.record.logSource
  }

  /** It runs, and no transition is under way. */
  get running(): boolean {
    return this.busy === 0 && this.row()?.phase === 'running'
  }

  /** Calls back once, when it runs next or there is nothing of it any more. Wakes nobody. */
  whenRunning(callback: () => void): void {
    this.atNextRun.add(callback)
  }

  /* ---- wishes ---- */

  /** Undefined: the agent runs and nothing is under way. Else resolves when it runs. Rejects with OrbError. */
  wake(reason: WakeReason): Promise<void> | undefined {
    if (this.running) return undefined
    this.unwantedDump?.abort()
    this.stopReclaim.abort()
    // With a turn of its own each of many who wait would find the turns of the others under way, and wait for ever.
    if (this.waking !== null && this.waking === this.lastTurn) return this.waking
    const waking = this.serial(async () => void (await this.wakeNow(reason)))
    this.waking = waking
    const done = () => {
      if (this.waking === waking) this.waking = null
    }
    waking.then(done, done)
    return waking
  }

  /** Wakes it if need be; tells what that took. */
  promote(): Promise<{ woken: boolean; restoreMs: number | null }> {
    this.unwantedDump?.abort()
    this.stopReclaim.abort()
    return this.serial(() => this.wakeNow('manual'))
  }

  /** @param still asked when its turn has come; false: nothing is done */
  freeze(still: () => boolean): Promise<void> {
    return this.serial(async () => {
      const row = this.record.existing()
      if (still() && this.stepFor(row, 'freeze')?.action === 'freeze') await this.freezeNow(row)
    })
  }

  /** Frozen, its memory in swap. A wake ends it half way. @param still as for `freeze` */
  reclaim(still: () => boolean): Promise<void> {
    const stop = new AbortController()
    this.stopReclaim = stop
    return this.serial(async () => {
      const row = this.record.existing()
      if (!still()) return
      if (this.stepFor(row, 'reclaim')?.action === 'freeze') await this.freezeNow(row)
      const frozen = this.record.existing()
      if (!still() || this.stepFor(frozen, 'reclaim')?.action !== 'reclaim') return
      await this.tree.reclaim(frozen, stop.signal)
    })
  }

  /** To disk. Null: `still` had become false, or dumps that nobody asked for wait after ones that failed. @throws OrbError checkpoint_failed, checkpoint_unavailable, disk_full, agent_failed */
  async checkpoint(reason: SleepReason, still: () => boolean = () => true): Promise<Slept | null> {
    // Nothing sleeps during a build: it replaces files under the image.
    while (this.holds > 0) await new Promise<void>((resolve) => this.waitingForRelease.push(resolve))
    if (reason === 'manual') this.unwantedDump?.abort()
    // Pages of the last restore come in while the agent runs: no transition is held up by that, nor a slot.
    await this.tree.images.idle()
    return this.serial(async () => {
      const row = this.record.existing()
      if (!still() || (reason !== 'manual' && this.habits.dumpBackoffMs > 0)) return null
      const step = this.stepFor(row, 'checkpoint')
      if (!step) return { image: row.image ?? '', bytes: row.imageBytes ?? 0, durationMs: 0 }
      if (this.deps.checkpointProblem) {
        throw new OrbError('checkpoint_unavailable', `this server cannot checkpoint: ${this.deps.checkpointProblem}`)
      }
      // Woken from disk while this waited for its turn: its image is still in use.
      await this.tree.images.idle()
      const { image } = this.record.existing()
      // It could not be removed: once more, or the agent would not sleep again.
      if (image !== null) this.tree.images.dropLater(image)
      await this.tree.images.idle()
      if (this.record.existing().image !== null) {
        throw new OrbError('checkpoint_failed', 'the image of the last restore cannot be removed; the agent runs on')
      }
      const work = async () => (still() ? this.tree.dump(this.record.existing(), reason) : null)
      if (reason === 'manual') return this.deps.slots.run('dump', work)
      this.unwantedDump = new AbortController()
      return this.deps.slots.run('dump', work, this.unwantedDump.signal)
    })
  }

  /** Keeps the agent awake until the returned function is called; a sleeping one is woken first. */
  async hold(): Promise<() => void> {
    this.holds++
    const endLease = this.activity.lease()
    let released = false
    const release = () => {
      if (released) return
      released = true
      endLease()
      this.holds--
      for (const resolve of this.waitingForRelease.splice(0)) resolve()
      this.ladder.touch()
    }
    try {
      // It ends what is left of a former build, and is not to find this one.
      this.firstLook?.()
      await this.looking
      const row = this.row()
      if (row && row.phase !== 'failed') await this.wake('build')
      return release
    } catch (thrown) {
      release()
      throw thrown
    }
  }

  /* ---- start and end ---- */

  /**
   * Kills the old tree and starts the agent. `commit` stores what the new one is started with, in one transaction with
   * the first step. Returns the row, which says `failed` if the program ended at once. @throws OrbError spawn_failed
   */
  start(codeVersion: string | null, commit: () => void): Promise<AgentRow> {
    this.unwantedDump?.abort()
    return this.serial(async () => {
      const before = this.row()
      const row = this.record.fresh(codeVersion)
      const within = (store: () => void) =>
        this.deps.store.transaction(() => {
          commit()
          store()
        })
      this.record.put(row, within, { end: 'replaced' })
      if (before && before.phase !== 'failed') this.record.say('replaced')
      await this.tree.clear(before)
      await this.tree.spawn(row)
      return this.record.existing()
    })
  }

  /** Kills everything in the computer and forgets the agent. Returns whether one was live. */
  stop(end: 'restart' | 'deleted'): Promise<boolean> {
    this.unwantedDump?.abort()
    // Whatever could not be mended is ended: a computer that cannot be brought up can still be deleted.
    return this.turn(() => this.mendingAfter(() => this.stopNow(end)))
  }

  private async stopNow(end: 'restart' | 'deleted'): Promise<boolean> {
    const row = this.row()
    if (row) this.record.step(row, { phase: 'stopping' }, undefined, { end })
    await this.deps.runtime.killAll(this.computer)
    await this.tree.clear(row)
    this.record.forget()
    this.unrecovered = null
    const live = row !== null && row.phase !== 'failed'
    if (live) this.record.say('stopped')
    return live
  }

  /**
   * After a start of orb: makes the kernel and the database agree. `known` resolves when the row says what the agent is,
   * `over` when all is done about it. Null: there is nothing to do. @param criu what works on images now
   */
  recover(rebooted: boolean, criu: CriuProcess[], gates: RecoveryGates): Recovering | null {
    const context = this.recovery(criu)
    if (isAtRest(context)) return null
    const { promise: known, resolve } = Promise.withResolvers<void>()
    const since = { rebooted, restarted: true }
    const over = this.turn(async () => {
      this.unrecovered = since
      const rest = await gates.look.run('restore', () => recoverAgent(context, since))
      this.unrecovered = null
      resolve()
      if (rest) await gates.rest.run('restore', rest)
    })
    over.catch(() => resolve())
    return { known, over }
  }

  /** As far as the database knows, there is nothing to recover. */
  get shouldRest(): boolean {
    return shouldRest(this.row())
  }

  /** As `recover`, but not before `now` is called or something is wanted of the agent. */
  recoverLater(rebooted: boolean, criu: CriuProcess[], gates: RecoveryGates): { now(): void; over: Promise<void> } {
    const { promise: over, resolve, reject } = Promise.withResolvers<void>()
    this.looking = over.catch(() => undefined)
    this.firstLook = () => {
      this.firstLook = null
      try {
        resolve(this.recover(rebooted, criu, gates)?.over)
      } catch (thrown) {
        reject(thrown)
      }
    }
    return { now: () => this.firstLook?.(), over }
  }

  /** Removes images that are not the agent's. Returns how many things there were. */
  removeStrays(): Promise<number> {
    return this.serial(() => this.deps.runtime.checkpoints.removeStrays(this.computer, this.row()?.image ?? null))
  }

  /** Resolves when no transition is under way and all images are on stable storage, after a while at the latest. */
  async settledDown(): Promise<void> {
    this.tree.unwatch()
    await this.queue
    // A command inside can hold up the daemon that brings an agent's pages, but not the server.
    await Promise.race([this.tree.images.idle(), Bun.sleep(LONGEST_IDLING_MS)])
  }

  /** The computer is being deleted: no transition will come any more. */
  async close(): Promise<void> {
    this.deletion.abort()
    this.ladder.stop()
    await this.queue
    this.tree.unwatch()
  }

  /* ---- turns ---- */

  private async wakeNow(reason: WakeReason): Promise<{ woken: boolean; restoreMs: number | null }> {
    const row = this.record.existing()
    const step = this.stepFor(row, 'wake')
    if (!step) return { woken: false, restoreMs: null }
    if (step.action === 'restore') {
      return { woken: true, restoreMs: await this.deps.slots.run('restore', () => this.tree.restore(row, reason)) }
    }
    this.deps.runtime.thawAgent(this.computer)
    this.record.step(row, { phase: 'running' })
    this.ladder.touch()
    return { woken: true, restoreMs: null }
  }

  private async freezeNow(row: AgentRow): Promise<void> {
    const { runtime } = this.deps
    try {
      await runtime.freezeAgent(this.computer)
      this.ladder.fellAsleep()
      this.record.step(row, { phase: 'frozen' })
    } catch (thrown) {
      // A row that says `running` must never stand for one that does not.
      runtime.thawAgent(this.computer)
      this.record.say(`freeze failed: ${messageOf(thrown)}`)
      throw thrown
    }
  }

  /** What the wish takes; null: it is so already. @throws OrbError agent_failed */
  private stepFor(row: AgentRow, wish: Wish): Step | null {
    const state = isSettled(row.phase) ? row.phase : 'running'
    const decision = decide(state, wish, row.failureReason === 'restore_failed' && row.image !== null)
    if (decision.kind === 'failed') throw agentFailed(wish === 'wake' ? 'promote' : 'demote')
    return decision.kind === 'step' ? decision.step : null
  }

  private turnOver(): void {
    const row = this.row()
    // One that could not be restored still has its image, and in that its connections.
    const asleep =
      row?.phase === 'frozen' || row?.phase === 'checkpointed' || (row?.phase === 'failed' && row.image !== null)
    if (this.busy > 0 || asleep) return
    for (const callback of this.atNextRun) callback()
    this.atNextRun.clear()
  }

  private later(work: () => Promise<void>): void {
    if (this.deletion.signal.aborted) return
    this.serial(work).catch((error) =>
      log('error', 'agent could not be looked after', { computer: this.computer.shortId, error }),
    )
  }

  private recovery(criu: CriuProcess[]): RecoveryContext {
    const { computer, record, tree } = this
    const { runtime, slots, lastSeenAt } = this.deps
    const answered = () => this.later(async () => void (await this.wakeNow('llm')))
    const resumeCalls = () => this.deps.resumeCalls(computer.id, answered)
    return { runtime, slots, computer, record, tree, criu, lastSeenAt, resumeCalls }
  }

  /**
   * A recovery that failed is tried again. A transition that broke off half way, as when its outcome could not be written
   * down, is judged as after a crash.
   */
  private async mend(): Promise<void> {
    const row = this.row()
    const since = this.unrecovered ?? (row && !isSettled(row.phase) ? { rebooted: false, restarted: false } : null)
    if (since === null) return
    const context = this.recovery(this.deps.runtime.checkpoints.running())
    const rest = await recoverAgent(context, since)
    this.unrecovered = null
    await rest?.()
  }

  private async mendingAfter<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work()
    } catch (thrown) {
      await this.mend().catch((error) =>
        log('error', 'a broken transition could not be mended yet', { computer: this.computer.shortId, error }),
      )
      throw thrown
    }
  }

  private serial<T>(work: () => Promise<T>): Promise<T> {
    return this.turn(async () => {
      await this.mend()
      return this.mendingAfter(work)
    })
  }

  private turn<T>(work: () => Promise<T>): Promise<T> {
    if (this.deletion.signal.aborted) return Promise.reject(new OrbError('not_found', 'no such computer'))
    this.firstLook?.()
    this.busy++
    const turn = this.queue.then(work).finally(() => {
      this.busy--
      this.turnOver()
    })
    this.lastTurn = turn
    this.queue = turn.catch(() => undefined)
    return turn
  }
}
