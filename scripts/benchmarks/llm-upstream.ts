/** A fast LLM: answers at once, or with chunks at even distances, and takes the agents' reports. */
import { z } from 'zod'

const Failure = z.object({ error: z.string() })
const Question = z.object({ stream: z.boolean(), id: z.int().optional() })

export interface Streaming {
  chunks: number
  everyMs: number
  /** Chunk `index` of the answer to question `id`. */
  chunk(id: number, index: number): string
}

const ANSWER = JSON.stringify({
  id: 'chatcmpl-bench',
  object: 'chat.completion',
  created: 0,
  model: 'bench',
  choices: [
    { index: 0, message: { role: 'assistant', content: 'Not long at all. '.repeat(40) }, finish_reason: 'stop' },
  ],
  usage: { prompt_tokens: 200, completion_tokens: 160, total_tokens: 360 },
})
const JSON_HEADERS = { 'content-type': 'application/json' }
const SSE_HEADERS = { 'content-type': 'text/event-stream', 'cache-control': 'no-cache' }

export class LlmUpstream {
  readonly url: string
  readonly authority: string
  private readonly server
  private readonly reports: unknown[] = []
  private wanted: (() => void) | null = null

  constructor(hostname: string, streaming: Streaming) {
    this.server = Bun.serve({
      hostname,
      port: 0,
      idleTimeout: 0,
      fetch: async (request) => {
        const body = await request.json()
        if (request.url.endsWith('/report')) {
          this.reports.push(body)
          this.wanted?.()
          return new Response('{}', { headers: JSON_HEADERS })
        }
        const { stream, id = 0 } = Question.parse(body)
        return stream
          ? new Response(chunked(id, streaming), { headers: SSE_HEADERS })
          : new Response(ANSWER, { headers: JSON_HEADERS })
      },
    })
    this.authority = `${hostname}:${this.server.port}`
    this.url = `http://${this.authority}`
  }

  /** The next thing that an agent reports. @throws Error when that is an error, or none comes in time */
  async report(timeoutMs: number): Promise<unknown> {
    const deadline = performance.now() + timeoutMs
    while (this.reports.length === 0) {
      const left = deadline - performance.now()
      if (left <= 0) throw new Error(`the agent reported nothing within ${timeoutMs / 1000} s`)
      await Promise.race([new Promise<void>((resolve) => (this.wanted = resolve)), Bun.sleep(left)])
    }
    const report = this.reports.shift()
    const failure = Failure.safeParse(report)
    if (failure.success) throw new Error(failure.data.error)
    return report
  }

  stop(): Promise<void> {
    return this.server.stop(true)
  }
}

function chunked(id: number, { chunks, everyMs, chunk }: Streaming): ReadableStream<Uint8Array> {
  const began = performance.now()
  let index = 0
  return new ReadableStream({
    async pull(controller) {
      if (index > 0) await Bun.sleep(Math.max(0, began + index * everyMs - performance.now()))
      controller.enqueue(Buffer.from(chunk(id, index++)))
      if (index === chunks) controller.close()
    },
  })
}
