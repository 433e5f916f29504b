import { z } from 'zod'
import type { LogLine, Services } from '../../services/types.ts'
import { oneOf, queryFlag, queryInteger } from '../fields.ts'
import { toJson } from '../json.ts'
import { type AuthorizedCall, keyRoute, type Route } from '../route.ts'
import { logs as logsAnswer } from './schemas.ts'

/** Limits, defaults and the pace of pings of the Orb Cloud contract §9. */
const MAX_TAIL = 10_000
const DEFAULT_TAIL = 100
const PING_EVERY_MS = 15_000
const PING = ': ping\n\n'

const query = z.object({
  tail: queryInteger(0, MAX_TAIL).default(DEFAULT_TAIL),
  follow: queryFlag().default(false),
  stream: oneOf(['all', 'stdout', 'stderr', 'orb']).default('all'),
  format: oneOf(['json', 'text']).optional(),
})

/** `pingEveryMs` is shorter in tests. */
export const logRoutes = ({ computers, logs }: Services, pingEveryMs = PING_EVERY_MS): Route[] => [
  keyRoute({
    method: 'GET',
    path: '/v1/computers/:id/logs',
    tag: 'Logs',
    summary: 'Show or follow what the agent and orb wrote',
    access: 'deploy',
    query,
    answer: logsAnswer,
    otherAnswers: {
      'text/event-stream': 'With follow: one data object per line, a ping comment every 15 seconds',
      'text/plain': 'With format=text or Accept: text/plain: bare lines',
    },
    errors: ['not_found'],
    async handle(call) {
      const id = call.params['id'] ?? ''
      const { tail, follow, stream, format } = call.query
      const asText = format === 'text' || (format === undefined && prefersText(call.request))
      if (follow) {
        // Following is lazy: an unknown computer must be an answer of 404, not a stream that breaks off.
        computers.get(call.who, id)
        return followAnswer(call, asText, pingEveryMs, (signal) => logs.follow(call.who, id, { tail, stream }, signal))
      }
      const view = await logs.read(call.who, id, { tail, stream })
      if (!asText) return view
      return textAnswer('text/plain; charset=utf-8', view.lines.map(asBareLine).join(''))
    },
  }),
]

const prefersText = (request: Request): boolean => /\btext\/plain\b/i.test(request.headers.get('accept') ?? '')

const asBareLine = ({ line }: LogLine): string => `${line.toWellFormed()}\n`

const asEvent = (entry: LogLine): string => `data: ${toJson(entry)}\n\n`

const textAnswer = (type: string, body: string | ReadableStream<Uint8Array>): Response =>
  new Response(body, {
    // x-accel-buffering keeps a reverse proxy from collecting the stream before it passes it on.
    headers: { 'content-type': type, 'cache-control': 'no-cache', 'x-accel-buffering': 'no' },
  })

function followAnswer(
  call: AuthorizedCall,
  asText: boolean,
  pingEveryMs: number,
  open: (signal: AbortSignal) => AsyncIterable<LogLine>,
): Response {
  const gone = new AbortController()
  const signal = AbortSignal.any([gone.signal, call.stopping, call.request.signal])
  const lines = open(signal)[Symbol.asyncIterator]()
  const encoder = new TextEncoder()
  let pings: Timer | undefined
  const end = () => {
    clearInterval(pings)
    gone.abort()
  }
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      signal.addEventListener('abort', end, { once: true })
      if (asText) return
      const ping = () => controller.enqueue(encoder.encode(PING))
      // The headers leave with the first bytes: a client that follows a silent agent sees at once that it is connected.
      ping()
      pings = setInterval(ping, pingEveryMs)
    },
    async pull(controller) {
      const next = await nextLine(lines, signal)
      if (!next) {
        end()
        controller.close()
        return
      }
      controller.enqueue(encoder.encode(asText ? asBareLine(next) : asEvent(next)))
    },
    async cancel() {
      end()
      await lines.return?.()
    },
  })
  return textAnswer(asText ? 'text/plain; charset=utf-8' : 'text/event-stream; charset=utf-8', body)
}

/** The next line, or null at the end or once `signal` aborts. */
async function nextLine(lines: AsyncIterator<LogLine>, signal: AbortSignal): Promise<LogLine | null> {
  if (signal.aborted) return null
  const aborted = new Promise<null>((resolve) => signal.addEventListener('abort', () => resolve(null), { once: true }))
  const next = await Promise.race([lines.next(), aborted])
  return next === null || next.done ? null : next.value
}
