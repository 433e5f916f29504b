/** A real HTTP receiver of webhooks: keeps what it got, and answers as it is told. */
import { expect } from 'bun:test'
import { createHmac } from 'node:crypto'
import { z } from 'zod'
import { until } from './sweep.ts'

const WAIT_TIMEOUT_MS = 60_000

const Event = z.strictObject({
  id: z.string().regex(/^evt_[a-z0-9]{16}$/),
  type: z.string(),
  created_at: z.string().regex(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/),
  org_id: z.string(),
  data: z.looseObject({ computer_id: z.string(), reason: z.string().optional() }),
})
export type Event = z.output<typeof Event>

export interface Received {
  path: string
  headers: Headers
  body: string
  event: Event
}

export class Receiver {
  /** Oldest first. */
  readonly received: Received[] = []
  /** The answer to the nth request, from 1: a status, once that is there. */
  answer: (received: Received, nth: number) => number | Promise<number> = () => 204
  private readonly server = Bun.serve({
    hostname: '127.0.0.1',
    port: 0,
    idleTimeout: 0,
    fetch: async (request) => {
      const body = await request.text()
      const { pathname } = new URL(request.url)
      const seen = { path: pathname, headers: new Headers(request.headers), body, event: Event.parse(JSON.parse(body)) }
      this.received.push(seen)
      return new Response(null, { status: await this.answer(seen, this.received.length) })
    },
  })

  url(path = '/hook'): string {
    return `http://127.0.0.1:${this.server.port}${path}`
  }

  stop(): Promise<void> {
    return this.server.stop(true)
  }

  /** Events of a computer so far, each once however often it came, as `type reason`, in the order in which they came first. */
  told(computerId: string, path = '/hook'): string[] {
    return this.events(computerId, path).map(({ type, data }) => (data.reason ? `${type} ${data.reason}` : type))
  }

  events(computerId: string, path = '/hook'): Event[] {
    const mine = this.received.filter(({ event, path: to }) => event.data.computer_id === computerId && to === path)
    return [...new Map(mine.map(({ event }) => [event.id, event])).values()]
  }

  /** Waits until exactly these were told, in whatever order. */
  async expectTold(computerId: string, expected: string[], path?: string): Promise<void> {
    await until(() => this.told(computerId, path).length >= expected.length, WAIT_TIMEOUT_MS)
    expect(this.told(computerId, path).sort()).toEqual([...expected].sort())
  }

  /** Waits for an event, `type` or `type reason`, and returns the last such. */
  async event(computerId: string, what: string): Promise<Event> {
    await until(() => this.told(computerId).includes(what), WAIT_TIMEOUT_MS)
    const found = this.events(computerId)[this.told(computerId).lastIndexOf(what)]
    if (!found) throw new Error(`no ${what} came, but: ${this.told(computerId).join(', ')}`)
    return found
  }
}

/** What `X-Orb-Signature` must be. */
export function signatureOf({ headers, body }: Received, secret: string): string {
  const t = headers.get('x-orb-timestamp')
  return `t=${t},v1=${createHmac('sha256', secret).update(`${t}.${body}`).digest('hex')}`
}
