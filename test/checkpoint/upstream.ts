/** The LLM of the matrix: answers whose every byte is known, held back until they are let go. */
import { Gates } from '../support/gates.ts'

export type Kind = 'plain' | 'stream'

const PLAIN_BYTES = 64 * 1024
const EVENTS = 40
/** Of a stream, the events that come at once; the others wait for `release`. */
const EVENTS_AT_ONCE = 15

export interface Upstream {
  port: number
  /** How often each question came. */
  asked: Map<string, number>
  /** Holds the answers to questions, or the rest of their streams, back until they are released. */
  hold(...questions: string[]): void
  release(...questions: string[]): void
  stop(): Promise<void>
}

export function startUpstream(): Upstream {
  const gates = new Gates()
  const asked = new Map<string, number>()
  const server = Bun.serve({
    hostname: '127.0.0.1',
    port: 0,
    idleTimeout: 0,
    async fetch(request) {
      const { pathname: path } = new URL(request.url)
      const question = request.headers.get('x-question') ?? ''
      asked.set(question, (asked.get(question) ?? 0) + 1)
      const seen = { method: request.method, path, headers: new Headers(request.headers), body: await request.text() }
      const released = gates.answerWhen(seen)
      if (path === '/plain') {
        await released
        return new Response(wholeAnswer(question, 'plain'))
      }
      const stream = new ReadableStream<string>({
        async start(controller) {
          for (const event of events(question).slice(0, EVENTS_AT_ONCE)) controller.enqueue(event)
          await released
          for (const event of events(question).slice(EVENTS_AT_ONCE)) controller.enqueue(event)
          controller.close()
        },
      })
      return new Response(stream, { headers: { 'content-type': 'text/event-stream' } })
    },
  })
  return {
    port: server.port ?? 0,
    asked,
    hold: (...questions) => gates.shut(...questions),
    release: (...questions) => {
      for (const question of questions) gates.open(question)
    },
    stop: () => server.stop(true),
  }
}

const events = (question: string): string[] =>
  Array.from({ length: EVENTS }, (_, index) => `data: {"question":"${question}","event":${index + 1}}\n\n`)

export const wholeAnswer = (question: string, kind: Kind): string =>
  kind === 'plain' ? `${question} `.repeat(PLAIN_BYTES / question.length) : events(question).join('')

/** What of an answer that is held back comes nevertheless. */
export const firstPart = (question: string, kind: Kind): string =>
  kind === 'plain' ? '' : events(question).slice(0, EVENTS_AT_ONCE).join('')
