/** What a benchmark is given and what it gives back. */

export interface Benchmark {
  /** What is measured and how, in one line. */
  title: string
  run(context: BenchmarkContext): Promise<Result>
}

export interface BenchmarkContext {
  /** An empty directory, removed afterwards. An orb in its subdirectory `orb` is taken away before. */
  dir: string
  /** `--rounds N` where it was given. */
  rounds: number | undefined
  /** To be run at the end, on failure too, the last one first. */
  onCleanUp(work: () => unknown): void
  /** One line on stderr. */
  progress(line: string): void
}

export interface Result {
  figures: Figure[]
  /** Worth knowing with the figures: versions, sizes. */
  details?: Record<string, string | number>
}

/** One row of the table. */
export interface Figure {
  /** Unique within its benchmark, such as `wake, p50`. */
  name: string
  unit: Unit
  measured: number
  /** How many samples `measured` is made of. */
  rounds: number
  /** Where the samples are of the same unit. */
  spread?: Spread
  target?: Target
  peer?: Peer
}

export type Unit = 'ms' | 's' | 'KB' | 'MB' | 'per s' | 'times' | '%' | ''

export type Target = { atMost: number } | { atLeast: number }

/** Another program that did the same in the same run. */
export interface Peer {
  name: string
  /** In the unit of the figure. */
  measured: number
  spread?: Spread
  /** How many times as much as orb's the peer's figure has to be, at least. */
  timesAtLeast?: number
}

export interface Spread {
  p50: number
  p99: number
  min: number
  max: number
}

export interface SampleOptions {
  unit: Unit
  p50?: Target
  p99?: Target
  /** Compared by p50, in the row of p50. */
  peer?: { name: string; samples: number[]; timesAtLeast?: number }
}

/** Two rows, `<name>, p50` and `<name>, p99`, of samples that were measured one by one. */
export function figuresOf(name: string, samples: number[], { unit, p50, p99, peer }: SampleOptions): Figure[] {
  const spread = spreadOf(samples)
  const common = { unit, rounds: samples.length, spread }
  const theirs = peer === undefined ? undefined : spreadOf(peer.samples)
  return [
    {
      ...common,
      name: `${name}, p50`,
      measured: spread.p50,
      target: p50,
      peer: peer &&
        theirs && { name: peer.name, measured: theirs.p50, spread: theirs, timesAtLeast: peer.timesAtLeast },
    },
    { ...common, name: `${name}, p99`, measured: spread.p99, target: p99 },
  ]
}

/** By nearest rank. @throws Error where there are none */
export function spreadOf(samples: number[]): Spread {
  if (samples.length === 0) throw new Error('nothing was measured')
  const sorted = samples.toSorted((a, b) => a - b)
  const at = (share: number): number => sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? 0
  return { p50: at(0.5), p99: at(0.99), min: at(0), max: at(1) }
}

/** How many times as much as orb's the peer's figure is; undefined also where orb's is nothing at all. */
export const ratioOf = ({ measured, peer }: Figure): number | undefined =>
  peer === undefined || measured <= 0 ? undefined : peer.measured / measured

/** Undefined: there is nothing that it has to reach. */
export function isMet(figure: Figure): boolean | undefined {
  const { measured, target, peer } = figure
  const verdicts: boolean[] = []
  if (target !== undefined) verdicts.push('atMost' in target ? measured <= target.atMost : measured >= target.atLeast)
  if (peer?.timesAtLeast !== undefined)
    verdicts.push((ratioOf(figure) ?? Number.POSITIVE_INFINITY) >= peer.timesAtLeast)
  return verdicts.length === 0 ? undefined : verdicts.every(Boolean)
}
