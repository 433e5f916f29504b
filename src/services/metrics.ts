/** Upper bounds of the histograms' buckets, in seconds: from a quick answer to an hour's build. */
const BUCKETS_S = [0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600]

type Labels = Record<string, string | number>
type Kind = 'counter' | 'histogram' | 'gauge'

interface Histogram {
  /** Observations per bucket, not yet summed up. */
  counts: number[]
  total: number
  sum: number
}

/** Numbers for Prometheus (text format 0.0.4). Labels never name a tenant or a computer: their number must stay small. */
export interface Metrics {
  /** Adds one to a counter. */
  inc(name: string, labels?: Labels): void
  /** Adds a duration in seconds to a histogram. */
  observe(name: string, seconds: number, labels?: Labels): void
  /** `read` is called at each scrape. */
  gauge(name: string, read: () => { labels?: Labels; value: number }[]): void
  render(): string
}

/** A registry that knows these metrics: any other name throws. `help` says what each counts; its kind follows from the call. */
export function createMetrics(help: Record<string, { kind: Kind; text: string }>): Metrics {
  const counters = new Map<string, Map<string, number>>()
  const histograms = new Map<string, Map<string, Histogram>>()
  const gauges = new Map<string, () => { labels?: Labels; value: number }[]>()

  const expectKind = (name: string, kind: Kind): void => {
    if (help[name]?.kind !== kind) throw new Error(`${name} is no ${kind} of this registry`)
  }

  function linesOf(name: string): string[] {
    const read = gauges.get(name)
    if (read) return read().map(({ labels, value }) => sample(name, labelText(labels), value))
    const counted = [...(counters.get(name) ?? [])].map(([labels, value]) => sample(name, labels, value))
    const observed = [...(histograms.get(name) ?? [])].flatMap(([labels, value]) => histogramLines(name, labels, value))
    return [...counted, ...observed]
  }

  return {
    inc(name, labels) {
      expectKind(name, 'counter')
      const series = seriesOf(counters, name)
      const key = labelText(labels)
      series.set(key, (series.get(key) ?? 0) + 1)
    },
    observe(name, seconds, labels) {
      expectKind(name, 'histogram')
      const series = seriesOf(histograms, name)
      const key = labelText(labels)
      const histogram = series.get(key) ?? { counts: BUCKETS_S.map(() => 0), total: 0, sum: 0 }
      series.set(key, histogram)
      const bucket = BUCKETS_S.findIndex((bound) => seconds <= bound)
      if (bucket >= 0) histogram.counts[bucket] = (histogram.counts[bucket] ?? 0) + 1
      histogram.total += 1
      histogram.sum += seconds
    },
    gauge(name, read) {
      expectKind(name, 'gauge')
      gauges.set(name, read)
    },
    render() {
      const lines = Object.entries(help).flatMap(([name, { kind, text }]) => {
        return [`# HELP ${name} ${text}`, `# TYPE ${name} ${kind}`, ...linesOf(name)]
      })
      return `${lines.join('\n')}\n`
    },
  }
}

function seriesOf<T>(all: Map<string, Map<string, T>>, name: string): Map<string, T> {
  const series = all.get(name) ?? new Map<string, T>()
  all.set(name, series)
  return series
}

function histogramLines(name: string, labels: string, { counts, total, sum }: Histogram): string[] {
  let below = 0
  const withBound = (bound: string) => (labels === '' ? `le="${bound}"` : `${labels},le="${bound}"`)
  const buckets = BUCKETS_S.map((bound, index) => {
    below += counts[index] ?? 0
    return sample(`${name}_bucket`, withBound(String(bound)), below)
  })
  return [
    ...buckets,
    sample(`${name}_bucket`, withBound('+Inf'), total),
    sample(`${name}_sum`, labels, sum),
    sample(`${name}_count`, labels, total),
  ]
}

const sample = (name: string, labels: string, value: number): string =>
  `${name}${labels === '' ? '' : `{${labels}}`} ${value}`

const labelText = (labels: Labels = {}): string =>
  Object.entries(labels)
    .map(([name, value]) => `${name}="${escapeLabel(String(value))}"`)
    .join(',')

const escapeLabel = (value: string): string => value.replace(/\\/g, '\\\\').replace(/"/g, '\\"').replace(/\n/g, '\\n')
