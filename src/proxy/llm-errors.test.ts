import { afterAll, afterEach, beforeAll, describe, expect, test } from 'bun:test'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseAllowList } from '../addresses.ts'
import { type Bench, post, rawClient, rawServer, startBench, until } from './testing.ts'

const cleanups: (() => unknown)[] = []
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
})

function bench(...args: Parameters<typeof startBench>): Bench {
  const made = startBench(...args)
  cleanups.push(made.end)
  return made
}

function okServer(tls?: Bun.TLSOptions) {
  const server = rawServer((connection) => {
    if (connection.received.includes('\r\n\r\n')) connection.write('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok')
  }, tls)
  cleanups.push(server.stop)
  return server
}

const H = 'Host: a\r\n'

describe('requests that are refused before anything goes upstream', () => {
  test.each([
    [
      'length and chunked',
      `POST / HTTP/1.1\r\n${H}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\n${H}\r\n`,
      400,
      'invalid_request',
    ],
    [
      'differing lengths',
      `POST / HTTP/1.1\r\n${H}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!`,
      400,
      'invalid_request',
    ],
    ['not HTTP', '\x16\x03\x01\x02\x00\x01\n', 400, 'invalid_request'],
    ['CONNECT', `CONNECT api.test:443 HTTP/1.1\r\n${H}\r\n`, 400, 'invalid_request'],
    ['absolute form', `GET http://api.test/v1 HTTP/1.1\r\n${H}\r\n`, 400, 'invalid_request'],
    ['asterisk form', `OPTIONS * HTTP/1.1\r\n${H}\r\n`, 400, 'invalid_request'],
    [
      'WebSocket',
      `GET /v1/realtime HTTP/1.1\r\n${H}Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n`,
      501,
      'not_supported',
    ],
    ['headers over 32 KiB', `GET /${'a'.repeat(33_000)} HTTP/1.1\r\n${H}\r\n`, 431, 'headers_too_large'],
    [
      'a body that says it is over 64 MiB',
      `POST / HTTP/1.1\r\n${H}Content-Length: ${64 * 1024 * 1024 + 1}\r\n\r\nabc`,
      413,
      'payload_too_large',
    ],
  ])('%s', async (_name, request, status, code) => {
    const server = okServer()
    const proxy = bench(`http://127.0.0.1:${server.port}`)
    const client = await rawClient(proxy.port)
    client.write(request)
    const text = await client.has('}')
    expect(text).toStartWith(`HTTP/1.1 ${status} `)
    expect(JSON.parse(text.split('\r\n\r\n')[1] ?? '')).toEqual({ error: code, message: expect.any(String) })
    expect(text).toContain('\r\nConnection: close\r\n')
    client.socket.end()
    await client.isClosed()
    expect(client.received.split('HTTP/1.1').length).toBe(2)
    expect(server.connections.length).toBe(0)
    expect(proxy.agent.calls.length).toBe(0)
  })
})

test('a chunked body over 64 MiB: 413, and the upstream call ends', async () => {
  const server = rawServer()
  cleanups.push(server.stop)
  const proxy = bench(`http://127.0.0.1:${server.port}`)
  const client = await rawClient(proxy.port)
  client.write(`POST /v1/x HTTP/1.1\r\n${H}Transfer-Encoding: chunked\r\n\r\n`)
  const piece = Buffer.alloc(1024 * 1024, 'x')
  for (let i = 0; i < 65; i++) {
    client.write(`${piece.length.toString(16)}\r\n`)
    client.write(piece)
    client.write('\r\n')
  }
  expect(await client.has('}')).toStartWith('HTTP/1.1 413 Content Too Large\r\n')
  await until(() => server.connections[0]?.closed ?? false, 'the upstream connection closes')
  expect(await proxy.agent.outcome()).toBe('upstream_error')
})

test('exactly 64 MiB pass', async () => {
  const total = 64 * 1024 * 1024
  const server = rawServer((connection) => {
    connection.keep = false
    if (connection.bytes > total) connection.write('HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok')
  })
  cleanups.push(server.stop)
  const proxy = bench(`http://127.0.0.1:${server.port}`)
  const client = await rawClient(proxy.port)
  client.write(`POST /v1/x HTTP/1.1\r\n${H}Content-Length: ${total}\r\n\r\n`)
  client.write(Buffer.alloc(total, 'x'))
  await client.has('ok')
})

test('an answer before the end of the request is delivered, and the connection goes on', async () => {
  const server = rawServer((connection) => {
    if (connection.received.includes('first')) {
      connection.write('HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno')
      connection.socket.end()
    } else if (connection.received.endsWith('second'))
      connection.write('HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes')
  })
  cleanups.push(server.stop)
  const proxy = bench(`http://127.0.0.1:${server.port}`)
  const client = await rawClient(proxy.port)
  client.write(`POST /v1/x HTTP/1.1\r\n${H}Content-Length: 2000005\r\n\r\nfirst`)
  await client.has('no')
  client.write('x'.repeat(2_000_000))
  client.write(post('second'))
  await client.has('yes')
})

describe('upstreams that fail', () => {
  test('refused: 502 after retries, and the connection goes on', async () => {
    const server = rawServer()
    server.stop()
    const proxy = bench(`http://127.0.0.1:${server.port}`)
    const client = await rawClient(proxy.port)
    client.write(post('{}'))
    const text = await client.has('}')
    expect(text).toStartWith('HTTP/1.1 502 Bad Gateway\r\n')
    expect(text).toContain('"error":"upstream_unreachable"')
    expect(client.closed).toBe(false)
    expect(proxy.agent.calls[0]?.log).toEqual(['wake', 'upstream_error'])
  })

  test('a failed connect is tried again at the next address', async () => {
    const server = okServer()
    const proxy = bench(`http://llm.test:${server.port}`, { resolve: async () => ['127.9.9.9', '127.0.0.1'] })
    const client = await rawClient(proxy.port)
    client.write(post('{}'))
    await client.has('ok')
    expect(server.connections[0]?.received).toContain(`Host: llm.test:${server.port}\r\n`)
  })

  test('a request that got no answer is never sent again', async () => {
    const server = rawServer((connection) => connection.reset())
    cleanups.push(server.stop)
    const proxy = bench(`http://127.0.0.1:${server.port}`)
    const client = await rawClient(proxy.port)
    client.write(post('{}'))
    await client.has('"error":"upstream_unreachable"')
    expect(server.connections.length).toBe(1)
  })

  test('a body without a length that ends with a reset is not taken for whole', async () => {
    const server = rawServer((connection) => {
      connection.write('HTTP/1.1 200 OK\r\n\r\nabc')
    })
    cleanups.push(server.stop)
    const proxy = bench(`http://127.0.0.1:${server.port}`)
    const client = await rawClient(proxy.port)
    client.write(post('{}'))
    await client.has('abc')
    server.connections[0]?.reset()
    await client.isClosed()
    expect(client.received).not.toContain('\r\n0\r\n\r\n')
    expect(await proxy.agent.outcome()).toBe('upstream_error')
  })

  test.each([
    ['with its length', 'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc'],
    ['chunked', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n'],
  ])('an answer that breaks off, %s, breaks off for the agent too', async (_name, answer) => {
    const server = rawServer((connection) => {
      connection.write(answer)
      connection.socket.end()
    })
    cleanups.push(server.stop)
    const proxy = bench(`http://127.0.0.1:${server.port}`)
    const client = await rawClient(proxy.port)
    client.write(post('{}'))
    await client.isClosed()
    expect(client.received).toContain('abc')
    expect(client.received).not.toContain('\r\n0\r\n\r\n')
    expect(await proxy.agent.outcome()).toBe('upstream_error')
  })

  test('no answer in time: 504; a gap in the body: the answer breaks off', async () => {
    const silent = rawServer()
    cleanups.push(silent.stop)
    const proxy = bench(`http://127.0.0.1:${silent.port}`, { llmTimeoutMs: 80 })
    const client = await rawClient(proxy.port)
    client.write(post('{}'))
    expect(await client.has('}')).toContain('"error":"upstream_timeout"')
    expect(client.received).toStartWith('HTTP/1.1 504 Gateway Timeout\r\n')
    client.write(post('{}'))
    await until(() => silent.connections[1]?.received.endsWith('{}') ?? false, 'the second request')
    silent.connections[1]?.write('HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc')
    await client.isClosed()
    expect(client.received).toEndWith('abc')
  })

  test('a stream longer than the time limit in all, with small gaps, is not cut', async () => {
    const server = rawServer()
    cleanups.push(server.stop)
    const proxy = bench(`http://127.0.0.1:${server.port}`, { llmTimeoutMs: 200 })
    const client = await rawClient(proxy.port)
    client.write(post('{}'))
    await until(() => server.connections[0]?.received.endsWith('{}') ?? false, 'the request')
    server.connections[0]?.write('HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n')
    for (const letter of 'abcdefghijkl') {
      await Bun.sleep(40)
      server.connections[0]?.write(letter)
    }
    await client.has('abcdefghijkl')
    expect(await proxy.agent.outcome()).toBe('delivered')
  })
})

describe('addresses', () => {
  test.each([
    ['', 'http', ['127.0.0.1'], false],
    ['127.0.0.0/8', 'http', ['127.0.0.1'], true],
    ['llm.test', 'http', ['127.0.0.1'], true],
    ['llm.test:1', 'http', ['127.0.0.1'], false],
    ['*', 'http', ['127.0.0.1'], true],
    ['', 'http', ['8.8.8.8'], false],
    ['10.0.0.0/8', 'https', ['127.0.0.1', '169.254.169.254', '::1', '::ffff:127.0.0.1'], false],
    ['127.0.0.1/32', 'http', ['10.0.0.1', '127.0.0.1'], true],
  ])('allowing %p, %s to %p is let through: %p', async (list, scheme, addresses, passes) => {
    const server = okServer()
    const proxy = bench(`${scheme}://llm.test:${server.port}`, {
      allowPrivate: parseAllowList(list),
      resolve: async () => addresses,
    })
    const client = await rawClient(proxy.port)
    client.write(post('{}'))
    const text = await client.has(passes ? 'ok' : '}')
    expect(text).toStartWith(passes ? 'HTTP/1.1 200 ' : 'HTTP/1.1 502 ')
    if (!passes) expect(text).toContain('"error":"upstream_forbidden"')
    expect(server.connections.length).toBe(passes ? 1 : 0)
  })
})

describe('TLS', () => {
  let dir: string
  let tls: { cert: string; key: string }
  beforeAll(() => {
    dir = mkdtempSync(join(tmpdir(), 'orb-tls-'))
    const made = Bun.spawnSync(
      [
        'openssl',
        'req',
        '-x509',
        '-newkey',
        'ec',
        '-pkeyopt',
        'ec_paramgen_curve:prime256v1',
        '-nodes',
        '-days',
        '2',
        '-subj',
        '/CN=llm.test',
        '-addext',
        'subjectAltName=DNS:llm.test',
        '-keyout',
        'key',
        '-out',
        'cert',
      ],
      { cwd: dir, stderr: 'pipe' },
    )
    expect(made.exitCode).toBe(0)
    tls = { cert: readFileSync(join(dir, 'cert'), 'utf8'), key: readFileSync(join(dir, 'key'), 'utf8') }
  })
  afterAll(() => rmSync(dir, { recursive: true }))

  test.each([
    ['the right name and a trusted authority', 'llm.test', true, true],
    ['another name', 'other.test', true, false],
    ['an authority nobody trusts', 'llm.test', false, false],
  ])('%s', async (_name, host, trusted, passes) => {
    const server = okServer({ ...tls, ALPNProtocols: '\x08http/1.1' })
    const proxy = bench(`https://${host}:${server.port}`, {
      resolve: async () => ['127.0.0.1'],
      ca: trusted ? tls.cert : undefined,
    })
    const client = await rawClient(proxy.port)
    client.write(post('{}'))
    const text = await client.has(passes ? 'ok' : '}')
    expect(text).toStartWith(passes ? 'HTTP/1.1 200 ' : 'HTTP/1.1 502 ')
    const sent = server.connections.map((connection) => connection.received).join('')
    expect(sent.includes('POST')).toBe(passes)
    if (passes) expect(server.connections[0]?.socket.alpnProtocol).toBe('http/1.1')
  })

  test('20 MB up and down over TLS', async () => {
    const total = 20_000_000
    const server = rawServer((connection) => {
      connection.keep = false
      if (connection.bytes < total) return
      connection.write(`HTTP/1.1 200 OK\r\nContent-Length: ${total}\r\n\r\n`)
      connection.write(Buffer.alloc(total, 'y'))
    }, tls)
    cleanups.push(server.stop)
    const proxy = bench(`https://llm.test:${server.port}`, { resolve: async () => ['127.0.0.1'], ca: tls.cert })
    const client = await rawClient(proxy.port)
    client.keep = false
    client.write(post('x'.repeat(total)))
    await until(() => client.bytes > total, 'all comes back')
    expect(await proxy.agent.outcome()).toBe('delivered')
  })
})
