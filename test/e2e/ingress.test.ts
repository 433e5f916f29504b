import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { createHash } from 'node:crypto'
import { join } from 'node:path'
import { z } from 'zod'
import { type RawConnection, rawClient } from '../../src/proxy/testing.ts'
import type { Computer } from '../support/computer.ts'
import { Gates } from '../support/gates.ts'
import { type LlmServer, startLlmServer } from '../support/llm-server.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'
import { until } from '../support/sweep.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

const MB = 1024 * 1024
const UPLOAD_MB = 200
const AT_ONCE = 50

const State = z.object({ life: z.string(), count: z.number() })
const Seen = z.object({
  life: z.string(),
  method: z.string(),
  url: z.string(),
  headers: z.array(z.string()),
  port: z.number(),
  address: z.string(),
})

const gates = new Gates()
let orb: Orb
let llm: LlmServer
let computer: Computer
let port: number

const PORTS = { first: 8000, loopback6: 8001, any4: 8002, any: 8003, other: 9000 }

beforeAll(async () => {
  llm = startLlmServer({ answerWhen: gates.answerWhen })
  orb = await startOrb()
  port = Number(new URL(orb.url).port)
  computer = await orb.computer()
  const { first, loopback6, any4, any, other } = PORTS
  await deployApp(computer, [first, loopback6, any4, any, 7999], {
    BIND: `127.0.0.1:${first},::1:${loopback6},0.0.0.0:${any4},:::${any},127.0.0.1:${other}`,
  })
})
afterEach(() => gates.openAll())
afterAll(async () => {
  await orb?.stop()
  await llm?.stop()
})

async function deployApp(on: Computer, expose: number[], env: Record<string, string>): Promise<void> {
  await on.put('agent/code/app.mjs', await Bun.file(join(import.meta.dir, '../support/app.mjs')).text())
  const answer = await on.deploy({
    agent: { name: 'app', lang: 'node', entry: 'app.mjs', env },
    ports: { expose },
    llm: { base_url: `http://127.0.0.1:${llm.port}/v1` },
  })
  expect(answer.status).toBe(201)
  await on.waitForLine((line) => line === 'app ready')
}

const hostOf = (on: Computer): string => `${on.shortId}.orb.localhost`

/** A public request to the computer. */
const visit = (path: string, init: RequestInit = {}, on = computer): Promise<Response> =>
  fetch(`${orb.url}${path}`, { ...init, headers: { ...init.headers, host: hostOf(on) } })

const state = async (on = computer) => State.parse(await (await visit('/state', {}, on)).json())
const errorOf = async (response: Response) => [
  response.status,
  z.object({ error: z.string(), message: z.string() }).parse(await response.json()).error,
]
const demote = async (on = computer) => expect((await on.call('POST', '/agents/demote')).status).toBe(200)
const restores = async (on = computer) =>
  (await on.lines('orb')).filter((line) => line.startsWith('restored (http)')).length

/** A request in its own bytes. */
async function raw(text: string): Promise<RawConnection> {
  const client = await rawClient(port)
  client.write(text.replaceAll('\n', '\r\n').replaceAll('HOST', hostOf(computer)))
  return client
}

/** A WebSocket to the computer, in its own bytes. */
async function webSocket(path = '/', on = computer): Promise<RawConnection> {
  const client = await rawClient(port)
  const lines = [
    'Connection: Upgrade',
    'Upgrade: websocket',
    'Sec-WebSocket-Version: 13',
    'Sec-WebSocket-Key: dGhlIHNhbXBsZQ==',
  ]
  client.write([`GET ${path} HTTP/1.1`, `Host: ${hostOf(on)}`, ...lines, '', ''].join('\r\n'))
  await client.has('\r\n\r\n')
  expect(client.received).toStartWith('HTTP/1.1 101 Switching Protocols\r\n')
  return client
}

/** A masked frame of up to 125 bytes (RFC 6455 §5.2). */
const frame = (text: string, opcode = 1): Buffer =>
  Buffer.concat([Buffer.from([0x80 | opcode, 0x80 | text.length, 0, 0, 0, 0]), Buffer.from(text)])

describe('where a request goes', () => {
  test.each(Object.entries(PORTS).slice(1, 4))('an app that listens on %s', async (_, inside) => {
    const seen = Seen.parse(await (await visit(`/_port/${inside}/a/b?c=1`)).json())
    expect(seen).toMatchObject({ port: inside, url: '/a/b?c=1' })
  })

  test('by short id, by full id, in any case, with any port, to the first exposed port', async () => {
    const names = [computer.shortId, computer.id, computer.shortId.toUpperCase()]
    for (const name of names.flatMap((one) => [`${one}.orb.localhost`, `${one}.ORB.localhost:1`])) {
      const response = await fetch(`${orb.url}/x`, { headers: { host: name } })
      const seen = Seen.parse(await response.json())
      expect(seen).toMatchObject({ port: PORTS.first, address: '127.0.0.1', url: '/x' })
      expect(seen.headers).toContain(name)
    }
  })

  test('names of the API and foreign ones lead to the API', async () => {
    for (const host of [
      'orb.localhost',
      'api.orb.localhost',
      'localhost',
      '127.0.0.1',
      'example.com',
      'xorb.localhost',
    ]) {
      const response = await fetch(`${orb.url}/v1/computers`, { headers: { host } })
      expect([host, response.status]).toEqual([host, 401])
    }
  })

  test.each([
    ['an unknown label', '/', 'deadbeef.orb.localhost', 404, 'unknown_host'],
    ['a label below a label', '/', 'x.SHORT.orb.localhost', 404, 'unknown_host'],
    ['no label', '/', '.orb.localhost', 404, 'unknown_host'],
    [
      'a port that listens and is not exposed',
      `/_port/${PORTS.other}/`,
      'SHORT.orb.localhost',
      404,
      'port_not_exposed',
    ],
    ['no port', '/_port/', 'SHORT.orb.localhost', 404, 'port_not_exposed'],
    ['an exposed port on which nothing listens', '/_port/7999/', 'SHORT.orb.localhost', 502, 'app_unreachable'],
  ])('%s', async (_, path, host, status, error) => {
    const response = await fetch(`${orb.url}${path}`, { headers: { host: host.replace('SHORT', computer.shortId) } })
    expect(await errorOf(response)).toEqual([status, error])
    expect(response.headers.get('x-request-id')).toBeTruthy()
  })

  test('a computer without exposed ports, without an agent, with one that has ended', async () => {
    const other = await orb.computer()
    expect(await errorOf(await visit('/', {}, other))).toEqual([404, 'port_not_exposed'])
    expect(
      (await other.call('POST', '/config', '[agent]\nname="a"\nlang="node"\nentry="main.mjs"\n[ports]\nexpose=[8000]'))
        .status,
    ).toBe(200)
    expect(await errorOf(await visit('/', {}, other))).toEqual([503, 'agent_not_running'])
    await other.deployScript('node', '', { ports: { expose: [8000] } })
    await other.waitForState('failed')
    const answer = await visit('/', {}, other)
    expect(answer.headers.get('retry-after')).toBe('5')
    expect(await errorOf(answer)).toEqual([503, 'agent_not_running'])
    await other.call('DELETE', '')
    expect(await errorOf(await visit('/', {}, other))).toEqual([404, 'unknown_host'])
  })

  test('an app that begins to listen while it is asked is waited for', async () => {
    const late = await orb.computer()
    const source = `import http from 'node:http'
setTimeout(() => http.createServer((_, answer) => answer.end('late')).listen(8000, '127.0.0.1'), 1000)`
    await late.deployScript('node', source, { ports: { expose: [8000] } })
    const answer = await visit('/', {}, late)
    expect([answer.status, await answer.text()]).toEqual([200, 'late'])
  })
})

describe('what passes', () => {
  test('headers as they came, with the truth about the sender', async () => {
    const client = await raw(`GET /h HTTP/1.1
Host: HOST:99
X-Twice: one
x-tWICE: two
X-Forwarded-For: 1.2.3.4
Forwarded: for=1.2.3.4
Connection: X-Hop
X-Hop: gone
TE: trailers

`)
    const seen = Seen.parse(JSON.parse((await client.has('}')).split('\r\n\r\n')[1] ?? ''))
    const host = `${hostOf(computer)}:99`
    expect(seen.headers).toEqual([
      ...['Host', host, 'X-Twice', 'one', 'x-tWICE', 'two'],
      ...['X-Forwarded-For', '127.0.0.1', 'X-Forwarded-Proto', 'http', 'X-Forwarded-Host', host],
      ...['Connection', 'close'],
    ])
    client.reset()
  })

  test('an event stream, event by event; its end is told to the app', async () => {
    const client = await raw('GET /events HTTP/1.1\nHost: HOST\n\n')
    await client.has(': open')
    for (const text of ['one', 'two', 'three']) {
      await visit(`/say?text=${text}`)
      await client.has(`data: ${text}\n\n`)
    }
    client.reset()
    const streams = async () => z.object({ streams: z.number() }).parse(await (await visit('/streams')).json()).streams
    expect(await until(async () => (await streams()) === 0)).toBe(true)
  })

  test(`an upload of ${UPLOAD_MB} MB, with a length and in chunks, and a download into a slow client`, async () => {
    const block = Buffer.alloc(MB, 'orb')
    const hash = createHash('sha256')
    for (let i = 0; i < UPLOAD_MB; i++) hash.update(block)
    const expected = { size: UPLOAD_MB * MB, hash: hash.digest('hex') }
    const whole = Buffer.concat(Array.from({ length: UPLOAD_MB }, () => block))
    expect(await (await visit('/upload', { method: 'POST', body: whole })).json()).toEqual(expected)
    let sent = 0
    const stream = new ReadableStream({
      pull(controller) {
        if (sent++ === UPLOAD_MB) controller.close()
        else controller.enqueue(block)
      },
    })
    expect(await (await visit('/upload', { method: 'POST', body: stream })).json()).toEqual(expected)

    const client = await raw('GET /download?mb=50 HTTP/1.1\nHost: HOST\nConnection: close\n\n')
    client.keep = false
    client.socket.pause()
    // Longer than it takes to fill every buffer on the way.
    await Bun.sleep(300)
    client.socket.resume()
    await client.isClosed()
    expect(client.bytes).toBeGreaterThan(50 * MB)
    expect(client.broken).toBe(false)
  })

  test('several requests on one connection, to the app and to the API', async () => {
    const client = await raw('GET /state HTTP/1.1\nHost: HOST\n\n')
    await client.has('"count"')
    client.received = ''
    client.write('GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n')
    await client.has('"status"')
    client.received = ''
    // Pipelined: the second waits for the first.
    const one = `GET /one HTTP/1.1\r\nHost: ${hostOf(computer)}\r\n\r\n`
    client.write(one + one.replace('one', 'two'))
    expect((await client.has('"url":"/two"')).indexOf('/one')).toBeGreaterThan(0)
    client.reset()
  })

  test('answers without a body', async () => {
    const client = await raw('HEAD /state HTTP/1.1\nHost: HOST\n\n')
    expect(await client.has('\r\n\r\n')).toContain('Content-Length: ')
    for (const code of [204, 304]) {
      client.received = ''
      client.write(`GET /status?code=${code} HTTP/1.1\r\nHost: ${hostOf(computer)}\r\n\r\n`)
      const head = await client.has('\r\n\r\n')
      expect(head).toStartWith(`HTTP/1.1 ${code} `)
      expect(head).not.toContain('Transfer-Encoding')
    }
    client.reset()
  })

  test('Expect: 100-continue is answered by the app', async () => {
    const client = await raw('POST /upload HTTP/1.1\nHost: HOST\nContent-Length: 5\nExpect: 100-continue\n\n')
    await client.has('HTTP/1.1 100 Continue\r\n\r\n')
    client.write('hello')
    await client.has('"size":5')
    client.reset()
  })

  test('HTTP/1.0, and an absolute target', async () => {
    const old = await raw('GET /state HTTP/1.0\nHost: HOST\n\n')
    await old.isClosed()
    expect(old.received).toContain('"count"')
    const absolute = await raw('GET http://HOST/x?y HTTP/1.1\nHost: localhost\n\n')
    await absolute.has('"url":"/x?y"')
    absolute.reset()
  })

  test.each([
    ['hangs up', '/hang-up'],
    ['does not speak HTTP', '/nonsense'],
  ])('an app that %s', async (_, path) => {
    expect(await errorOf(await visit(path))).toEqual([502, 'app_unreachable'])
  })

  test.each([
    ['both lengths', 'POST / HTTP/1.1\nHost: HOST\nContent-Length: 4\nTransfer-Encoding: chunked\n\n0\n\n'],
    ['two lengths', 'POST / HTTP/1.1\nHost: HOST\nContent-Length: 4\nContent-Length: 5\n\nabcde'],
    ['two hosts', 'GET / HTTP/1.1\nHost: HOST\nHost: localhost\n\n'],
    ['a line that is folded', 'GET / HTTP/1.1\nHost: HOST\nX-A: b\n c\n\n'],
    ['CONNECT', 'CONNECT HOST:443 HTTP/1.1\nHost: HOST\n\n'],
  ])('what could be read in two ways is refused: %s', async (_, text) => {
    const client = await raw(`${text}`)
    await client.isClosed()
    expect(client.received).toStartWith('HTTP/1.1 400 ')
    expect(client.received.split('HTTP/1.1 ')).toHaveLength(2)
  })
})

describe('an agent that sleeps', () => {
  test('is woken by a request, which waits for it; its memory is whole', async () => {
    const before = await state()
    await demote()
    expect(computer.agentProcesses()).toEqual([])
    expect(await state()).toEqual({ life: before.life, count: before.count + 1 })
    expect(await computer.agent()).toMatchObject({ state: 'running' })
  })

  test('takes the body of the request that woke it', async () => {
    await demote()
    const body = Buffer.alloc(3 * MB, 'z')
    const answer = await visit('/upload', { method: 'POST', body })
    expect(await answer.json()).toEqual({ size: body.length, hash: createHash('sha256').update(body).digest('hex') })
  })

  test(`${AT_ONCE} requests at once share one restore`, async () => {
    const before = { ...(await state()), restores: await restores() }
    await demote()
    const states = await Promise.all(Array.from({ length: AT_ONCE }, () => state()))
    expect(new Set(states.map(({ life }) => life))).toEqual(new Set([before.life]))
    expect(states.map(({ count }) => count).sort((a, b) => a - b)).toEqual(
      Array.from({ length: AT_ONCE }, (_, index) => before.count + 1 + index),
    )
    expect(await restores()).toBe(before.restores + 1)
  })

  test('is not woken by what is refused', async () => {
    await demote()
    expect(await errorOf(await visit('/_port/7/'))).toEqual([404, 'port_not_exposed'])
    expect((await raw('GET / HTTP/1.1\nHost: HOST\nHost: a\n\n')).closed).toBe(false)
    expect(await computer.statesDuring(300)).toEqual(['checkpointed'])
    await state()
  })

  test('a kept-alive connection stays open', async () => {
    const client = await raw('GET /state HTTP/1.1\nHost: HOST\n\n')
    await client.has('"count"')
    await demote()
    client.received = ''
    client.write(`GET /state HTTP/1.1\r\nHost: ${hostOf(computer)}\r\n\r\n`)
    await client.has('"count"')
    client.reset()
  })

  test('a WebSocket stays open on both ends, and a message wakes', async () => {
    const socket = await webSocket(`/_port/${PORTS.first}/ws?x`)
    expect(socket.received).toContain('X-Path: /ws?x\r\n')
    socket.write(frame('hello'))
    await socket.has('1 hello')
    for (const [index, text] of ['after', 'again'].entries()) {
      await demote()
      // A quiet WebSocket wakes nobody.
      expect(await computer.statesDuring(200)).toEqual(['checkpointed'])
      socket.write(frame(text))
      await socket.has(`${index + 2} ${text}`)
    }
    socket.write(frame('', 8))
    await socket.isClosed()
    expect(socket.broken).toBe(false)
  })

  test('learns when it runs again that a client has gone meanwhile', async () => {
    const socket = await webSocket()
    const gone = async () => (await computer.lines()).filter((line) => line === 'websocket gone').length
    const before = await gone()
    await demote()
    socket.reset()
    expect(await computer.statesDuring(200)).toEqual(['checkpointed'])
    await state()
    expect(await until(async () => (await gone()) === before + 1)).toBe(true)
  })

  test('what a slow client had not taken before is not lost in the sleep', async () => {
    const client = await raw('GET /download?mb=30 HTTP/1.1\nHost: HOST\nConnection: close\n\n')
    client.keep = false
    client.socket.pause()
    await Bun.sleep(200)
    await demote()
    client.socket.resume()
    // orb's window opens now: news of that must not reach the empty place of the sleeper.
    expect(await computer.statesDuring(500)).toEqual(['checkpointed'])
    await state()
    await client.isClosed()
    expect(client.bytes).toBeGreaterThan(30 * MB)
    expect(client.broken).toBe(false)
  })

  test('what a slow app had not taken before is not lost in the sleep', async () => {
    const body = Buffer.alloc(30 * MB, 'orb')
    const answer = visit('/upload?after=1500', { method: 'POST', body })
    await Bun.sleep(300)
    await demote()
    // orb's kernel asks now and then whether the app has room.
    expect(await computer.statesDuring(2000)).toEqual(['checkpointed'])
    await state()
    expect(await (await answer).json()).toEqual({
      size: body.length,
      hash: createHash('sha256').update(body).digest('hex'),
    })
  })

  test('while it waits for its LLM; a new request wakes it, the old one is answered in the end', async () => {
    gates.shut('held')
    const { life } = await state()
    const held = visit('/ask?id=held')
    await computer.waitForState('checkpointed')
    expect((await state()).life).toBe(life)
    await computer.waitForState('checkpointed')
    gates.open('held')
    expect(await (await held).json()).toMatchObject({ status: 200, life })
  })

  test('that is frozen only is let go on', async () => {
    gates.shut('cold')
    const held = visit('/ask?id=cold')
    await computer.waitForState('frozen')
    const { life } = await state()
    gates.open('cold')
    expect(await (await held).json()).toMatchObject({ life })
  })
})

test('an agent that is replaced while it sleeps: the WebSocket ends, the next request meets the new one', async () => {
  const own = await orb.computer()
  await deployApp(own, [8000], { BIND: '127.0.0.1:8000' })
  const socket = await webSocket('/', own)
  const before = await state(own)
  await demote(own)
  await deployApp(own, [8000], { BIND: '127.0.0.1:8000' })
  await socket.isClosed()
  expect((await state(own)).life).not.toBe(before.life)
})

test('a restore that fails: 503, and the checkpoint is kept', async () => {
  const own = await orb.computer()
  await deployApp(own, [8000], { BIND: '127.0.0.1:8000' })
  const before = await state(own)
  await demote(own)
  const images = join(orb.dataDir, 'checkpoints', own.id)
  const [image = ''] = [...new Bun.Glob('*/core-*.img').scanSync({ cwd: images })]
  const path = join(images, image)
  const kept = await Bun.file(path).bytes()
  await Bun.write(path, kept.slice(0, 20))
  expect(await errorOf(await visit('/state', {}, own))).toEqual([503, 'wake_failed'])
  expect(await errorOf(await visit('/state', {}, own))).toEqual([503, 'agent_not_running'])
  await Bun.write(path, kept)
  expect((await own.call('POST', '/agents/promote')).status).toBe(200)
  expect((await state(own)).life).toBe(before.life)
})

test('a wake that takes longer than the server allows: 504, and it goes on', async () => {
  const hasty = await startOrb({ env: { ORB_WAKE_TIMEOUT: '1ms' } })
  try {
    const own = await hasty.computer()
    await deployApp(own, [8000], { BIND: '127.0.0.1:8000' })
    const ask = () => fetch(`${hasty.url}/state`, { headers: { host: hostOf(own) } })
    const { count } = State.parse(await (await ask()).json())
    await demote(own)
    expect(await errorOf(await ask())).toEqual([504, 'wake_timeout'])
    await own.waitForState('running')
    // The transition may still be in its last steps.
    expect(await until(async () => (await ask()).status === 200)).toBe(true)
    expect(State.parse(await (await ask()).json()).count).toBeGreaterThan(count)
  } finally {
    await hasty.stop()
  }
})
