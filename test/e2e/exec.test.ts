/* Commands beside the agent, by the API of a real orb: their output as it comes, their input, their end. Needs root. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { z } from 'zod'
import type { Computer } from '../support/computer.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'
import { until } from '../support/sweep.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

const MIB = 1024 * 1024
/** Of orb, for a reader who does not read: what the sockets and the streams between hold. */
const HELD_BACK_MB = 30

let orb: Orb
let computer: Computer
beforeAll(async () => {
  orb = await startOrb()
  computer = await orb.computer()
})
afterAll(() => orb?.stop())

const Data = z.object({ text: z.string().default(''), exec_id: z.string().default(''), exit_code: z.int().optional() })

interface Event {
  event: string
  data: z.output<typeof Data>
}

/** A command whose events are read one by one. */
class Stream {
  private text = ''
  private constructor(
    private readonly reader: ReadableStreamDefaultReader<Uint8Array<ArrayBuffer>>,
    private readonly leaving: AbortController,
    private readonly decoder = new TextDecoder('utf-8', { fatal: true }),
  ) {}

  static async open(command: string, more: Record<string, unknown> = {}): Promise<Stream> {
    const leaving = new AbortController()
    const response = await fetch(`${orb.url}/v1/computers/${computer.id}/exec`, {
      method: 'POST',
      headers: { authorization: `Bearer ${orb.key}`, accept: 'text/event-stream' },
      body: JSON.stringify({ command, ...more }),
      signal: leaving.signal,
    })
    expect([response.status, response.headers.get('content-type')]).toEqual([200, 'text/event-stream; charset=utf-8'])
    if (!response.body) throw new Error('no body')
    return new Stream(response.body.getReader(), leaving)
  }

  async next(): Promise<Event | null> {
    for (;;) {
      const end = this.text.indexOf('\n\n')
      if (end === -1) {
        const { done, value } = await this.reader.read()
        if (done) return null
        this.text += this.decoder.decode(value, { stream: true })
        continue
      }
      const [, event, data] = /^event: (\w+)\ndata: (.*)$/.exec(this.text.slice(0, end)) ?? []
      this.text = this.text.slice(end + 2)
      if (event && data) return { event, data: Data.parse(JSON.parse(data)) }
    }
  }

  async rest(): Promise<Event[]> {
    const events: Event[] = []
    for (let next = await this.next(); next; next = await this.next()) events.push(next)
    return events
  }

  leave(): void {
    this.leaving.abort()
  }
}

const textOf = (events: Event[], stream: string): string =>
  events.map(({ event, data }) => (event === stream ? data.text : '')).join('')

/** Bytes of RAM that orb has. */
const memory = (): number =>
  Number(/^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${orb.pid}/status`, 'utf8'))?.[1]) * 1024

/** Command lines in the computer that hold this word, whoever asks aside. */
const running = async (word: string): Promise<number> =>
  Number(await computer.sh(`ps ax -o args= | grep -c "[${word[0]}]${word.slice(1)}" || true`))

describe('a stream', () => {
  test('shows output while the command runs, character by character whole, and its exit', async () => {
    const stream = await Stream.open(
      "echo begun; until [ -e /root/go ]; do sleep 0.02; done; printf '\\xe2\\x82'; sleep 0.1; printf '\\xac'; echo bad >&2; exit 5",
    )
    expect(await stream.next()).toMatchObject({ event: 'start', data: { exec_id: expect.stringMatching(/^exec_/) } })
    expect(await stream.next()).toMatchObject({ event: 'stdout', data: { text: 'begun\n' } })
    await computer.put('root/go', '')
    const events = await stream.rest()
    expect([textOf(events, 'stdout'), textOf(events, 'stderr')]).toEqual(['€', 'bad\n'])
    expect(events.at(-1)).toMatchObject({ event: 'exit', data: { exit_code: 5 } })
  })

  test('ends with the shell; children in the background live on, also when the client leaves then', async () => {
    const stream = await Stream.open('sleep 4321 & disown; echo done')
    expect((await stream.rest()).map(({ event }) => event)).toEqual(['start', 'stdout', 'exit'])
    stream.leave()
    expect(await running('sleep 4321')).toBe(1)
    await computer.call('POST', '/restart')
    expect(await running('sleep 4321')).toBe(0)
  })

  test('of which the client leaves ends the command and all its children', async () => {
    const stream = await Stream.open('(sleep 5432 & disown); sleep 5433 & echo begun; sleep 5434')
    await stream.next()
    await stream.next()
    expect(await running('sleep 543')).toBe(3)
    stream.leave()
    expect(await until(async () => (await running('sleep 543')) === 0)).toBe(true)
  })

  test('has the command wait for a client that does not read, and orb keeps nothing of it', async () => {
    const before = memory()
    const total = 100 * MIB
    const stream = await Stream.open(`head -c ${total} /dev/zero | tr '\\0' x; echo over >&2`, { timeout_secs: 120 })
    await stream.next()
    const written = () =>
      computer.sh(
        "until pgrep -x tr >/dev/null; do sleep 0.05; done; awk '/^wchar/ { print $2 }' /proc/$(pgrep -x tr | head -1)/io",
      )
    let [last, now] = ['', await written()]
    while (last !== now) {
      await Bun.sleep(500)
      ;[last, now] = [now, await written()]
    }
    expect(Number(now)).toBeLessThan(total / 2)
    expect(memory() - before).toBeLessThan(HELD_BACK_MB * MIB)
    let length = 0
    let words = ''
    for (let next = await stream.next(); next; next = await stream.next()) {
      if (next.event === 'stdout') length += next.data.text.length
      if (next.event === 'stderr') words += next.data.text
    }
    expect([length, words]).toEqual([total, 'over\n'])
  })

  test('that runs out of time is ended with its children', async () => {
    const events = await (await Stream.open('sleep 6543 & echo a; sleep 6544', { timeout_secs: 1 })).rest()
    expect(events.at(-1)).toMatchObject({ event: 'exit', data: { exit_code: 124 } })
    expect(await running('sleep 654')).toBe(0)
  })

  test('is refused as a plain command is', async () => {
    const ask = (id: string, body: Record<string, unknown>) => orb.call('POST', `/v1/computers/${id}/exec`, body)
    expect((await ask(computer.id, { command: '', stream: true })).status).toBe(400)
    expect((await ask(crypto.randomUUID(), { command: 'true', stream: true })).status).toBe(404)
    const streams = await Promise.all(Array.from({ length: 32 }, () => Stream.open('sleep 7654')))
    const refused = await ask(computer.id, { command: 'true', stream: true })
    expect([refused.status, refused.json['error']]).toEqual([429, 'too_many_sessions'])
    for (const stream of streams) stream.leave()
    expect(await until(async () => (await ask(computer.id, { command: 'true' })).status === 200)).toBe(true)
  })
})

describe('standard input', () => {
  test('comes with the request', async () => {
    const { json } = await computer.call('POST', '/exec', { command: 'wc -c; echo over', stdin: 'é'.repeat(300_000) })
    expect(json).toMatchObject({ stdout: '600000\nover\n', exit_code: 0 })
    expect(await computer.sh('wc -c')).toBe('0\n')
    const events = await (await Stream.open('cat', { stdin: 'a\nb\n' })).rest()
    expect(textOf(events, 'stdout')).toBe('a\nb\n')
  })

  test('comes while the command runs, byte for byte, and ends when that is said', async () => {
    const stream = await Stream.open('read -r name; echo "hello $name"; sha256sum; echo over', { interactive: true })
    const { exec_id: id } = (await stream.next())?.data ?? { exec_id: '' }
    const write = (bytes: Uint8Array<ArrayBuffer> | string, query = '') =>
      computer.call('POST', `/exec/${id}/stdin${query}`, bytes)
    expect((await write('orb\n')).json).toEqual({ written: 4, closed: false })
    expect(await stream.next()).toMatchObject({ data: { text: 'hello orb\n' } })
    const bytes = crypto.getRandomValues(new Uint8Array(60_000))
    for (let part = 0; part < 50; part++) expect((await write(bytes)).status).toBe(200)
    expect((await write(bytes, '?close=true')).json).toEqual({ written: bytes.length, closed: true })
    const hash = new Bun.CryptoHasher('sha256')
    for (let part = 0; part < 51; part++) hash.update(bytes)
    expect(textOf(await stream.rest(), 'stdout')).toBe(`${hash.digest('hex')}  -\nover\n`)
    expect((await write('late')).status).toBe(404)
    await orb.register()
    expect((await write('foreign')).status).toBe(404)
  })
})
