/**
 * What orb's LLM proxy adds to a call: an agent in a computer asks the same upstream directly, through orb, and through
 * another gateway, in turn, on one kept connection each. What a way adds is its percentile less that of the direct way.
 */
import { z } from 'zod'
import { localAddress, startAgent } from './agent-orb.ts'
import { type Benchmark, type BenchmarkContext, type Figure, type Result, type Spread, spreadOf } from './figures.ts'
import { LlmUpstream } from './llm-upstream.ts'
import { portkeyHeaders, startPortkey } from './portkey.ts'

const DEFAULT_CALLS = 3000
/** Calls by each way before those that count: programs are compiled and connections open. */
const WARM_UP_CALLS = 1000
/** Short ones and many: what else happens on the machine meanwhile then meets all ways alike. */
const STREAMS = 100
const CHUNKS_PER_STREAM = 30
const CHUNK_EVERY_MS = 4
const LARGE_CALLS = 1000
const NEW_CONNECTIONS = 300
const CALL_P50_MS = 0.4
const CALL_P99_MS = 1.5
const CHUNK_MS = 1
/** "At most half of what the gateway adds". */
const TIMES_LESS = 2
const REPORT_TIMEOUT_MS = 300_000

export const benchmark: Benchmark = {
  title: "what the LLM proxy adds to an agent's call over asking the upstream directly, beside another gateway",
  run,
}

const Samples = z.array(z.number())
const Times = z.object({ call: Samples, large: Samples, chunk: Samples, first: Samples })
const Report = z.union([
  z.object({ progress: z.string() }),
  z.object({ times: z.object({ direct: Times, orb: Times, gateway: Times }) }),
])
type Kind = keyof z.output<typeof Times>

async function run(context: BenchmarkContext): Promise<Result> {
  const { rounds = DEFAULT_CALLS, onCleanUp, progress } = context
  const address = localAddress(context)
  const upstream = new LlmUpstream(address, { chunks: CHUNKS_PER_STREAM, everyMs: CHUNK_EVERY_MS, chunk })
  onCleanUp(() => upstream.stop())
  const portkey = await startPortkey(upstream.authority)
  onCleanUp(() => portkey.stop())
  await startAgent(context, {
    upstream: upstream.authority,
    files: ['proxy-agent.js', 'proxy-client.js'],
    plan: {
      upstream: upstream.url,
      gateway: `http://${address}:${portkey.port}`,
      calls: rounds,
      largeCalls: LARGE_CALLS,
      streams: STREAMS,
      warmUp: WARM_UP_CALLS,
      newConnections: NEW_CONNECTIONS,
      headers: {
        'content-type': 'application/json',
        authorization: 'Bearer not-a-key',
        ...portkeyHeaders(upstream.url),
      },
    },
  })
  for (;;) {
    const report = Report.parse(await upstream.report(REPORT_TIMEOUT_MS))
    if ('progress' in report) {
      progress(report.progress)
      continue
    }
    const added = (name: string, kind: Kind, targets: { p50?: number; p99?: number }) =>
      addedFigures(name, report.times.direct[kind], report.times.orb[kind], report.times.gateway[kind], targets)
    return {
      figures: [
        ...added('added to a call', 'call', { p50: CALL_P50_MS, p99: CALL_P99_MS }),
        ...added('added to a call of 64 KB', 'large', {}),
        ...added('added to an SSE chunk', 'chunk', { p50: CHUNK_MS, p99: CHUNK_MS }),
        ...added('added to a call on a new connection', 'first', {}),
      ],
      details: { portkey: portkey.version },
    }
  }
}

const chunk = (_id: number, index: number): string => {
  const delta = { id: 'chatcmpl-bench', object: 'chat.completion.chunk', choices: [{ delta: { content: 'word ' } }] }
  const event = `data: ${JSON.stringify({ ...delta, sent: performance.timeOrigin + performance.now() })}\n\n`
  return index === CHUNKS_PER_STREAM - 1 ? `${event}data: [DONE]\n\n` : event
}

function addedFigures(
  name: string,
  direct: number[],
  orb: number[],
  gateway: number[],
  targets: { p50?: number; p99?: number },
): Figure[] {
  const [base, own, theirs] = [direct, orb, gateway].map(spreadOf) as [Spread, Spread, Spread]
  const hasTarget = targets.p50 !== undefined || targets.p99 !== undefined
  const rows = (['p50', 'p99'] as const).map((at): Figure => {
    const limit = targets[at]
    return {
      name: `${name}, ${at}`,
      unit: 'ms',
      measured: own[at] - base[at],
      rounds: orb.length,
      spread: own,
      target: limit === undefined ? undefined : { atMost: limit },
      peer: {
        name: 'portkey',
        measured: theirs[at] - base[at],
        spread: theirs,
        timesAtLeast: hasTarget && at === 'p50' ? TIMES_LESS : undefined,
      },
    }
  })
  const plain = { unit: 'ms', rounds: direct.length, spread: base } as const
  return [
    ...rows,
    { ...plain, name: `${name}: direct, p50`, measured: base.p50 },
    { ...plain, name: `${name}: direct, p99`, measured: base.p99 },
  ]
}
