import { log } from '../../log.ts'
import type { CallOutcome, LlmCall } from '../../proxy/types.ts'
import type { Choice } from './policy.ts'

/** Share of one core is measured over this long before a freeze, at most. */
const CPU_WINDOW_MS = 1000
/** A ladder that could not act looks again after this long. */
const RETRY_MS = 1000
/** Timers may fire this much before their time: never so early that a stop is taken for the one before it. */
const TIMER_SLACK_MS = 1

export interface LadderOptions {
  freezeAfterMs: number
  checkpointAfterMs: number
  busyCpuPercent: number
}

/** The agent, as the ladder sees it. */
export interface LadderAgent {
  /** False while it must not sleep: `sleep = "never"`, a build, not in RAM. */
  maySleep(): boolean
  /** CPU time of its tree so far, in microseconds. */
  cpuUs(): number
  /** Resolves when it is frozen; rejects when it could not be. `still` is asked right before. */
  freeze(still: () => boolean): Promise<void>
  /** Resolves when it is frozen and its memory in swap; rejects when it could not be. */
  reclaim(still: () => boolean): Promise<void>
  /** Resolves when it is on disk; rejects when the dump failed. */
  checkpoint(still: () => boolean): Promise<void>
  /** A wake is near: what can be made ready for it without waking it. */
  prepareWake(): void
  /** How it is to sleep now. @param waits how long each open call has waited, in ms */
  choose(elapsedMs: number, waits: number[]): Choice
  /** An answer began after this many ms, of which some were enough for a freeze. */
  answered(waitedMs: number): void
  /** Undefined: it runs and no transition is near. */
  wake(): Promise<void> | undefined
}

interface Call {
  state: 'sending' | 'waiting' | 'answered'
  /** When its request was whole. */
  waitsSince: number
  slept: boolean
}

/**
 * The freeze ladder (Orb Cloud contract §11.3): while every open call of the agent waits for its answer, the agent is
 * frozen after `freezeAfterMs`, and after `checkpointAfterMs` goes to swap or to disk, as it chooses itself. The clock
 * starts anew with each call, each delivered answer and each wake.
 */
export class Ladder {
  private readonly calls = new Set<Call>()
  private since = performance.now()
  private timer: Timer | null = null
  private cpu = { at: 0, us: 0 }
  /** After a failed freeze there is none until the clock starts anew. */
  private givenUp = false

  constructor(
    private readonly options: LadderOptions,
    private readonly agent: LadderAgent,
  ) {}

  /** Number of calls without a complete answer. */
  get outstanding(): number {
    return this.calls.size
  }

  /** The clock starts anew: the agent was woken, or somebody asked something of it. */
  touch(): void {
    this.since = performance.now()
    this.givenUp = false
    this.plan()
  }

  /** The agent went to sleep, whoever sent it there. */
  fellAsleep(): void {
    for (const call of this.calls) call.slept = true
  }

  stop(): void {
    if (this.timer) clearTimeout(this.timer)
    this.timer = null
  }

  /** A new call of the agent's own tree. */
  begin(): LlmCall {
    const call: Call = { state: 'sending', waitsSince: 0, slept: false }
    this.calls.add(call)
    this.touch()
    return {
      waiting: () => {
        call.state = 'waiting'
        call.waitsSince = performance.now()
        this.plan()
      },
      answering: () => this.agent.prepareWake(),
      wake: () => {
        const waited = performance.now() - call.waitsSince
        if (call.state === 'waiting' && waited >= this.options.freezeAfterMs) this.agent.answered(waited)
        call.state = 'answered'
        return this.agent.wake()
      },
      writable: () => this.agent.wake(),
      slept: () => call.slept,
      end: (outcome: CallOutcome) => {
        this.calls.delete(call)
        if (outcome === 'delivered' || outcome === 'replayed') this.touch()
        else this.plan()
      },
    }
  }

  private get waiting(): boolean {
    return this.calls.size > 0 && [...this.calls].every((call) => call.state === 'waiting')
  }

  private plan(delayMs?: number): void {
    this.stop()
    if (!this.waiting) return
    const elapsed = performance.now() - this.since
    const { freezeAfterMs, checkpointAfterMs } = this.options
    // One stop on the way, so that the CPU share before the freeze is known.
    const sampleAt = Math.max(0, freezeAfterMs - CPU_WINDOW_MS)
    const next = [sampleAt, freezeAfterMs, checkpointAfterMs].find((at) => at > elapsed) ?? checkpointAfterMs
    if (elapsed >= sampleAt && this.cpu.at < this.since) this.sampleCpu()
    this.timer = setTimeout(() => this.tryToAct(), delayMs ?? Math.max(0, next - elapsed) + TIMER_SLACK_MS)
  }

  private tryToAct(): void {
    this.act().catch((error) => {
      log('error', 'the freeze ladder could not act', { error })
      this.plan(RETRY_MS)
    })
  }

  private async act(): Promise<void> {
    if (!this.waiting || !this.agent.maySleep()) return this.plan(RETRY_MS)
    const elapsed = performance.now() - this.since
    const begun = this.since
    const still = () => this.waiting && this.since === begun && this.agent.maySleep()
    if (elapsed < this.options.freezeAfterMs) {
      this.sampleCpu()
      return this.plan()
    }
    if (this.givenUp) return
    if (this.isBusy()) return this.plan(RETRY_MS)
    const waits = [...this.calls].map((call) => performance.now() - call.waitsSince)
    const { sleep, lookAgainMs } = this.agent.choose(elapsed, waits)
    try {
      if (sleep === 'stay') await this.agent.freeze(still)
      else await this.agent[sleep](still)
    } catch {
      // Why is in the agent's log and state. After a failed dump there is another choice.
      if (this.since !== begun) return
      this.givenUp = sleep !== 'checkpoint'
      return this.plan(RETRY_MS)
    }
    if (this.since === begun && lookAgainMs !== null) this.plan(lookAgainMs + TIMER_SLACK_MS)
  }

  private sampleCpu(): void {
    const us = this.cpuUs()
    if (us !== null) this.cpu = { at: performance.now(), us }
  }

  /** Null: it cannot be told now. */
  private cpuUs(): number | null {
    try {
      return this.agent.cpuUs()
    } catch (error) {
      log('warn', 'the CPU time of an agent cannot be read', { error })
      return null
    }
  }

  private isBusy(): boolean {
    const now = performance.now()
    const us = this.cpuUs()
    if (us === null) return true
    const elapsedUs = Math.max(1, now - this.cpu.at) * 1000
    const percent = ((us - this.cpu.us) / elapsedUs) * 100
    this.cpu = { at: now, us }
    return percent > this.options.busyCpuPercent
  }
}
