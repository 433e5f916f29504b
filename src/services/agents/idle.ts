import { log } from '../../log.ts'
import type { Traffic } from '../../runtime/idle-signs.ts'
import type { Runtime } from '../../runtime/runtime.ts'
import type { AgentRow, ComputerRow } from '../../store/types.ts'
import type { Activity } from './activity.ts'
import type { Ladder } from './ladder.ts'

/** A window has this many looks at the agent, so that one that naps now and then is caught napping. */
const LOOKS_PER_WINDOW = 8
/** Bounds of the time between two looks. A sleep is late by two of them at most. */
const MIN_PERIOD_MS = 250
const MAX_PERIOD_MS = 5000
/** A look takes some 0.1 ms of orb's only thread: others have their turn after this many. */
const LOOKS_AT_ONCE = 16
/**
 * Most bytes of a TCP packet without data: 14 of Ethernet, 20 of IP, 32 of TCP with its time stamps. Keepalive, with which
 * kernels ask each other whether an unused connection is still there, is made of these and is nothing that the agent does.
 */
const EMPTY_PACKET_BYTES = 66

export const periodOf = (windowMs: number): number =>
  Math.min(MAX_PERIOD_MS, Math.max(MIN_PERIOD_MS, windowMs / LOOKS_PER_WINDOW))

/** An agent, as its idle window sees it. What comes later costs more, and is asked only if all before says idle. */
export interface IdleAgent {
  /** Changes with every start, freeze, sleep and wake. */
  generation(): number
  /** Something from outside is open: a public request or WebSocket, an LLM call, a lease. */
  inUse(): boolean
  /** When something of that last began or ended, by performance.now(). */
  touchedAt(): number
  /** CPU time of its tree so far, in microseconds. */
  cpuUs(): number
  traffic(last: Traffic | null): Traffic
  /** A thread of its tree is in a timed sleep. */
  hasTimedSleep(): boolean
}

interface Look {
  at: number
  generation: number
  cpuUs: number
  traffic: Traffic
  /** Null: not looked for. */
  timedSleep: boolean | null
}

/** Tells when an agent has been idle throughout its window (Orb Cloud contract §12.1), from looks at it now and then. */
export class IdleWindow {
  private last: Look | null = null
  private since = 0
  readonly periodMs: number

  /** @param cpuPercent of one core: below that it is idle */
  constructor(
    private readonly windowMs: number,
    private readonly cpuPercent: number,
    private readonly agent: IdleAgent,
  ) {
    this.periodMs = periodOf(windowMs)
  }

  restart(): void {
    this.last = null
  }

  /** Takes a look. Returns whether the window is over. @param now as performance.now() */
  look(now: number): boolean {
    const { agent, last } = this
    if (agent.inUse()) {
      this.restart()
      return false
    }
    const look: Look = {
      at: now,
      generation: agent.generation(),
      cpuUs: agent.cpuUs(),
      traffic: agent.traffic(last?.traffic ?? null),
      timedSleep: null,
    }
    this.last = look
    if (last && this.isQuiet(last, look)) return now - this.since >= this.windowMs
    this.since = now
    return false
  }

  private isQuiet(before: Look, look: Look): boolean {
    if (look.generation !== before.generation || this.agent.touchedAt() >= before.at) return false
    // After a very short time one wakeup of a thread would be a large share.
    const elapsedUs = Math.max(look.at - before.at, this.periodMs) * 1000
    const usedUs = look.cpuUs - before.cpuUs
    if (usedUs >= (elapsedUs * this.cpuPercent) / 100) return false
    if (hasData(before.traffic, look.traffic)) return false
    // Where no thread has run, each still is where it was.
    const known = usedUs === 0 ? before.timedSleep : null
    look.timedSleep = known ?? this.agent.hasTimedSleep()
    return !look.timedSleep
  }
}

function hasData(before: Traffic, after: Traffic): boolean {
  const packets = after.packets - before.packets
  const bytes = after.bytes - before.bytes
  return packets < 0 || bytes < 0 || bytes > packets * EMPTY_PACKET_BYTES
}

/** What of a Life is needed. */
export interface IdleLife {
  computer: ComputerRow
  running: boolean
  row(): AgentRow | null
  activity: Pick<Activity, 'inUse' | 'lastAt'>
  ladder: Pick<Ladder, 'outstanding'>
  deleted: AbortSignal
  checkpoint(reason: 'idle', still: () => boolean): Promise<unknown>
}

export interface IdleDeps {
  runtime: Pick<Runtime, 'agentCpuUs' | 'traffic' | 'agentInTimedSleep'>
  lives(): Iterable<IdleLife>
  /** How long the agent of a computer must be idle, in ms; null: it is not put to sleep for that. */
  windowMs(computer: ComputerRow): number | null
  cpuPercent: number
  /** Window of most agents, in ms: how often agents are looked for that have started or woken. */
  usualWindowMs: number
}

interface Watch {
  /** That the window was made for: a start brings another configuration. */
  startedAt: number | null
  window: IdleWindow | null
  /** When to look next, by performance.now(). */
  dueAt: number
  fallingAsleep: boolean
}

/** Puts agents to sleep that do nothing, by one timer for all. Returns what ends it. */
export function startIdleSleep(deps: IdleDeps): () => void {
  const watches = new WeakMap<IdleLife, Watch>()
  let stopped = false
  let timer: Timer | null = null
  let looks = 0

  const watchOf = (life: IdleLife, startedAt: number | null): Watch => {
    const known = watches.get(life)
    if (known?.startedAt === startedAt) return known
    const windowMs = deps.windowMs(life.computer)
    const window = windowMs === null ? null : new IdleWindow(windowMs, deps.cpuPercent, agentOf(deps.runtime, life))
    const watch = { startedAt, window, dueAt: 0, fallingAsleep: false }
    watches.set(life, watch)
    return watch
  }

  /** Looks at an agent if it is time to. Returns when to come again, in ms; infinite for one that is not to be looked at. */
  const attend = (life: IdleLife): number => {
    const row = life.row()
    if (!row || !life.running) return Number.POSITIVE_INFINITY
    const watch = watchOf(life, row.startedAt)
    const { window } = watch
    if (!window || watch.fallingAsleep) return Number.POSITIVE_INFINITY
    const now = performance.now()
    if (now >= watch.dueAt) {
      watch.dueAt = now + window.periodMs
      looks++
      if (window.look(now)) void putToSleep(life, watch, window)
    }
    return window.periodMs
  }

  const round = async (): Promise<void> => {
    let nextMs = periodOf(deps.usualWindowMs)
    for (const life of deps.lives()) {
      if (stopped) return
      try {
        nextMs = Math.min(nextMs, attend(life))
      } catch (error) {
        log('error', 'agent cannot be looked at for idleness', { computer: life.computer.shortId, error })
      }
      if (looks >= LOOKS_AT_ONCE) {
        looks = 0
        await Bun.sleep(0)
      }
    }
    if (!stopped) timer = setTimeout(round, nextMs)
  }

  const putToSleep = async (life: IdleLife, watch: Watch, window: IdleWindow): Promise<void> => {
    watch.fallingAsleep = true
    try {
      await life.checkpoint('idle', () => !stopped && window.look(performance.now()))
    } catch (error) {
      // It goes on until its next idle window.
      if (!life.deleted.aborted) log('warn', 'idle agent stays awake', { computer: life.computer.shortId, error })
    }
    window.restart()
    watch.fallingAsleep = false
  }

  void round()

  return () => {
    stopped = true
    if (timer) clearTimeout(timer)
  }
}

const agentOf = (runtime: IdleDeps['runtime'], life: IdleLife): IdleAgent => ({
  generation: () => life.row()?.generation ?? 0,
  inUse: () => life.activity.inUse || life.ladder.outstanding > 0,
  touchedAt: () => life.activity.lastAt,
  cpuUs: () => runtime.agentCpuUs(life.computer),
  traffic: (last) => runtime.traffic(life.computer, last),
  hasTimedSleep: () => runtime.agentInTimedSleep(life.computer),
})
