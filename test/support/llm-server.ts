/**
 * A stand-in LLM service for tests, the demo and benchmarks: Anthropic Messages and OpenAI chat completions, plain and
 * streaming, with a controllable delay. It answers as the real services do as far as their official SDKs look.
 *
 *     const llm = startLlmServer({ firstByteMs: 8_000 })
 *     // base URL: http://127.0.0.1:${llm.port}
 */
export interface LlmServerOptions {
  hostname?: string
  /** Default 0: any free one. */
  port?: number
  /** Before the answer's first byte, or what gives that for the nth call, from 1. Default 0. A request header `x-delay-ms` overrides it. */
  firstByteMs?: number | ((call: number) => number)
  /** Between two words of a streamed answer. Default 0. A request header `x-gap-ms` overrides it. */
  gapMs?: number
  /** Holds an answer back until this resolves, beside `firstByteMs`. */
  answerWhen?: (request: SeenRequest) => Promise<void> | undefined
  /** What it says to the last user message. Default: `echo: <message>`. */
  reply?: (prompt: string) => string
}

export interface SeenRequest {
  method: string
  path: string
  headers: Headers
  body: string
}

export interface LlmServer {
  port: number
  /** Every request so far, oldest first. */
  requests: SeenRequest[]
  /** Requests whose answer was cancelled by the client. */
  cancelled: number
  stop(): Promise<void>
}

interface Prompt {
  model?: string
  stream?: boolean
  messages?: { role: string; content: unknown }[]
}

export function startLlmServer(options: LlmServerOptions = {}): LlmServer {
  const { firstByteMs = 0, gapMs = 0, reply = (prompt) => `echo: ${prompt}` } = options
  const llm: LlmServer = { port: 0, requests: [], cancelled: 0, stop: () => server.stop(true) }
  const server = Bun.serve({
    hostname: options.hostname ?? '127.0.0.1',
    port: options.port ?? 0,
    idleTimeout: 0,
    maxRequestBodySize: 128 * 1024 * 1024,
    async fetch(request) {
      const { pathname } = new URL(request.url)
      const body = await request.text()
      const seen = { method: request.method, path: pathname, headers: new Headers(request.headers), body }
      llm.requests.push(seen)
      const api = pathname.endsWith('/messages') ? ANTHROPIC : pathname.endsWith('/chat/completions') ? OPENAI : null
      if (api === null) return Response.json({ error: { type: 'not_found_error', message: pathname } }, { status: 404 })
      const parsed: Prompt = JSON.parse(body)
      const text = reply(lastUserMessage(parsed))
      const model = parsed.model ?? 'stand-in'
      const id = String(llm.requests.length)
      const delay = typeof firstByteMs === 'number' ? firstByteMs : firstByteMs(Number(id))
      await Bun.sleep(numberHeader(request, 'x-delay-ms') ?? delay)
      await options.answerWhen?.(seen)
      if (request.signal.aborted) {
        llm.cancelled++
        return new Response(null, { status: 499 })
      }
      if (parsed.stream !== true) return Response.json(api.whole(id, model, text), { headers: { 'request-id': id } })
      const gap = numberHeader(request, 'x-gap-ms') ?? gapMs
      const stream = eventStream(api.events(id, model, words(text)), gap, () => llm.cancelled++)
      return new Response(stream, { headers: { 'content-type': 'text/event-stream', 'request-id': id } })
    },
  })
  llm.port = server.port ?? 0
  return llm
}

const numberHeader = (request: Request, name: string): number | undefined => {
  const value = request.headers.get(name)
  return value === null ? undefined : Number(value)
}

function lastUserMessage({ messages = [] }: Prompt): string {
  const content = messages.findLast(({ role }) => role === 'user')?.content
  return typeof content === 'string' ? content : JSON.stringify(content ?? '')
}

const words = (text: string): string[] => text.match(/\S+\s*|\s+/g) ?? ['']

function eventStream(events: string[], gapMs: number, onCancel: () => void): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder()
  let next = 0
  return new ReadableStream({
    async pull(controller) {
      if (next > 0 && gapMs > 0) await Bun.sleep(gapMs)
      const event = events[next++]
      if (event !== undefined) controller.enqueue(encoder.encode(event))
      if (next >= events.length) controller.close()
    },
    cancel: onCancel,
  })
}

interface Api {
  whole(id: string, model: string, text: string): unknown
  events(id: string, model: string, pieces: string[]): string[]
}

const ANTHROPIC: Api = {
  whole: (id, model, text) => ({
    id: `msg_${id}`,
    type: 'message',
    role: 'assistant',
    model,
    content: [{ type: 'text', text }],
    stop_reason: 'end_turn',
    stop_sequence: null,
    usage: { input_tokens: 1, output_tokens: words(text).length },
  }),
  events(id, model, pieces) {
    const message = { id: `msg_${id}`, type: 'message', role: 'assistant', model, content: [], stop_reason: null }
    const usage = { input_tokens: 1, output_tokens: pieces.length }
    return [
      {
        type: 'message_start',
        message: { ...message, stop_sequence: null, usage: { input_tokens: 1, output_tokens: 1 } },
      },
      { type: 'content_block_start', index: 0, content_block: { type: 'text', text: '' } },
      ...pieces.map((text) => ({ type: 'content_block_delta', index: 0, delta: { type: 'text_delta', text } })),
      { type: 'content_block_stop', index: 0 },
      { type: 'message_delta', delta: { stop_reason: 'end_turn', stop_sequence: null }, usage },
      { type: 'message_stop' },
    ].map((event) => `event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`)
  },
}

const OPENAI: Api = {
  whole: (id, model, content) => ({
    id: `chatcmpl-${id}`,
    object: 'chat.completion',
    created: 1,
    model,
    choices: [
      { index: 0, message: { role: 'assistant', content, refusal: null }, logprobs: null, finish_reason: 'stop' },
    ],
    usage: { prompt_tokens: 1, completion_tokens: 1, total_tokens: 2 },
  }),
  events(id, model, pieces) {
    const chunk = (delta: Record<string, string>, finish: string | null) =>
      `data: ${JSON.stringify({
        id: `chatcmpl-${id}`,
        object: 'chat.completion.chunk',
        created: 1,
        model,
        choices: [{ index: 0, delta, logprobs: null, finish_reason: finish }],
      })}\n\n`
    return [
      chunk({ role: 'assistant', content: '' }, null),
      ...pieces.map((content) => chunk({ content }, null)),
      chunk({}, 'stop'),
      'data: [DONE]\n\n',
    ]
  },
}
