import { z } from 'zod'
import type { Settings } from '../../config.ts'
import { OrbError } from '../../errors.ts'
import type { ExecStream, Services } from '../../services/types.ts'
import { flag, integer, queryFlag, text } from '../fields.ts'
import { toJson } from '../json.ts'
import { keyRoute, type Route } from '../route.ts'
import { execInput, executed } from './schemas.ts'

/** Limits of the Orb Cloud contract §8 and §20. */
const COMMAND_CHARACTERS = 128 * 1024
const MAX_TIMEOUT_S = 600
/** Of a standard input that comes with the request. */
const MAX_INPUT_BYTES = 1024 * 1024
const PING_EVERY_MS = 15_000
const PING = ': ping\n\n'

const bodyOf = (settings: Settings) =>
  z.object({
    command: text(1, COMMAND_CHARACTERS),
    timeout_secs: integer(1, MAX_TIMEOUT_S).default(Math.max(1, Math.round(settings.execTimeoutMs / 1000))),
    stdin: z
      .string({ error: 'must be a string' })
      .refine((value) => Buffer.byteLength(value) <= MAX_INPUT_BYTES, `must be at most ${MAX_INPUT_BYTES} bytes`)
      .optional(),
    stream: flag().optional(),
    interactive: flag().default(false),
  })

/** `pingEveryMs` is shorter in tests. */
export const execRoutes = ({ exec }: Services, settings: Settings, pingEveryMs = PING_EVERY_MS): Route[] => [
  keyRoute({
    method: 'POST',
    path: '/v1/computers/:id/exec',
    tag: 'Exec',
    summary: 'Run a shell command beside the agent',
    body: bodyOf(settings),
    answer: executed,
    otherAnswers: {
      'text/event-stream':
        'With stream, or Accept: text/event-stream: events start {exec_id}, stdout and stderr {text}, exit {exit_code, timed_out, duration_ms}. A client that leaves ends the command',
    },
    errors: ['not_found', 'too_many_sessions'],
    async handle({ who, params, body, request }) {
      const { stream = acceptsEvents(request), interactive, ...input } = body
      if (!stream && interactive) throw new OrbError('invalid_request', 'interactive takes stream')
      if (interactive && input.stdin !== undefined) {
        throw new OrbError('invalid_request', 'stdin and interactive do not go together')
      }
      const id = params['id'] ?? ''
      if (!stream) return exec.run(who, id, input)
      return eventAnswer(await exec.stream(who, id, { ...input, interactive }), request.signal, pingEveryMs)
    },
  }),
  keyRoute({
    method: 'POST',
    path: '/v1/computers/:id/exec/:exec_id/stdin',
    tag: 'Exec',
    summary: 'Write to the standard input of an interactive command',
    rawBody: { types: ['application/octet-stream'], required: false },
    query: z.object({ close: queryFlag().default(false) }),
    answer: execInput,
    errors: ['not_found'],
    handle: ({ who, params, query, request }) =>
      exec.write(who, params['id'] ?? '', params['exec_id'] ?? '', request.body, query.close),
  }),
]

const acceptsEvents = (request: Request): boolean => /\btext\/event-stream\b/i.test(request.headers.get('accept') ?? '')

const frame = (event: string, data: unknown): string => `event: ${event}\ndata: ${toJson(data)}\n\n`

function eventAnswer(command: ExecStream, left: AbortSignal, pingEveryMs: number): Response {
  const encoder = new TextEncoder()
  let pings: Timer | undefined
  const end = () => clearInterval(pings)
  const leave = () => {
    end()
    command.stop()
  }
  left.addEventListener('abort', leave, { once: true })
  // A client that was gone before anybody listened.
  if (left.aborted) leave()
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      controller.enqueue(encoder.encode(frame('start', { exec_id: command.id })))
      pings = setInterval(() => {
        // Who does not read what there is needs no more.
        if ((controller.desiredSize ?? 0) > 0) controller.enqueue(encoder.encode(PING))
      }, pingEveryMs)
    },
    async pull(controller) {
      const next = await command.events.next()
      if (!next.done) {
        controller.enqueue(encoder.encode(frame(next.value.event, next.value.data)))
        return
      }
      end()
      left.removeEventListener('abort', leave)
      controller.close()
    },
    cancel: leave,
  })
  return new Response(body, {
    // x-accel-buffering keeps a reverse proxy from collecting the stream before it passes it on.
    headers: {
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache',
      'x-accel-buffering': 'no',
    },
  })
}
