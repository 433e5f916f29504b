import type { FSWatcher } from 'node:fs'
import { messageOf, OrbError } from '../../errors.ts'
import { log } from '../../log.ts'
import { CriuError } from '../../runtime/criu.ts'
import { appendOrbLine } from '../../runtime/log-file.ts'
import { type LogSource, stderrTail } from '../../runtime/logs.ts'
import type { AgentStart, Runtime } from '../../runtime/runtime.ts'
import type { Store } from '../../store/store.ts'
import type { AgentRow, ComputerRow, FailureReason, SleepReason } from '../../store/types.ts'
import type { Metrics } from '../metrics.ts'
import { Ladder, type LadderOptions } from './ladder.ts'
import { decide, type Facts, isSettled, recover, type Step, type Wish } from './machine.ts'
import type { Slots } from './slots.ts'

/** The LLM proxy's port on the gateway: what the API calls an agent's `port`. */
export const AGENT_PORT = 10_000
/** Exit code of a tree that was killed before its pid 1 could write one down: 128 + SIGKILL. */
const EXIT_KILLED = 137
/** An agent that ends this soon is reported as failed by the deploy that started it (Orb Cloud contract §7.1). */
const EARLY_EXIT_MS = 300

export interface LifeDeps {
  store: Store
  runtime: Runtime
  metrics: Metrics
  slots: Slots
  ladder: LadderOptions
  /** Command line, environment and directory that the agent of a computer is started with, from its deployed config. */
  startOf(computer: ComputerRow): Promise<AgentStart>
  /** Why this host cannot checkpoint, or null when it can. */
  checkpointProblem: string | null
  /** Whether `[lifecycle] sleep` lets it sleep by itself. */
  maySleep(computer: ComputerRow): boolean
  /** Its tree is gone, perhaps behind a locked network that let no word of it through: break its LLM connections off. */
  dropConnections(computerId: string): void
}

export interface Slept {
  image: string
  bytes: number
  durationMs: number
}

/**
 * One computer's agent, from its start to its end. Transitions of one agent come one after another; who asks for a
 * state that is being reached already waits for that.
 */
export class Life {
  readonly ladder: Ladder
  private queue: Promise<unknown> = Promise.resolve()
  private busy = 0
  private holds = 0
  private watcher: FSWatcher | null = null
  private ended: (() => void)[] = []
  private oomKillsBefore = 0
  /** The image was made by this process: the connections in it still have their other end. */
  private ownImage = false
  private readonly deletion = new AbortController()
  /** What the database holds; this process is its only writer. Undefined: not read yet. */
  private current: AgentRow | null | undefined
  /** The removal of the image that the agent was last restored from. */
  private dropping: Promise<void> = Promise.resolve()
  private syncing: Promise<void> = Promise.resolve()
  private readonly waitingForRelease: (() => void)[] = []

  constructor(
    private readonly deps: LifeDeps,
    readonly computer: ComputerRow,
  ) {
    this.ladder = new Ladder(deps.ladder, {
      maySleep: () => this.holds === 0 && deps.maySleep(computer) && !this.deletion.signal.aborted,
      cpuUs: () => deps.runtime.agentCpuUs(computer),
      freeze: (still) => this.freeze(still),
      checkpoint: async (still) => void (await this.checkpoint('llm', still)),
      wake: () => this.wake('llm'),
    })
  }

  /** Aborts when the computer is deleted. */
  get deleted(): AbortSignal {
    return this.deletion.signal
  }

  /** Resolves when no transition is under way. */
  async settledDown(): Promise<void> {
    this.watcher?.close()
    await this.queue
    await this.syncing
  }

  /** The row as it stands, transitions included. */
  row(): AgentRow | null {
    if (this.current === undefined) this.current = this.deps.store.agents.get(this.computer.id)
    return this.current
  }

  /* ---- wishes ---- */

  /** Undefined: the agent runs and nothing is under way. Else resolves when it runs. Rejects with OrbError. */
  wake(reason: 'llm' | 'manual' | 'build' | 'recovery'): Promise<void> | undefined {
    if (this.busy === 0 && this.row()?.phase === 'running') return undefined
    return this.serial(async () => void (await this.wakeNow(reason)))
  }

  /** Wakes it if need be; tells what that took. */
  promote(): Promise<{ woken: boolean; restoreMs: number | null }> {
    return this.serial(() => this.wakeNow('manual'))
  }

  /** @param still asked when its turn has come; false: nothing is done */
  freeze(still: () => boolean): Promise<void> {
    return this.serial(async () => {
      const row = this.settled()
      if (!still() || this.stepFor(row, 'freeze')?.action !== 'freeze') return
      await this.deps.runtime.freezeAgent(this.computer)
      this.ladder.fellAsleep()
      this.save(row, { phase: 'frozen', generation: row.generation + 1 })
    })
  }

  /** To disk. Null: `still` had become false. @throws OrbError checkpoint_failed, checkpoint_unavailable, disk_full, agent_failed */
  async checkpoint(reason: SleepReason, still: () => boolean = () => true): Promise<Slept | null> {
    // Nothing sleeps during a build: it replaces files under the image.
    while (this.holds > 0) await new Promise<void>((resolve) => this.waitingForRelease.push(resolve))
    return this.serial(async () => {
      const row = this.settled()
      if (!still()) return null
      const step = this.stepFor(row, 'checkpoint')
      if (!step) return { image: row.image ?? '', bytes: row.imageBytes ?? 0, durationMs: 0 }
      if (this.deps.checkpointProblem) {
        throw new OrbError('checkpoint_unavailable', `this server cannot checkpoint: ${this.deps.checkpointProblem}`)
      }
      if (!(await this.deps.runtime.drained(this.computer)))
        throw new OrbError('checkpoint_failed', 'the last restore is not whole')
      await this.dropping
      return this.deps.slots.run('dump', () => this.dump(this.settled(), reason, still))
    })
  }

  /** Keeps the agent awake until the returned function is called; a sleeping one is woken first. */
  async hold(): Promise<() => void> {
    this.holds++
    let released = false
    const release = () => {
      if (released) return
      released = true
      this.holds--
      for (const resolve of this.waitingForRelease.splice(0)) resolve()
      this.ladder.touch()
    }
    try {
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
  start(codeVersion: string | null, commit: () => void, reason: 'deploy' | 'recovery' = 'deploy'): Promise<AgentRow> {
    return this.serial(async () => {
      const { store } = this.deps
      const before = this.row()
      const row = this.freshRow(before, codeVersion)
      store.transaction(() => {
        commit()
        store.agents.put(row)
      })
      this.current = row
      if (before && before.phase !== 'failed') this.say(reason === 'recovery' ? 'lost its processes' : 'replaced')
      await this.clear(before)
      return this.spawn(row, reason)
    })
  }

  /** Kills everything in the computer and forgets the agent. Returns whether one was live. */
  stop(): Promise<boolean> {
    return this.serial(async () => {
      const row = this.row()
      if (row) this.save(row, { phase: 'stopping', generation: row.generation + 1 })
      await this.deps.runtime.killAll(this.computer)
      await this.clear(row)
      this.forget()
      const live = row !== null && row.phase !== 'failed'
      if (live) this.say('stopped')
      return live
    })
  }

  private freshRow(before: AgentRow | null, codeVersion: string | null): AgentRow {
    return {
      computerId: this.computer.id,
      phase: 'starting',
      generation: (before?.generation ?? 0) + 1,
      pid: null,
      image: null,
      imageBytes: null,
      startedAt: Date.now(),
      exitCode: null,
      stderrTail: null,
      failureReason: null,
      failureMessage: null,
      sleepReason: null,
      codeVersion,
      llmOutstanding: false,
      lastWakeMs: null,
    }
  }

  /** The computer is being deleted: no transition will come any more. */
  async close(): Promise<void> {
    this.deletion.abort()
    this.ladder.stop()
    await this.queue
    this.watcher?.close()
    this.watcher = null
  }

  /** After a start of orb: makes the kernel and the database agree. */
  recover(rebooted: boolean): Promise<void> {
    return this.serial(async () => {
      const { runtime } = this.deps
      await runtime.up(this.computer)
      // Steps of a build whose orb is gone: nobody reads them any more.
      await runtime.killCommands(this.computer, ['build'])
      const row = this.row()
      if (!row) return
      const image = await runtime.settle(this.computer, row.image, rebooted)
      await runtime.removeOtherImages(this.computer, row.image)
      const exit = runtime.readExit(this.computer)
      const facts: Facts = {
        ...image,
        alive: runtime.agentAlive(this.computer),
        exited: exit !== null && exit.at >= (row.startedAt ?? 0),
        rebooted,
      }
      const recovery = recover(row.phase, facts)
      if (row.phase !== 'failed')
        log('info', 'agent found', { computer: this.computer.shortId, phase: row.phase, recovery })
      switch (recovery) {
        case 'keep':
          return
        case 'adopt':
          runtime.network.unlock(this.computer.shortId)
          runtime.thawAgent(this.computer)
          this.oomKillsBefore = runtime.oomKills(this.computer)
          this.save(row, {
            phase: 'running',
            generation: row.generation + 1,
            pid: runtime.agentPid(this.computer),
            sleepReason: null,
          })
          this.watch()
          if (row.image) this.dropImageLater(row.image)
          return
        case 'kill_and_sleep':
          await runtime.killAgent(this.computer)
          return this.sleepOn(row)
        case 'sleep':
          return this.sleepOn(row)
        case 'ended':
          await this.clear(row)
          return this.fail(row, exit && facts.exited ? exit.code : EXIT_KILLED, 'exit')
        case 'lost':
          await this.clear(row)
          this.say('its checkpoint is not whole: it cannot be restored')
          return void this.save(row, {
            phase: 'failed',
            generation: row.generation + 1,
            pid: null,
            image: null,
            failureReason: 'restore_failed',
            failureMessage: 'the checkpoint is not whole',
          })
        case 'remove':
          await runtime.killAll(this.computer)
          await this.clear(row)
          return this.forget()
        case 'respawn':
          await this.clear(row)
          this.say('lost its processes, started afresh (recovery)')
          await this.spawn(this.freshRow(row, row.codeVersion), 'recovery').catch((error) =>
            log('warn', 'agent could not be started again', { computer: this.computer.shortId, error }),
          )
      }
    })
  }

  /* ---- inside a turn ---- */

  private async wakeNow(reason: string): Promise<{ woken: boolean; restoreMs: number | null }> {
    const row = this.settled()
    const step = this.stepFor(row, 'wake')
    if (!step) return { woken: false, restoreMs: null }
    if (step.action === 'restore') {
      return { woken: true, restoreMs: await this.deps.slots.run('restore', () => this.restore(row, reason)) }
    }
    this.deps.runtime.thawAgent(this.computer)
    this.save(row, { phase: 'running', generation: row.generation + 1 })
    this.ladder.touch()
    return { woken: true, restoreMs: null }
  }

  private async dump(row: AgentRow, reason: SleepReason, still: () => boolean): Promise<Slept | null> {
    const { runtime, metrics } = this.deps
    if (!still()) return null
    if (!runtime.agentAlive(this.computer)) {
      await this.endedNow(row)
      throw this.failedError('demote')
    }
    const generation = row.generation + 1
    const image = `${generation}`
    const wasFrozen = row.phase === 'frozen'
    this.save(row, {
      phase: 'checkpointing',
      generation,
      image,
      sleepReason: reason,
      llmOutstanding: this.ladder.outstanding > 0,
    })
    const begun = { ...row, generation }
    let written: { bytes: number; durationMs: number }
    try {
      if (!wasFrozen) await runtime.freezeAgent(this.computer)
      this.ladder.fellAsleep()
      written = await runtime.checkpoint(this.computer, image)
    } catch (thrown) {
      metrics.inc('orb_checkpoint_failures_total', { op: 'dump' })
      if (!runtime.agentAlive(this.computer)) {
        await this.endedNow(begun)
        throw this.failedError('demote')
      }
      // An agent that waits for its LLM stays frozen until the answer, any other goes on.
      const stay = wasFrozen && reason === 'llm'
      if (!stay) runtime.thawAgent(this.computer)
      const message = thrown instanceof CriuError ? thrown.reason : messageOf(thrown)
      this.save(begun, { phase: stay ? 'frozen' : 'running', image: null, sleepReason: null, failureMessage: message })
      this.say(`checkpoint failed: ${message}`)
      if (thrown instanceof CriuError && thrown.noSpace) {
        throw new OrbError('disk_full', 'no space is left for the checkpoint; the agent runs on', {}, { cause: thrown })
      }
      throw new OrbError('checkpoint_failed', `${message}; the agent runs on`, {}, { cause: thrown })
    }
    // The image is all that there is of the agent now. Should this fail, the next start finds the row as it stands.
    const { bytes, durationMs } = written
    this.ownImage = true
    this.save(begun, { phase: 'checkpointed', pid: null, imageBytes: bytes, failureMessage: null })
    this.say(`checkpointed (${reason}), ${bytes} bytes in ${Math.round(durationMs)} ms`)
    this.syncLater(image)
    metrics.inc('orb_checkpoints_total', { kind: 'full', reason })
    metrics.observe('orb_checkpoint_seconds', durationMs / 1000)
    return { image, bytes, durationMs: Math.round(durationMs) }
  }

  private async restore(row: AgentRow, reason: string): Promise<number> {
    const { runtime, metrics } = this.deps
    const image = row.image
    if (image === null) throw new OrbError('restore_failed', 'the agent has no checkpoint')
    const generation = row.generation + 1
    this.save(row, { phase: 'restoring', generation })
    const begun = { ...row, generation }
    try {
      const { durationMs } = await runtime.restore(this.computer, image, !this.ownImage)
      const lastWakeMs = Math.round(durationMs)
      this.save(begun, {
        phase: 'running',
        pid: runtime.agentPid(this.computer),
        sleepReason: null,
        failureReason: null,
        failureMessage: null,
        exitCode: null,
        llmOutstanding: false,
        lastWakeMs,
      })
      this.watch()
      this.ladder.touch()
      this.say(`restored (${reason}) in ${lastWakeMs} ms`)
      metrics.inc('orb_restores_total', { reason })
      metrics.observe('orb_restore_seconds', durationMs / 1000)
      this.dropImageLater(image)
      return lastWakeMs
    } catch (thrown) {
      metrics.inc('orb_checkpoint_failures_total', { op: 'restore' })
      const message = thrown instanceof CriuError ? thrown.reason : messageOf(thrown)
      this.save(begun, { phase: 'failed', pid: null, failureReason: 'restore_failed', failureMessage: message })
      this.say(`restore failed: ${message}; the checkpoint is kept`)
      throw new OrbError(
        'restore_failed',
        `${message}; the checkpoint is kept and promote tries it again`,
        {},
        { cause: thrown },
      )
    }
  }

  /** Until it is on stable storage, a power cut would cost the agent what it has in memory. */
  private syncLater(image: string): void {
    this.syncing = this.deps.runtime
      .syncImage(this.computer, image)
      .catch((error) =>
        log('error', 'a checkpoint is not on stable storage', { computer: this.computer.shortId, error }),
      )
  }

  /** The image goes once its last page is in. A page that cannot come any more is the end of the agent. */
  private dropImageLater(image: string): void {
    this.dropping = this.dropImage(image).catch((error) =>
      log('error', 'a checkpoint could not be removed', { computer: this.computer.shortId, error }),
    )
  }

  private async dropImage(image: string): Promise<void> {
    const { runtime } = this.deps
    const whole = await runtime.drained(this.computer)
    // Whoever started, stopped or checkpointed the agent meanwhile has looked after this image.
    const isStillIts = () => {
      const row = this.row()
      return row !== null && row.image === image && (row.phase === 'running' || row.phase === 'frozen') ? row : null
    }
    const row = isStillIts()
    if (!row) return
    if (whole || !runtime.agentAlive(this.computer)) {
      await runtime.removeImage(this.computer, image)
      const now = isStillIts()
      if (now) this.save(now, { image: null, imageBytes: null })
      return
    }
    this.background(
      this.serial(async () => {
        const now = isStillIts()
        if (!now) return
        const failureMessage = 'the page daemon ended before all memory was back'
        this.save(now, {
          phase: 'failed',
          generation: now.generation + 1,
          pid: null,
          failureReason: 'restore_failed',
          failureMessage,
        })
        await runtime.killAgent(this.computer)
        this.deps.dropConnections(this.computer.id)
        this.say(`restore failed: ${failureMessage}`)
      }),
    )
  }

  private async sleepOn(row: AgentRow): Promise<void> {
    this.save(row, { phase: 'checkpointed', generation: row.generation + 1, pid: null })
    if (row.image) this.syncLater(row.image)
    if (!row.llmOutstanding) return
    // Its connection died with the orb that held it: it wakes, sees a reset, and its client library tries again.
    const awake = { ...row, generation: row.generation + 1 }
    await this.deps.slots.run('restore', () => this.restore(awake, 'recovery')).catch(() => undefined)
  }

  private async spawn(row: AgentRow, reason: string): Promise<AgentRow> {
    const { runtime } = this.deps
    this.put(row)
    try {
      this.oomKillsBefore = runtime.oomKills(this.computer)
      await runtime.spawnAgent(this.computer, await this.deps.startOf(this.computer))
    } catch (thrown) {
      const message = messageOf(thrown)
      await runtime.killAgent(this.computer)
      this.say(`could not be started: ${message}`)
      this.save(row, { phase: 'failed', failureReason: 'exit', failureMessage: message })
      throw new OrbError('spawn_failed', message, {}, { cause: thrown })
    }
    const pid = runtime.agentPid(this.computer)
    this.save(row, { phase: 'running', pid })
    this.say(reason === 'recovery' ? `spawned pid ${pid} (recovery)` : `spawned pid ${pid}`)
    this.watch()
    await Promise.race([new Promise<void>((resolve) => this.ended.push(resolve)), Bun.sleep(EARLY_EXIT_MS)])
    const now = this.row()
    if (now && now.phase === 'running' && !runtime.agentAlive(this.computer)) await this.endedNow(now)
    this.ladder.touch()
    return this.row() ?? row
  }

  /** Takes away what a former tree left: processes, image, lock. */
  private async clear(row: AgentRow | null): Promise<void> {
    const { runtime } = this.deps
    this.watcher?.close()
    this.watcher = null
    await runtime.killAgent(this.computer)
    this.deps.dropConnections(this.computer.id)
    runtime.network.unlock(this.computer.shortId)
    if (row?.image) await runtime.removeImage(this.computer, row.image)
    this.ownImage = false
  }

  private watch(): void {
    this.watcher?.close()
    this.watcher = null
    this.watcher = this.deps.runtime.watchAgent(this.computer, () => {
      if (this.deps.runtime.agentAlive(this.computer)) return
      for (const resolve of this.ended.splice(0)) resolve()
      if (this.deletion.signal.aborted) return
      const turn = this.serial(async () => {
        const row = this.row()
        const inRam = row?.phase === 'running' || row?.phase === 'frozen'
        if (row && inRam && !this.deps.runtime.agentAlive(this.computer)) await this.endedNow(row)
      })
      this.background(turn)
    })
    // It may have ended between the last look and the watch.
    if (!this.deps.runtime.agentAlive(this.computer)) for (const resolve of this.ended.splice(0)) resolve()
  }

  /** The tree is gone by itself. */
  private endedNow(row: AgentRow): Promise<void> {
    const { runtime } = this.deps
    const exit = runtime.readExit(this.computer)
    const code = exit && exit.at >= (row.startedAt ?? 0) ? exit.code : EXIT_KILLED
    const oom = code === EXIT_KILLED && runtime.oomKills(this.computer) > this.oomKillsBefore
    return this.fail(row, code, oom ? 'oom' : 'exit')
  }

  private async fail(row: AgentRow, exitCode: number, failureReason: FailureReason): Promise<void> {
    if (row.image) await this.deps.runtime.removeImage(this.computer, row.image)
    const tail = await stderrTail(this.logSource(), row.startedAt ?? 0)
    this.save(row, {
      phase: 'failed',
      generation: row.generation + 1,
      pid: null,
      image: null,
      exitCode,
      failureReason,
      stderrTail: tail,
    })
    this.say(failureReason === 'oom' ? `killed: out of memory (exit code ${exitCode})` : `exited with code ${exitCode}`)
  }

  private stepFor(row: AgentRow, wish: Wish): Step | null {
    const state = isSettled(row.phase) ? row.phase : 'running'
    const decision = decide(state, wish, row.failureReason === 'restore_failed' && row.image !== null)
    if (decision.kind === 'failed') throw this.failedError(wish === 'wake' ? 'promote' : 'demote')
    return decision.kind === 'step' ? decision.step : null
  }

  private settled(): AgentRow {
    const row = this.row()
    if (!row) throw new OrbError('agent_not_found', 'this computer has no agent; deploy one first')
    return row
  }

  private failedError(verb: string): OrbError {
    return new OrbError('agent_failed', `agent ${AGENT_PORT} has failed — cannot ${verb}`)
  }

  /** Fenced: whoever lost its generation must not go on. */
  private save(row: AgentRow, changes: Partial<AgentRow>): void {
    const { computerId: _, ...fields } = changes
    if (!this.deps.store.agents.update(this.computer.id, row.generation, fields)) {
      throw new OrbError('internal', 'the agent was changed by somebody else meanwhile')
    }
    this.current = { ...(this.row() ?? row), ...fields }
  }

  private put(row: AgentRow): void {
    this.deps.store.agents.put(row)
    this.current = row
  }

  private forget(): void {
    this.deps.store.agents.remove(this.computer.id)
    this.current = null
  }

  /** Where the computer's log lies. */
  logSource(): LogSource {
    const paths = this.deps.runtime.paths(this.computer)
    return { rootDir: paths.rootfs, orbLog: paths.log }
  }

  private say(text: string): void {
    appendOrbLine(this.deps.runtime.paths(this.computer).log, text, Date.now())
  }

  /** Work that nobody waits for. */
  private background(work: Promise<unknown>): void {
    work.catch((error) => log('error', 'agent could not be looked after', { computer: this.computer.shortId, error }))
  }

  private serial<T>(work: () => Promise<T>): Promise<T> {
    if (this.deletion.signal.aborted) return Promise.reject(new OrbError('not_found', 'no such computer'))
    this.busy++
    const turn = this.queue.then(work).finally(() => {
      this.busy--
    })
    this.queue = turn.catch(() => undefined)
    return turn
  }
}
