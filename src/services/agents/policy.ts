/**
 * Where an agent that waits for its LLM sleeps best: in memory, in swap or on disk. A decision without an effect.
 *
 * Without swap this is the plain ladder of the Orb Cloud contract §11.3. With swap an agent goes there instead of to disk
 * when its wait is expected to end before a dump and a restore have repaid themselves, when it cannot be dumped, and
 * before its time when the host is short of memory.
 */

export type Sleep = 'stay' | 'reclaim' | 'checkpoint'

export interface Choice {
  sleep: Sleep
  /** After this the question is to be asked again, if the agent still waits; null: not before something happens. */
  lookAgainMs: number | null
}

export interface Situation {
  /** Where the ladder's clock stands, and where it says that the agent goes to disk. */
  elapsedMs: number
  checkpointAfterMs: number
  /** How long each open call has waited for its first byte by now. */
  waits: readonly number[]
  /** How long the agent's last answers took to their first byte, those that came at once left out. */
  history: readonly number[]
  /** The agent's memory, and how much of that is not in swap. */
  bytes: number
  residentBytes: number
  /** What the last dump and restore took; null before the first one. */
  dumpMs: number | null
  restoreMs: number | null
  /** Whether the host can checkpoint at all. */
  canCheckpoint: boolean
  /** How long no dump is to be tried, after ones that failed; 0: now. */
  dumpBackoffMs: number
  /** How long it has been in swap; null: it is not. */
  reclaimedMs: number | null
  swap: { totalBytes: number; freeBytes: number }
  memory: {
    /** Share of memory that can be had without swapping, 0 to 1. */
    availableShare: number
    /** Share of the last seconds in which something waited for memory, 0 to 100; null where that is not known. */
    stalledPercent: number | null
  }
}

/** A dump and a restore cost CPU and disk that other agents need: they are worth it from a wait of this many times on. */
export const REPAY_FACTOR = 20
/** Fewer answers that took longer than this one does already say nothing about when it will come. */
export const MIN_KNOWN_WAITS = 3
/** Whatever is expected, an agent that has been in swap for this long goes to disk. */
export const LONGEST_RECLAIM_MS = 60_000
/** The earliest that it makes sense to decide anew. */
export const SOONEST_LOOK_MS = 1000
/** Below this share of free swap no more agents go there, and those that are there go to disk. */
export const LOW_SWAP_SHARE = 0.1
/** The host is short of memory: so little of it is available, or tasks wait for it this much of the time. */
export const LOW_MEMORY_SHARE = 0.1
export const STALLED_PERCENT = 10

/** Measured on two cores: 80 to 125 ms for 107 MB, of which some 30 ms for any size; restore by need, whatever the size. */
const DUMP_BASE_MS = 30
const DUMP_BYTES_PER_MS = 1.2e6
const RESTORE_MS = 45
/** Pages that are in swap are read before they can be dumped: 190 ms for 113 MB. */
const SWAP_IN_BYTES_PER_MS = 0.5e6

export function chooseSleep(now: Situation): Choice {
  const inSwap = now.reclaimedMs !== null
  if (now.elapsedMs < now.checkpointAfterMs) {
    const untilTime = now.checkpointAfterMs - now.elapsedMs
    return { sleep: !inSwap && hasRoom(now) && isShort(now) ? 'reclaim' : 'stay', lookAgainMs: untilTime }
  }
  const keep: Sleep = !inSwap && hasRoom(now) ? 'reclaim' : 'stay'
  if (!now.canCheckpoint) return { sleep: keep, lookAgainMs: null }
  if (now.dumpBackoffMs > 0) return { sleep: keep, lookAgainMs: Math.max(SOONEST_LOOK_MS, now.dumpBackoffMs) }
  if (now.reclaimedMs === null && !hasRoom(now)) return { sleep: 'checkpoint', lookAgainMs: null }
  if (isSwapLow(now)) return { sleep: 'checkpoint', lookAgainMs: null }
  const left = LONGEST_RECLAIM_MS - (now.reclaimedMs ?? 0)
  // To dump what is in swap takes memory: that waits until there is some.
  if (inSwap && isShort(now)) return { sleep: 'stay', lookAgainMs: SOONEST_LOOK_MS }
  const remaining = expectedRemainingMs(now)
  if (left <= 0 || remaining === null || remaining > repayingWaitMs(now)) {
    return { sleep: 'checkpoint', lookAgainMs: null }
  }
  return { sleep: keep, lookAgainMs: Math.max(SOONEST_LOOK_MS, Math.min(left, 2 * remaining)) }
}

/** The first open call to be answered ends the sleep: half of the answers that took as long as it has waited came sooner than this. Null: not known. */
export function expectedRemainingMs({ waits, history }: Pick<Situation, 'waits' | 'history'>): number | null {
  const expected = waits.flatMap((waited) => {
    const rest = history.filter((took) => took > waited).map((took) => took - waited)
    return rest.length < MIN_KNOWN_WAITS ? [] : [median(rest)]
  })
  return expected.length === 0 ? null : Math.min(...expected)
}

/** The shortest wait that is worth a dump and a restore. */
export function repayingWaitMs(now: Situation): number {
  const dump = now.dumpMs ?? DUMP_BASE_MS + now.bytes / DUMP_BYTES_PER_MS
  const swapIn = now.reclaimedMs === null ? 0 : now.bytes / SWAP_IN_BYTES_PER_MS
  return REPAY_FACTOR * (dump + swapIn + (now.restoreMs ?? RESTORE_MS))
}

const isSwapLow = ({ swap }: Situation): boolean => swap.freeBytes < LOW_SWAP_SHARE * swap.totalBytes

const hasRoom = (now: Situation): boolean =>
  now.swap.totalBytes > 0 && now.swap.freeBytes > now.residentBytes && !isSwapLow(now)

const isShort = ({ memory }: Situation): boolean =>
  memory.availableShare < LOW_MEMORY_SHARE || (memory.stalledPercent ?? 0) > STALLED_PERCENT

function median(values: number[]): number {
  const sorted = values.toSorted((a, b) => a - b)
  return sorted[Math.floor((sorted.length - 1) / 2)] ?? 0
}
