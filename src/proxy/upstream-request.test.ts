import { afterEach, describe, expect, test } from 'bun:test'
import { parseAllowList } from '../addresses.ts'
import { type RawConnection, type RawServer, rawServer } from './testing.ts'
import { UpstreamLinks } from './upstream-link.ts'
import { requestUpstream } from './upstream-request.ts'

const LIMITS = { timeoutMs: 5000, maxBytes: 1000 }
let server: RawServer | null = null

afterEach(() => {
  server?.stop()
  server = null
})

/** Asks a server that does this once it has something. */
function ask(
  onData: (connection: RawConnection) => void,
  more: { allow?: string; timeoutMs?: number; body?: string } = {},
) {
  const { allow = '127.0.0.1', timeoutMs = LIMITS.timeoutMs, body } = more
  server = rawServer(onData)
  const links = new UpstreamLinks({ allowPrivate: parseAllowList(allow) })
  const url = new URL(`http://127.0.0.1:${server.port}/a/b?c=d`)
  const request = { method: 'PUT', url, headers: { Accept: 'x/y' }, ...(body === undefined ? {} : { body }) }
  return requestUpstream(links, request, { ...LIMITS, timeoutMs })
}

describe('an answer', () => {
  test.each([
    ['of known length', 'HTTP/1.1 201 Created\r\nX-A: b\r\nContent-Length: 2\r\n\r\nok', 201],
    ['in chunks', 'HTTP/1.1 200 OK\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n', 200],
    [
      'after an interim one',
      'HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 500 No\r\nX-A: b\r\nContent-Length: 2\r\n\r\nok',
      500,
    ],
  ])('%s is read', async (_, bytes, status) => {
    const answer = await ask((connection) => connection.write(bytes))
    expect(answer).toMatchObject({ status, body: 'ok' })
    expect(answer.headers.find(({ name }) => name === 'x-a')?.value).toBe('b')
  })

  test('that ends with the connection is read', async () => {
    const answer = await ask((connection) => {
      connection.write('HTTP/1.1 200 OK\r\n\r\nok')
      connection.socket.end()
    })
    expect(answer).toMatchObject({ status: 200, body: 'ok' })
  })

  test('of a redirect is not followed', async () => {
    const head = 'HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n'
    expect(await ask((connection) => connection.write(head))).toMatchObject({ status: 302, body: '' })
  })
})

test('a request is sent whole, and its connection closed after the answer', async () => {
  const body = 'é'.repeat(500_000)
  const answer = ask(
    (connection) => {
      if (connection.bytes > Buffer.byteLength(body)) connection.write('HTTP/1.1 204 No Content\r\n\r\n')
    },
    { body },
  )
  expect((await answer).status).toBe(204)
  const connection = server?.connections[0]
  await connection?.isClosed()
  const [head, sent = ''] = connection?.received.split('\r\n\r\n') ?? []
  expect(head?.split('\r\n')).toEqual([
    'PUT /a/b?c=d HTTP/1.1',
    `Host: 127.0.0.1:${server?.port}`,
    'Accept: x/y',
    'Content-Length: 1000000',
    'Connection: close',
  ])
  expect(Buffer.from(sent, 'latin1').toString()).toBe(body)
})

describe('no answer', () => {
  const refusal = (code: string, message: string) =>
    expect.objectContaining({ code, message: expect.stringContaining(message) })

  test.each([
    [`HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n${'x'.repeat(1001)}`, 'over 1000 bytes'],
    ['SSH-2.0-OpenSSH_9.2\r\n\r\n', 'Malformed HTTP message'],
  ])('comes of %s', async (bytes, why) => {
    expect(await ask((connection) => connection.write(bytes)).catch((thrown) => thrown)).toEqual(
      refusal('upstream_unreachable', why),
    )
  })

  test('comes of a connection that breaks off', async () => {
    const answer = ask((connection) => {
      connection.write('HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf')
      connection.socket.end()
    })
    expect(await answer.catch((thrown) => thrown)).toEqual(refusal('upstream_unreachable', 'the connection broke'))
  })

  test('comes in time', async () => {
    const thrown = await ask(() => undefined, { timeoutMs: 50 }).catch((error) => error)
    expect(thrown).toEqual(refusal('upstream_timeout', 'did not answer'))
    await server?.connections[0]?.isClosed()
  })

  test('is asked of a private address that is not allowed', async () => {
    const thrown = await ask(() => undefined, { allow: '10.0.0.0/8' }).catch((error) => error)
    expect(thrown).toEqual(refusal('upstream_forbidden', 'private'))
    expect(server?.connections).toEqual([])
  })
})
