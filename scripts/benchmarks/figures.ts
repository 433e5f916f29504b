/** What a benchmark is given and what it gives back. */

export interface Figures {
  count: number
  p50_ms: number
  p99_ms: number
  min_ms: number
  max_ms: number
}

export interface Result {
  title: string
  /** By contender: orb first, then the peer that it has to beat, then others for comparison. */
  rows: Record<string, Figures>
  /** How many times faster than its peer orb has to be by p50, at least. */
  target: number
  details: Record<string, string | number>
}

export interface BenchmarkContext {
  /** An empty directory, removed afterwards. */
  dir: string
  /** What follows the benchmark's name on the command line. */
  argument: string | undefined
  /** To be run at the end, on failure too, the last one first. */
  onCleanUp(work: () => unknown): void
  progress(line: string): void
}

export type Benchmark = (context: BenchmarkContext) => Promise<Result>

export function figuresOf(times: number[]): Figures {
  const sorted = times.toSorted((a, b) => a - b)
  /** Nearest rank. */
  const at = (share: number): number => rounded(sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? 0)
  return { count: times.length, p50_ms: at(0.5), p99_ms: at(0.99), min_ms: at(0), max_ms: at(1) }
}

/** How many times faster orb is than each of its peers, by p50, in their order. */
export function ratios({ rows }: Result): { peer: string; ratio: number }[] {
  const [own, ...peers] = Object.entries(rows)
  return peers.map(([peer, { p50_ms }]) => ({ peer, ratio: Number((p50_ms / (own?.[1].p50_ms || 1)).toFixed(2)) }))
}

const rounded = (ms: number): number => Number(ms.toFixed(1))
