import { afterEach, beforeAll, describe, expect, test } from 'bun:test'
import { createHmac } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseAllowList } from '../../addresses.ts'
import { type RawConnection, rawServer, until } from '../../proxy/testing.ts'
import { type LinksOptions, UpstreamLinks } from '../../proxy/upstream-link.ts'
import { ATTEMPT_TIMEOUT_MS, type Message, sendOnce } from './attempt.ts'
import { checkedTarget } from './target.ts'

const MESSAGE: Message = { eventId: 'evt_1', type: 'agent.spawned', body: '{"id":"evt_1","name":"ä"}' }
const SECRET = 'sixteen letters.'
const ALLOW = '127.0.0.0/8'
/** `sendOnce` gives up by itself; this is for a test that waits in vain. */
const TIMEOUT_MS = ATTEMPT_TIMEOUT_MS + 15_000

const cleanups: (() => void)[] = []
afterEach(() => {
  for (const clean of cleanups.splice(0)) clean()
})

function receiver(answer: (connection: RawConnection) => void, tls?: Bun.TLSOptions) {
  const server = rawServer((connection) => {
    if (connection.received.endsWith(MESSAGE.body) || connection.received.includes('Ã¤')) answer(connection)
  }, tls)
  cleanups.push(server.stop)
  return server
}

const says =
  (head: string, body = '') =>
  (connection: RawConnection) =>
    connection.write(`HTTP/1.1 ${head}\r\nContent-Length: ${body.length}\r\n\r\n${body}`)

function send(url: string, over: Partial<LinksOptions> = {}, signal = new AbortController().signal): Promise<number> {
  const allowPrivate = parseAllowList(ALLOW)
  const target = checkedTarget(url, parseAllowList('*'))
  return sendOnce(new UpstreamLinks({ allowPrivate, ...over }), target, MESSAGE, SECRET, signal)
}

test('an event goes out with its names, its time and a signature of both time and body', async () => {
  const server = receiver(says('204 No Content'))
  const before = Math.floor(Date.now() / 1000)
  expect(await send(`http://127.0.0.1:${server.port}/hook?a=b`)).toBe(204)
  const [head = '', body = ''] = Buffer.from(server.connections[0]?.received ?? '', 'latin1')
    .toString()
    .split('\r\n\r\n')
  const [start, ...lines] = head.split('\r\n')
  const headers = new Headers(
    lines.map((line): [string, string] => [line.split(': ')[0] ?? '', line.split(': ')[1] ?? '']),
  )
  expect(start).toBe('POST /hook?a=b HTTP/1.1')
  expect(body).toBe(MESSAGE.body)
  const t = headers.get('x-orb-timestamp') ?? ''
  expect(Number(t)).toBeGreaterThanOrEqual(before)
  expect(Number(t)).toBeLessThanOrEqual(Date.now() / 1000)
  const hex = createHmac('sha256', SECRET).update(`${t}.${body}`).digest('hex')
  expect(Object.fromEntries(headers)).toMatchObject({
    host: `127.0.0.1:${server.port}`,
    'content-type': 'application/json',
    'content-length': String(Buffer.byteLength(body)),
    'x-orb-event': 'agent.spawned',
    'x-orb-delivery': 'evt_1',
    'x-orb-signature': `t=${t},v1=${hex}`,
  })
  expect(head).not.toContain(SECRET)
})

test('an interim answer is none; a redirect is one, and nobody follows it', async () => {
  const elsewhere = receiver(says('200 OK'))
  const server = receiver((connection) => {
    connection.write('HTTP/1.1 100 Continue\r\n\r\n')
    connection.write(`HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:${elsewhere.port}/\r\nContent-Length: 0\r\n\r\n`)
  })
  expect(await send(`http://127.0.0.1:${server.port}/`)).toBe(302)
  await server.connections[0]?.isClosed()
  expect(elsewhere.connections).toEqual([])
})

test('of a body without end little is taken', async () => {
  const piece = 'x'.repeat(1024 * 1024)
  const server = receiver((connection) => {
    connection.write(`HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n`)
    for (let n = 0; n < 100; n++) connection.write(piece)
  })
  expect(await send(`http://127.0.0.1:${server.port}/`)).toBe(200)
  await server.connections[0]?.isClosed()
})

describe('fails', () => {
  test.each([
    ['a receiver that closes', (connection: RawConnection) => connection.socket.end(), 'closed'],
    ['an answer that is no HTTP', (connection: RawConnection) => connection.write('SSH-2.0-x\r\n\r\n'), 'not HTTP'],
    [
      'a head without end',
      (connection: RawConnection) => connection.write(`HTTP/1.1 200 OK\r\n${'X: y\r\n'.repeat(20_000)}`),
      'too long',
    ],
  ])('%s', async (_, answer, why) => {
    const server = receiver(answer)
    await expect(send(`http://127.0.0.1:${server.port}/`)).rejects.toThrow(why)
    await server.connections[0]?.isClosed()
  })

  test('a port where nobody listens', async () => {
    const server = receiver(() => {})
    server.stop()
    await expect(send(`http://127.0.0.1:${server.port}/`)).rejects.toThrow('Cannot connect')
  })

  test(
    'who says nothing, and who says it drop by drop, in ten seconds',
    async () => {
      const silent = receiver(() => {})
      const slow = receiver((connection) => {
        connection.write('HTTP/1.1 200 OK\r\n')
        const drip = setInterval(() => connection.write('X: y\r\n'), 200)
        cleanups.push(() => clearInterval(drip))
      })
      const attempts = [silent, slow].map(({ port }) => send(`http://127.0.0.1:${port}/`))
      const failed = { status: 'rejected', reason: new Error('no answer within 10 s') } as const
      expect(await Promise.allSettled(attempts)).toEqual([failed, failed])
      for (const { connections } of [silent, slow]) await connections[0]?.isClosed()
    },
    TIMEOUT_MS,
  )

  test('when it is called off', async () => {
    const server = receiver(() => {})
    const abort = new AbortController()
    const sent = send(`http://127.0.0.1:${server.port}/`, {}, abort.signal)
    await until(() => server.connections[0]?.received.includes('evt_1') === true, 'the event comes')
    abort.abort(new Error('called off'))
    await expect(sent).rejects.toThrow('called off')
    await server.connections[0]?.isClosed()
  })
})

describe('a name', () => {
  test('is looked up for each attempt, and what it leads to is judged then', async () => {
    const server = receiver(says('200 OK'))
    const answers = [['127.0.0.1'], ['10.0.0.1', '169.254.169.254'], ['127.0.0.1']]
    const resolve = async () => answers.shift() ?? []
    const url = `http://hook.test:${server.port}/`
    expect(await send(url, { resolve })).toBe(200)
    await expect(send(url, { resolve })).rejects.toThrow('its address is private')
    expect(await send(url, { resolve })).toBe(200)
    expect(server.connections).toHaveLength(2)
    expect(server.connections[0]?.received).toContain(`Host: hook.test:${server.port}\r\n`)
  })

  test('that leads to the own machine is refused unless that is allowed', async () => {
    const server = receiver(says('200 OK'))
    const resolve = async () => ['127.0.0.1']
    const sent = send(`https://hook.test:${server.port}/`, { resolve, allowPrivate: [] })
    await expect(sent).rejects.toThrow('its address is private')
    expect(server.connections).toEqual([])
  })
})

describe('TLS', () => {
  let tls: { cert: string; key: string }
  beforeAll(() => {
    const dir = mkdtempSync(join(tmpdir(), 'orb-tls-'))
    const command =
      'openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=hook.test'
    const files = '-addext subjectAltName=DNS:hook.test -keyout key -out cert'
    expect(Bun.spawnSync(`${command} ${files}`.split(' '), { cwd: dir }).exitCode).toBe(0)
    tls = { cert: readFileSync(join(dir, 'cert'), 'utf8'), key: readFileSync(join(dir, 'key'), 'utf8') }
    rmSync(dir, { recursive: true })
  })

  test.each([
    ['hook.test', true, true],
    ['other.test', true, false],
    ['hook.test', false, false],
  ])('%s, trusted: %p', async (host, trusted, passes) => {
    const server = receiver(says('200 OK'), tls)
    const resolve = async () => ['127.0.0.1']
    const sent = send(`https://${host}:${server.port}/`, { resolve, ca: trusted ? tls.cert : undefined })
    if (passes) expect(await sent).toBe(200)
    else await expect(sent).rejects.toThrow('No trusted TLS connection')
    expect(server.connections.some(({ received }) => received.includes('evt_1'))).toBe(passes)
  })
})
