import type { FSWatcher } from 'node:fs'
import { messageOf, OrbError } from '../../errors.ts'
import { CriuError } from '../../runtime/criu.ts'
import { errnoCode } from '../../runtime/libc.ts'
import { stderrTail } from '../../runtime/logs.ts'
import type { AgentStart, Runtime } from '../../runtime/runtime.ts'
import type { AgentRow, ComputerRow, FailureReason, SleepReason, UsageEvent } from '../../store/types.ts'
import type { Metrics } from '../metrics.ts'
import type { Habits } from './habits.ts'
import { Images } from './images.ts'
import { agentFailed } from './machine.ts'
import type { WakeReason } from './news.ts'
import { type AgentRecord, isExitOf } from './record.ts'

/** Exit code of a tree that was killed before its pid 1 could write one down: 128 + SIGKILL. */
const EXIT_KILLED = 137
/** An agent that ends this soon is reported as failed by the deploy that started it (Orb Cloud contract §7.1). */
const EARLY_EXIT_MS = 300
const MB = 1024 * 1024

export interface TreeDeps {
  runtime: Runtime
  metrics: Metrics
  /** Command line, environment and directory that the agent of a computer is started with, from its deployed config. */
  startOf(computer: ComputerRow): Promise<AgentStart>
  /** Its tree is gone, perhaps behind a locked network that let no word of it through: break its LLM connections off. */
  dropConnections(computerId: string): void
  /** Ports of its connections to the LLM proxy that this orb still holds. */
  heldConnections(computerId: string): ReadonlySet<number>
  /** The agent that made them is no more: its LLM calls end, and nothing of their answers is kept. */
  forgetCalls(computerId: string): void
}

/** What the tree tells of itself, and asks. */
export interface TreeOwner {
  /** Does `work` when no transition is under way; nobody waits for it. */
  later(work: () => Promise<void>): void
  fellAsleep(): void
  awoke(): void
  /** LLM calls without a complete answer. */
  outstanding(): number
}

export interface Slept {
  image: string
  bytes: number
  durationMs: number
}

/**
 * The processes of one agent and the image that stands for them, each step written down before the kernel is touched and
 * after. Whoever calls sees to it that steps do not overlap.
 */
export class AgentTree {
  readonly images: Images
  private watcher: FSWatcher | null = null
  private ended: (() => void)[] = []
  private oomKillsBefore = 0
  /** The image was made by this process: the connections in it still have their other end. */
  private ownImage = false
  /** When its memory went to swap, and the generation that this was done in: any later step brought it back. */
  private reclaimed: { generation: number; at: number } | null = null

  constructor(
    private readonly deps: TreeDeps,
    private readonly computer: ComputerRow,
    private readonly record: AgentRecord,
    private readonly habits: Habits,
    private readonly owner: TreeOwner,
  ) {
    this.images = new Images(deps, computer, record, owner)
  }

  /** Starts the agent of a row that was put already. @throws OrbError spawn_failed; the row says so too */
  async spawn(row: AgentRow, start: 'deploy' | 'recovery' = 'deploy'): Promise<void> {
    const { runtime } = this.deps
    this.habits.startedAnew()
    try {
      await runtime.up(this.computer)
      this.oomKillsBefore = runtime.oomKills(this.computer)
      await runtime.spawnAgent(this.computer, await this.deps.startOf(this.computer), row.startedAt ?? 0)
    } catch (thrown) {
      const message = messageOf(thrown)
      await runtime.killAgent(this.computer)
      this.record.say(`could not be started: ${message}`)
      const failed = { phase: 'failed', failureReason: 'exit', failureMessage: message } as const
      this.record.save(row, failed, undefined, { start })
      throw new OrbError('spawn_failed', message, {}, { cause: thrown })
    }
    const pid = runtime.agentPid(this.computer)
    this.record.save(row, { phase: 'running', pid }, undefined, { start })
    this.record.say(`spawned pid ${pid}${start === 'recovery' ? ' (recovery)' : ''}`)
    this.watch()
    await Promise.race([new Promise<void>((resolve) => this.ended.push(resolve)), Bun.sleep(EARLY_EXIT_MS)])
    await this.noticeEnd()
    this.owner.awoke()
  }

  /** A tree that a former orb left is the agent: it goes on. */
  adopt(row: AgentRow, usage: UsageEvent): void {
    const { runtime } = this.deps
    // Word of their end may have come while the connections were locked, and is not sent for ever.
    runtime.resetLostCalls(this.computer, this.deps.heldConnections(this.computer.id))
    runtime.network.unlock(this.computer.shortId)
    runtime.thawAgent(this.computer)
    this.oomKillsBefore = runtime.oomKills(this.computer)
    // It may be one whose restore was tried again after a failure.
    const failed = { failureReason: null, failureMessage: null }
    const pid = runtime.agentPid(this.computer)
    this.record.step(row, { phase: 'running', pid, sleepReason: null, ...failed }, undefined, usage)
    this.watch()
    if (row.image) this.images.dropLater(row.image)
  }

  /** The memory of the frozen agent to swap; `signal` ends that half way. @throws Error; the agent is frozen as before */
  async reclaim(row: AgentRow, signal: AbortSignal): Promise<void> {
    const { runtime, metrics } = this.deps
    const result = await runtime.reclaimAgent(this.computer, signal).catch((thrown) => {
      this.record.say(`reclaim failed: ${messageOf(thrown)}`)
      throw thrown
    })
    if (signal.aborted) return
    this.reclaimed = { generation: row.generation, at: performance.now() }
    const [swapped, resident] = [result.swappedBytes, result.residentBytes].map((bytes) => (bytes / MB).toFixed(1))
    const durationMs = Math.round(result.durationMs)
    this.record.say(`reclaimed (llm), ${swapped} MB to swap in ${durationMs} ms, ${resident} MB stay`)
    metrics.inc('orb_reclaims_total')
    metrics.observe('orb_reclaim_seconds', result.durationMs / 1000)
  }

  /** For how long the agent's memory has been in swap; null: it is not. */
  reclaimedMs(row: AgentRow | null): number | null {
    if (!row || this.reclaimed?.generation !== row.generation) return null
    return performance.now() - this.reclaimed.at
  }

  /** From RAM to disk. @throws OrbError checkpoint_failed, disk_full, agent_failed; but for the last the agent goes on */
  async dump(row: AgentRow, reason: SleepReason): Promise<Slept> {
    const { runtime, metrics } = this.deps
    if (!runtime.agentAlive(this.computer)) {
      await this.noticeEnd()
      throw agentFailed('demote')
    }
    const wasFrozen = row.phase === 'frozen'
    const wasReclaimed = this.reclaimedMs(row) !== null
    const image = `${row.generation + 1}`
    const llmOutstanding = this.owner.outstanding() > 0
    const begun = this.beginDump(row, { image, sleepReason: reason, llmOutstanding })
    let written: { bytes: number; durationMs: number }
    try {
      if (!wasFrozen) await runtime.freezeAgent(this.computer)
      this.owner.fellAsleep()
      written = await runtime.checkpoints.dump(this.computer, image)
    } catch (thrown) {
      throw await this.dumpFailed(begun, thrown, wasFrozen && reason === 'llm')
    }
    // The image is all that there is of the agent now. Should this fail, the row is judged as it stands.
    const durationMs = Math.round(written.durationMs)
    this.ownImage = true
    // With what it takes to read its memory from swap this would say too much of the next one.
    this.habits.dumped(wasReclaimed ? null : durationMs)
    const asleep = { phase: 'checkpointed', pid: null, imageBytes: written.bytes, failureMessage: null } as const
    this.record.save(begun, asleep, undefined, { durationMs, checkpoint: true })
    this.record.say(`checkpointed (${reason}), ${written.bytes} bytes in ${durationMs} ms`)
    this.images.syncLater(image)
    metrics.inc('orb_checkpoints_total', { kind: 'full', reason })
    metrics.observe('orb_checkpoint_seconds', durationMs / 1000)
    return { image, bytes: written.bytes, durationMs }
  }

  private beginDump(row: AgentRow, fields: Pick<AgentRow, 'image' | 'sleepReason' | 'llmOutstanding'>): AgentRow {
    try {
      return this.record.step(row, { phase: 'checkpointing', ...fields })
    } catch (thrown) {
      // The database lies on the same disk as the images.
      throw isNoSpace(thrown) ? noSpace(messageOf(thrown), thrown) : thrown
    }
  }

  /** @param stay an agent that waits for its LLM stays frozen until the answer, any other goes on */
  private async dumpFailed(begun: AgentRow, thrown: unknown, stay: boolean): Promise<OrbError> {
    const { runtime, metrics } = this.deps
    metrics.inc('orb_checkpoint_failures_total', { op: 'dump' })
    if (!runtime.agentAlive(this.computer)) {
      await this.end(begun)
      return agentFailed('demote')
    }
    this.habits.dumpFailed()
    if (!stay) runtime.thawAgent(this.computer)
    const message = thrown instanceof CriuError ? thrown.reason : messageOf(thrown)
    const phase = stay ? 'frozen' : 'running'
    const goesOn = { phase, image: null, sleepReason: null, failureMessage: message } as const
    this.record.save(begun, goesOn, undefined, { failed: true })
    this.record.say(`checkpoint failed: ${message}`)
    if (isNoSpace(thrown)) return noSpace(message, thrown)
    return new OrbError('checkpoint_failed', `${message}; the agent runs on`, {}, { cause: thrown })
  }

  /** Has the image of a sleeping agent read into memory; nobody waits for it. */
  readAhead(): void {
    const row = this.record.row()
    if (row?.phase === 'checkpointed' && row.image) this.deps.runtime.checkpoints.readAhead(this.computer, row.image)
  }

  /** From disk to RAM. Returns how long it took, in ms. @throws OrbError restore_failed; the image is kept */
  async restore(row: AgentRow, reason: WakeReason): Promise<number> {
    const { runtime, metrics } = this.deps
    const { image } = row
    if (image === null) throw new OrbError('restore_failed', 'the agent has no checkpoint')
    // Somebody waits: neither this nor what follows waits for a disk. After a power cut there is no process, and then a
    // row that still says `checkpointed` leads to the same as `restoring`, or `running`, does.
    const begun = this.record.step(row, { phase: 'restoring' }, 'crash')
    const held = () => this.deps.heldConnections(this.computer.id)
    const restored = await runtime.checkpoints.restore(this.computer, image, !this.ownImage, held).catch((thrown) => {
      metrics.inc('orb_checkpoint_failures_total', { op: 'restore' })
      const message = thrown instanceof CriuError ? thrown.reason : messageOf(thrown)
      const failed = { phase: 'failed', pid: null, failureReason: 'restore_failed', failureMessage: message } as const
      this.record.save(begun, failed, undefined, { failed: true })
      this.record.say(`restore failed: ${message}; the checkpoint is kept`)
      this.images.syncLater(image)
      const told = `${message}; the checkpoint is kept and promote tries it again`
      throw new OrbError('restore_failed', told, {}, { cause: thrown })
    })
    const lastWakeMs = Math.round(restored.durationMs)
    this.habits.restored(lastWakeMs)
    const awake: Partial<AgentRow> = {
      phase: 'running',
      pid: runtime.agentPid(this.computer),
      sleepReason: null,
      failureReason: null,
      failureMessage: null,
      exitCode: null,
      llmOutstanding: false,
      lastWakeMs,
    }
    this.record.save(begun, awake, 'crash', { wake: reason, durationMs: lastWakeMs, restoreMs: lastWakeMs })
    this.watch()
    this.owner.awoke()
    this.record.say(`restored (${reason}) in ${lastWakeMs} ms`)
    metrics.inc('orb_restores_total', { reason })
    metrics.observe('orb_restore_seconds', restored.durationMs / 1000)
    this.images.dropLater(image)
    return lastWakeMs
  }

  /** Takes away what there is of the agent: processes, connections, image, lock. The row stays. */
  async clear(row: AgentRow | null): Promise<void> {
    const { runtime } = this.deps
    this.unwatch()
    await runtime.killAgent(this.computer)
    this.deps.dropConnections(this.computer.id)
    this.deps.forgetCalls(this.computer.id)
    runtime.network.unlock(this.computer.shortId)
    if (row?.image) await runtime.checkpoints.removeImage(this.computer, row.image)
    this.ownImage = false
  }

  /** Writes the end of a tree down that is gone by itself. @param at when that was, where it is not now, in ms since the epoch */
  async end(row: AgentRow, at?: number): Promise<void> {
    const { runtime } = this.deps
    const exit = runtime.readExit(this.computer)
    const exitCode = isExitOf(row, exit) ? exit.code : EXIT_KILLED
    const oom = exitCode === EXIT_KILLED && runtime.oomKills(this.computer) > this.oomKillsBefore
    const failureReason: FailureReason = oom ? 'oom' : 'exit'
    if (row.image) await runtime.checkpoints.removeImage(this.computer, row.image)
    const startedAt = row.startedAt ?? 0
    // Where the clock was set back, its last lines are older than its start.
    const since = isExitOf(row, exit) && exit.at < startedAt ? 0 : startedAt
    const tail = await stderrTail(this.record.logSource, since)
    const ended = { phase: 'failed', pid: null, image: null, exitCode, failureReason, stderrTail: tail } as const
    this.record.step(row, ended, undefined, { at })
    this.record.say(oom ? `killed: out of memory (exit code ${exitCode})` : `exited with code ${exitCode}`)
  }

  unwatch(): void {
    this.watcher?.close()
    this.watcher = null
  }

  private watch(): void {
    this.unwatch()
    this.watcher = this.deps.runtime.watchAgent(this.computer, () => {
      if (this.seemsAlive()) return
      this.announceEnd()
      this.owner.later(() => this.noticeEnd())
    })
    // It may have ended between the last look and the watch.
    if (!this.deps.runtime.agentAlive(this.computer)) this.announceEnd()
  }

  /** For a callback of the kernel's, where nobody catches: what cannot be looked at is looked at in a turn of its own. */
  private seemsAlive(): boolean {
    try {
      return this.deps.runtime.agentAlive(this.computer)
    } catch {
      return false
    }
  }

  private announceEnd(): void {
    for (const resolve of this.ended.splice(0)) resolve()
  }

  private async noticeEnd(): Promise<void> {
    const row = this.record.row()
    const inRam = row?.phase === 'running' || row?.phase === 'frozen'
    if (row && inRam && !this.deps.runtime.agentAlive(this.computer)) await this.end(row)
  }
}

/** criu, a system call or the database said so. */
const isNoSpace = (thrown: unknown): boolean =>
  thrown instanceof CriuError ? thrown.noSpace : ['ENOSPC', 'EDQUOT', 'SQLITE_FULL'].includes(errnoCode(thrown) ?? '')

const noSpace = (message: string, cause: unknown): OrbError =>
  new OrbError('disk_full', `no space is left for the checkpoint (${message}); the agent runs on`, {}, { cause })
