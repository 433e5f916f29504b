import { describe, expect, test } from 'bun:test'
import { type RequestHead, RequestParser, type ResponseHead, ResponseParser } from './http1.ts'
import { answerForm, apiRequestHead, appRequestHead, type Sender, wantsWebSocket } from './ingress-head.ts'

const SENDER: Sender = { address: '192.0.2.1', secure: false, trusted: false }

function request(start: string, ...lines: string[]): RequestHead {
  let head: RequestHead | null = null
  const parser = new RequestParser({
    onHead: (parsed) => {
      head = parsed
    },
    onBody() {},
    onEnd() {},
  })
  parser.push(Buffer.from([start, ...lines, '', ''].join('\r\n'), 'latin1'))
  if (head === null) throw new Error('no head')
  return head
}

function answer(mayUpgrade: boolean, ...lines: string[]): ResponseHead {
  let head: ResponseHead | null = null
  const events = {
    onHead: (parsed: ResponseHead) => {
      head = parsed
    },
    onBody() {},
    onEnd() {},
  }
  new ResponseParser(events, 'GET', mayUpgrade).push(Buffer.from([...lines, '', ''].join('\r\n'), 'latin1'))
  if (head === null) throw new Error('no head')
  return head
}

const sent = (head: RequestHead, sender: Partial<Sender> = {}) =>
  appRequestHead(head, 'a.test', '/p', { ...SENDER, ...sender })
    .toString('latin1')
    .split('\r\n')
    .slice(0, -2)

const get = (...lines: string[]) => request('GET /x HTTP/1.1', 'Host: a.test', ...lines)
const TRUTH = ['X-Forwarded-For: 192.0.2.1', 'X-Forwarded-Proto: http', 'X-Forwarded-Host: a.test']

describe('the head that an app gets', () => {
  test('keeps bytes, order and repetitions, and says who sent it', () => {
    const lines = ['X-B:  two  ', 'x-a: one', 'X-B: \xe9', 'Cookie: a=b', 'Cookie: c=d', 'Expect: 100-continue']
    expect(sent(get(...lines))).toEqual(['GET /p HTTP/1.1', 'Host: a.test', ...lines, ...TRUTH, 'Connection: close'])
  })

  test('loses what concerns one hop, also what Connection names', () => {
    const hop = ['Connection: X-Hop, keep-alive', 'X-Hop: 1', 'Keep-Alive: 1', 'TE: trailers', 'Proxy-Authorization: x']
    expect(sent(get(...hop, 'Upgrade: h2c'))).toEqual([
      ...['GET /p HTTP/1.1', 'Host: a.test', ...TRUTH],
      'Connection: close',
    ])
  })

  test('loses what a client only claims of itself', () => {
    const claims = [
      'X-Forwarded-For: 1.1.1.1',
      'x-forwarded-proto: https',
      'X-Forwarded-Host: b',
      'Forwarded: for=1.1.1.1',
    ]
    expect(sent(get(...claims)).join('\n')).not.toMatch(/1\.1\.1\.1|https|: b$/m)
  })

  test('believes a trusted proxy and adds its address', () => {
    const claims = [
      'X-Forwarded-For: 1.1.1.1',
      'X-Forwarded-For: 2.2.2.2',
      'X-Forwarded-Proto: https',
      'X-Forwarded-Host: b',
    ]
    expect(sent(get(...claims), { trusted: true }).slice(2, 5)).toEqual([
      'X-Forwarded-For: 1.1.1.1, 2.2.2.2, 192.0.2.1',
      'X-Forwarded-Proto: https',
      'X-Forwarded-Host: b',
    ])
  })

  test('over TLS, and from a unix socket', () => {
    expect(sent(get(), { secure: true })).toContain('X-Forwarded-Proto: https')
    expect(sent(get(), { address: 'unix' }).join('\n')).not.toContain('X-Forwarded-For')
  })

  test('has the framing of the body that follows', () => {
    expect(sent(request('POST /x HTTP/1.1', 'Host: a.test', 'Transfer-Encoding: chunked')).at(-2)).toBe(
      'Transfer-Encoding: chunked',
    )
    const twice = request('POST /x HTTP/1.1', 'Host: a.test', 'Content-Length: 3', 'Content-Length: 3')
    expect(sent(twice).filter((line) => line.startsWith('Content-Length'))).toHaveLength(1)
  })

  test('asks for a WebSocket where the client does, and for nothing else', () => {
    const upgrade = (method: string, ...lines: string[]) => request(`${method} /x HTTP/1.1`, 'Host: a.test', ...lines)
    const both = ['Connection: keep-alive, Upgrade', 'Upgrade: WebSocket']
    expect(wantsWebSocket(upgrade('GET', ...both))).toBe(true)
    expect(sent(upgrade('GET', ...both, 'Sec-WebSocket-Key: k')).slice(-2)).toEqual([
      'Connection: Upgrade',
      'Upgrade: websocket',
    ])
    expect(wantsWebSocket(upgrade('POST', ...both))).toBe(false)
    expect(wantsWebSocket(upgrade('GET', ...both, 'Content-Length: 1'))).toBe(false)
    expect(wantsWebSocket(upgrade('GET', 'Upgrade: websocket'))).toBe(false)
    expect(wantsWebSocket(upgrade('GET', 'Connection: Upgrade', 'Upgrade: h2c'))).toBe(false)
    expect(wantsWebSocket(request('GET /x HTTP/1.0', 'Host: a', ...both))).toBe(false)
  })
})

test('the head that the API gets tells the peer, whatever the client claims to be', () => {
  const head = get('X-Orb-Peer: secret 1.1.1.1', 'X-Forwarded-For: 9.9.9.9')
  const peer = { name: 'x-orb-peer', value: 's 192.0.2.1', line: 'x-orb-peer: s 192.0.2.1' }
  expect(apiRequestHead(head, 'a.test', '/x', peer).toString().split('\r\n').slice(1, -2)).toEqual([
    ...['Host: a.test', 'X-Forwarded-For: 9.9.9.9', 'x-orb-peer: s 192.0.2.1', 'Connection: close'],
  ])
})

describe('the answer', () => {
  const form = (head: RequestHead, close: boolean, ...lines: string[]) => {
    const { head: bytes, ...rest } = answerForm(head, answer(wantsWebSocket(head), ...lines), close)
    return { ...rest, lines: bytes.toString('latin1').split('\r\n').slice(0, -2) }
  }
  const old = request('GET /x HTTP/1.0', 'Host: a.test', 'Connection: keep-alive')

  test('with a length stays as it is', () => {
    const lines = ['HTTP/1.1 299 Own \xe9', 'Content-Length: 2', 'Set-Cookie: a', 'set-cookie: b']
    expect(form(get(), false, ...lines, 'Connection: close')).toEqual({ chunked: false, close: false, lines })
    expect(form(get(), true, ...lines).lines).toEqual([...lines, 'Connection: close'])
    expect(form(old, false, ...lines).lines).toEqual([...lines, 'Connection: keep-alive'])
  })

  test('that ends with its connection goes out in chunks, or ends the old client’s connection', () => {
    expect(form(get(), false, 'HTTP/1.0 200 OK')).toEqual({
      ...{ chunked: true, close: false },
      lines: ['HTTP/1.1 200 OK', 'Transfer-Encoding: chunked'],
    })
    expect(form(old, false, 'HTTP/1.1 200 OK', 'Transfer-Encoding: chunked')).toEqual({
      ...{ chunked: false, close: true },
      lines: ['HTTP/1.1 200 OK', 'Connection: close'],
    })
  })

  test('that switches to a WebSocket', () => {
    const head = get('Connection: Upgrade', 'Upgrade: websocket')
    const lines = ['HTTP/1.1 101 Switching Protocols', 'Sec-WebSocket-Accept: x']
    expect(form(head, false, ...lines, 'Upgrade: websocket', 'Connection: upgrade').lines).toEqual([
      ...lines,
      ...['Connection: Upgrade', 'Upgrade: websocket'],
    ])
    expect(() => answer(false, ...lines)).toThrow('nobody asked')
  })
})
