/**
 * Many streaming calls at once: an agent in a computer reads them all through orb's LLM proxy and checks every byte. The
 * memory is orb's own (RssAnon), before, at its highest, and after.
 */
import { z } from 'zod'
import { localAddress, startAgent } from './agent-orb.ts'
import { type Benchmark, type BenchmarkContext, figuresOf, type Result } from './figures.ts'
import { LlmUpstream } from './llm-upstream.ts'
import { cpuSeconds, memoryKb } from './process-use.ts'
import { streamChunk } from './stream-text.js'

const STREAMS = 1000
const STREAM_S = 10
const EVERY_MS = 200
const CHUNKS = (STREAM_S * 1000) / EVERY_MS
/** Streams begin one after another within this time, so that their chunks are spread. */
const START_OVER_MS = 1000
const KB_PER_STREAM = 100
const SAMPLE_MS = 100
/** Memory is looked at again this long after the last stream. */
const AFTER_MS = 3_000
const REPORT_TIMEOUT_MS = 120_000

export const benchmark: Benchmark = {
  title: `${STREAMS} SSE streams of ${STREAM_S} s at once through the LLM proxy, a chunk every ${EVERY_MS} ms`,
  run,
}

const Warm = z.object({ progress: z.string() })
const Done = z.object({ whole: z.int(), faults: z.array(z.string()), late: z.array(z.number()) })

async function run(context: BenchmarkContext): Promise<Result> {
  const { rounds: streams = STREAMS, onCleanUp, progress } = context
  const upstream = new LlmUpstream(localAddress(context), { chunks: CHUNKS, everyMs: EVERY_MS, chunk: streamChunk })
  onCleanUp(() => upstream.stop())
  const { orb } = await startAgent(context, {
    upstream: upstream.authority,
    files: ['streams-agent.js', 'proxy-client.js', 'stream-text.js'],
    plan: { upstream: upstream.url, streams, chunks: CHUNKS, everyMs: EVERY_MS, startOverMs: START_OVER_MS },
  })
  Warm.parse(await upstream.report(REPORT_TIMEOUT_MS))
  const use = new Use(orb.pid)
  onCleanUp(() => use.stop())
  const { whole, faults, late } = Done.parse(await upstream.report(REPORT_TIMEOUT_MS))
  use.stop()
  for (const fault of faults) progress(fault)
  await Bun.sleep(AFTER_MS)
  const { before, peak, cpuPercent } = use
  const once = { rounds: 1 } as const
  return {
    figures: [
      { ...once, name: 'streams without an error', unit: '', measured: whole, target: { atLeast: streams } },
      {
        ...once,
        name: "orb's memory per stream",
        unit: 'KB',
        measured: (peak - before) / streams,
        target: { atMost: KB_PER_STREAM },
      },
      { ...once, name: "orb's memory before", unit: 'MB', measured: before / 1024 },
      { ...once, name: "orb's memory at its highest", unit: 'MB', measured: peak / 1024 },
      { ...once, name: `orb's memory ${AFTER_MS / 1000} s after`, unit: 'MB', measured: memoryKb(orb.pid) / 1024 },
      { ...once, name: "orb's share of one core", unit: '%', measured: cpuPercent },
      ...figuresOf('how late chunks came', late, { unit: 'ms' }),
    ],
    details: { streams, chunksPerStream: CHUNKS, memory: 'RssAnon' },
  }
}

/** Of a process, from its making until `stop`. */
class Use {
  readonly before: number
  peak: number
  cpuPercent = 0
  private readonly beganAt = performance.now()
  private readonly beganCpuS: number
  private readonly timer: Timer
  private stopped = false

  constructor(private readonly pid: number) {
    this.before = memoryKb(pid)
    this.peak = this.before
    this.beganCpuS = cpuSeconds(pid)
    this.timer = setInterval(() => this.sample(), SAMPLE_MS)
  }

  stop(): void {
    if (this.stopped) return
    this.stopped = true
    clearInterval(this.timer)
    this.sample()
    const seconds = (performance.now() - this.beganAt) / 1000
    this.cpuPercent = (100 * (cpuSeconds(this.pid) - this.beganCpuS)) / seconds
  }

  private sample(): void {
    this.peak = Math.max(this.peak, memoryKb(this.pid))
  }
}
