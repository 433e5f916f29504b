import { describe, expect, test } from 'bun:test'
import { OrbError } from '../errors.ts'
import { encodeChunk, endToEndHeaders } from './headers.ts'
import { MAX_REQUEST_HEAD_BYTES, RequestParser, ResponseParser } from './http1.ts'
import type { Header } from './http1-head.ts'

interface Message {
  start: string
  headers: string[]
  body: string
  framing: string
  keepAlive: boolean
}

/** All messages in `bytes`, fed in pieces that end at `cuts`. */
function parse(kind: 'request' | 'response', bytes: Buffer, cuts: number[], method = 'POST'): Message[] {
  const messages: Message[] = []
  const body: Uint8Array[] = []
  const add = (start: string, head: { headers: Header[]; framing: { kind: string }; keepAlive: boolean }) =>
    messages.push({
      start,
      headers: head.headers.map((header) => header.line),
      body: '(unfinished)',
      framing: head.framing.kind,
      keepAlive: head.keepAlive,
    })
  const onBody = (piece: Uint8Array) => {
    expect(piece.length).toBeGreaterThan(0)
    body.push(Buffer.from(piece))
  }
  const onEnd = () => {
    messages.at(-1)!.body = Buffer.concat(body.splice(0)).toString('latin1')
  }
  const parser =
    kind === 'request'
      ? new RequestParser({ onHead: (head) => add(`${head.method} ${head.target}`, head), onBody, onEnd })
      : new ResponseParser({ onHead: (head) => add(`${head.status} ${head.reason}`, head), onBody, onEnd }, method)
  let from = 0
  for (const to of [...cuts, bytes.length]) {
    let piece = bytes.subarray(from, to)
    while (piece.length > 0) {
      if (parser.ended) parser.next()
      piece = piece.subarray(parser.push(piece))
    }
    from = to
  }
  expect(parser.close()).toBe(messages.at(-1)?.body !== '(unfinished)')
  return messages
}

const everyByte = (bytes: Buffer): number[] => Array.from(bytes, (_, i) => i)

const H = 'Host: a\r\n'
const good: [string, 'request' | 'response', string, Partial<Message>[]][] = [
  [
    'no body',
    'request',
    `GET /a?b=%20c HTTP/1.1\r\n${H}\r\n`,
    [{ start: 'GET /a?b=%20c', body: '', framing: 'none', keepAlive: true }],
  ],
  [
    'length',
    'request',
    `POST / HTTP/1.1\r\n${H}Content-Length: 5\r\n\r\nhello`,
    [{ body: 'hello', framing: 'length' }],
  ],
  ['length 0', 'request', `POST / HTTP/1.1\r\n${H}Content-Length: 0\r\n\r\n`, [{ body: '' }]],
  [
    'equal lengths',
    'request',
    `POST / HTTP/1.1\r\n${H}Content-Length: 2\r\ncontent-length: 2\r\n\r\nhi`,
    [{ body: 'hi' }],
  ],
  [
    'pipelined, with empty lines between',
    'request',
    `POST /1 HTTP/1.1\r\n${H}Content-Length: 3\r\n\r\nabc\r\n\r\nPOST /2 HTTP/1.1\r\n${H}Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\nGET /3 HTTP/1.1\r\n${H}\r\n`,
    [
      { start: 'POST /1', body: 'abc' },
      { start: 'POST /2', body: 'x' },
      { start: 'GET /3', body: '' },
    ],
  ],
  [
    'chunked with extensions and trailers',
    'request',
    `POST / HTTP/1.1\r\n${H}Transfer-Encoding: Chunked\r\n\r\n5;a=b;c="d"\r\nhello\r\n00A \r\n0123456789\r\n0;last\r\nX-Sum: 1\r\nY: \r\n\r\n`,
    [{ body: 'hello0123456789', framing: 'chunked' }],
  ],
  [
    'case, spaces, order, repeats and bytes of headers',
    'request',
    `GET / HTTP/1.1\r\nhOST:a\r\nX-a:  b \t\r\nx-A: \xe9\xff\r\nEmpty:\r\n\r\n`,
    [{ headers: ['hOST:a', 'X-a:  b \t', 'x-A: \xe9\xff', 'Empty:'] }],
  ],
  ['HTTP/1.0', 'request', 'GET / HTTP/1.0\r\n\r\n', [{ keepAlive: false }]],
  ['HTTP/1.0 keep-alive', 'request', 'GET / HTTP/1.0\r\nConnection: x, Keep-Alive\r\n\r\n', [{ keepAlive: true }]],
  ['close', 'request', `GET / HTTP/1.1\r\n${H}Connection: TE\r\nConnection: Close\r\n\r\n`, [{ keepAlive: false }]],
  [
    'until close',
    'response',
    'HTTP/1.1 200 OK\r\nA: b\r\n\r\nall\r\n\r\nof it',
    [{ start: '200 OK', body: 'all\r\n\r\nof it', framing: 'close' }],
  ],
  ['no reason', 'response', 'HTTP/1.1 200\r\nContent-Length: 1\r\n\r\nx', [{ start: '200 ', body: 'x' }]],
  [
    'odd reason',
    'response',
    'HTTP/1.0 599 N\xf6  pe\r\nContent-Length: 1\r\n\r\nx',
    [{ start: '599 N\xf6  pe', keepAlive: false }],
  ],
  [
    'interim answers',
    'response',
    'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok',
    [{ start: '200 OK', body: 'ok' }],
  ],
  ['204', 'response', 'HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n', [{ body: '', framing: 'none' }]],
  ['304', 'response', 'HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n', [{ body: '', framing: 'none' }]],
]

describe('messages, whole and cut anywhere', () => {
  test.each(good)('%s', (_name, kind, text, expected) => {
    const bytes = Buffer.from(text, 'latin1')
    const whole = parse(kind, bytes, [])
    expect(whole).toMatchObject(expected)
    expect(whole.length).toBe(expected.length)
    expect(parse(kind, bytes, everyByte(bytes))).toEqual(whole)
    for (let at = 1; at < bytes.length; at++) expect(parse(kind, bytes, [at])).toEqual(whole)
  })

  test('random pieces of many random messages', () => {
    let seed = 7
    const random = (below: number): number => {
      seed = (Math.imul(seed, 1_103_515_245) + 12_345) & 0x7fff_ffff
      return (seed >>> 8) % below
    }
    for (let round = 0; round < 200; round++) {
      const bodies = Array.from({ length: 1 + random(4) }, () =>
        Buffer.from(Array.from({ length: random(300) }, () => random(256))),
      )
      const bytes = Buffer.concat(
        bodies.flatMap((body, i) => {
          if (i % 2 === 0)
            return [Buffer.from(`POST /${i} HTTP/1.1\r\n${H}Content-Length: ${body.length}\r\n\r\n`), body]
          const cut = random(body.length + 1)
          return [
            Buffer.from(`POST /${i} HTTP/1.1\r\n${H}Transfer-Encoding: chunked\r\n\r\n`),
            encodeChunk(body.subarray(0, cut), false),
            encodeChunk(body.subarray(cut), true),
          ]
        }),
      )
      const cuts = Array.from({ length: random(12) }, () => random(bytes.length)).sort((a, b) => a - b)
      const found = parse('request', bytes, cuts)
      expect(found.map((message) => message.body)).toEqual(bodies.map((body) => body.toString('latin1')))
    }
  })

  test('an answer to HEAD has no body', () => {
    const bytes = Buffer.from('HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n')
    expect(parse('response', bytes, [], 'HEAD')).toMatchObject([{ body: '', framing: 'none' }])
  })

  test.each([
    ['a head', 'HTTP/1.1 200 OK\r\nA: '],
    ['a fixed body', 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc'],
    ['a chunked body', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n'],
    ['trailers', 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: b\r\n'],
  ])('close in %s is a cut', (_name, text) => {
    const parser = new ResponseParser({ onHead() {}, onBody() {}, onEnd() {} }, 'GET')
    parser.push(Buffer.from(text))
    expect(parser.close()).toBe(false)
  })
})

const POST = `POST / HTTP/1.1\r\n${H}`
const bad: [string, 'request' | 'response', string, string?][] = [
  ['length and chunked', 'request', `${POST}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`],
  ['chunked and length', 'request', `${POST}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n`],
  ['differing lengths', 'request', `${POST}Content-Length: 5\r\nContent-Length: 6\r\n\r\n`],
  ['list of lengths', 'request', `${POST}Content-Length: 5, 5\r\n\r\n`],
  ['signed length', 'request', `${POST}Content-Length: +5\r\n\r\n`],
  ['negative length', 'request', `${POST}Content-Length: -1\r\n\r\n`],
  ['hex length', 'request', `${POST}Content-Length: 0x5\r\n\r\n`],
  ['empty length', 'request', `${POST}Content-Length:\r\n\r\n`],
  ['huge length', 'request', `${POST}Content-Length: 9999999999999999999\r\n\r\n`],
  ['two encodings', 'request', `${POST}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n`],
  ['gzip, chunked', 'request', `${POST}Transfer-Encoding: gzip, chunked\r\n\r\n`],
  ['chunked, identity', 'request', `${POST}Transfer-Encoding: chunked, identity\r\n\r\n`],
  ['xchunked', 'request', `${POST}Transfer-Encoding: xchunked\r\n\r\n`],
  ['vertical tab before chunked', 'request', `${POST}Transfer-Encoding: \x0bchunked\r\n\r\n`],
  ['chunked in HTTP/1.0', 'request', 'POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n'],
  ['space before the colon', 'request', `${POST}Transfer-Encoding : chunked\r\n\r\n`],
  ['folded line', 'request', `${POST}X: a\r\n b\r\n\r\n`],
  ['folded first line', 'request', `POST / HTTP/1.1\r\n Host: a\r\n\r\n`],
  ['bare LF between headers', 'request', `${POST}X: a\nY: b\r\n\r\n`],
  ['bare LF ends the head', 'request', 'GET / HTTP/1.1\nHost: a\n\n'],
  ['LF CR LF', 'request', `${POST}X: a\r\n\n`],
  ['bare CR in a value', 'request', `${POST}X: a\rY: b\r\n\r\n`],
  ['NUL in a value', 'request', `${POST}X: a\0b\r\n\r\n`],
  ['no colon', 'request', `${POST}oops\r\n\r\n`],
  ['no name', 'request', `${POST}: x\r\n\r\n`],
  ['no Host', 'request', 'GET / HTTP/1.1\r\n\r\n'],
  ['two Hosts', 'request', `GET / HTTP/1.1\r\n${H}${H}\r\n`],
  ['HTTP/2 preface', 'request', 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'],
  ['HTTP/0.9', 'request', 'GET /\r\n\r\n'],
  ['two spaces in the request line', 'request', `GET  / HTTP/1.1\r\n${H}\r\n`],
  ['control character in the target', 'request', `GET /\x01 HTTP/1.1\r\n${H}\r\n`],
  ['TLS hello', 'request', '\x16\x03\x01\x02\x00\x01\n'],
  ['chunk size not hex', 'request', `${POST}Transfer-Encoding: chunked\r\n\r\n0x5\r\n`],
  ['chunk size negative', 'request', `${POST}Transfer-Encoding: chunked\r\n\r\n-1\r\n`],
  ['chunk size empty', 'request', `${POST}Transfer-Encoding: chunked\r\n\r\n\r\n`],
  ['chunk size too big', 'request', `${POST}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n`],
  ['chunk line with a bare LF', 'request', `${POST}Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n`],
  ['chunk extension with a CR', 'request', `${POST}Transfer-Encoding: chunked\r\n\r\n5;a\rb\r\nhello\r\n`],
  ['chunk data too long', 'request', `${POST}Transfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n`],
  ['chunk data ends with LF', 'request', `${POST}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\n0\r\n\r\n`],
  ['endless chunk extension', 'request', `${POST}Transfer-Encoding: chunked\r\n\r\n5;${'a'.repeat(5000)}`],
  [
    'endless trailers',
    'request',
    `${POST}Transfer-Encoding: chunked\r\n\r\n0\r\n${`X: ${'a'.repeat(1000)}\r\n`.repeat(40)}\r\n`,
  ],
  ['bad trailer', 'request', `${POST}Transfer-Encoding: chunked\r\n\r\n0\r\nGET / HTTP/1.1\r\n\r\n`],
  ['long head', 'request', `${POST}X: ${'a'.repeat(MAX_REQUEST_HEAD_BYTES)}`, 'headers_too_large'],
  ['long head in one piece', 'request', `${POST}${`X: ${'a'.repeat(100)}\r\n`.repeat(400)}\r\n`, 'headers_too_large'],
  [
    'answer: length and chunked',
    'response',
    'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n',
  ],
  ['answer: differing lengths', 'response', 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n'],
  ['answer: switched protocols', 'response', 'HTTP/1.1 101 Switching Protocols\r\n\r\n'],
  ['answer: not HTTP', 'response', 'SSH-2.0-OpenSSH\r\n\r\n'],
  ['answer: leading empty line', 'response', '\r\nHTTP/1.1 200 OK\r\n\r\n'],
  ['answer: status 099', 'response', 'HTTP/1.1 099 x\r\n\r\n'],
]

test.each(bad)('refused: %s', (_name, kind, text, code = 'invalid_request') => {
  const bytes = Buffer.from(text, 'latin1')
  for (const cuts of [[], everyByte(bytes)]) {
    let thrown: unknown
    try {
      parse(kind, bytes, cuts)
    } catch (error) {
      thrown = error
    }
    expect(thrown).toBeInstanceOf(OrbError)
    expect(thrown).toMatchObject({ code })
  }
})

test.each([
  [
    ['A: 1', 'Connection: close, X-Hop', 'x-hop: 1', 'b: 2', 'A: 1'],
    ['A: 1', 'b: 2', 'A: 1'],
  ],
  [['Keep-Alive: timeout=5', 'Proxy-Authorization: x', 'TE: trailers', 'Trailer: x', 'Upgrade: h2c'], []],
  [['Transfer-Encoding: chunked', 'Proxy-Connection: x', 'Content-Type: x'], ['Content-Type: x']],
  [
    ['Connection: content-length, host', 'Host: a', 'Content-Length: 3'],
    ['Host: a', 'Content-Length: 3'],
  ],
  [['Content-Length: 3', 'content-length: 3'], ['Content-Length: 3']],
])('of the headers %p go on: %p', (lines, expected) => {
  const headers = lines.map((line) => {
    const [name = '', value = ''] = line.split(': ')
    return { name: name.toLowerCase(), value, line }
  })
  expect(endToEndHeaders(headers).map((header) => header.line)).toEqual(expected)
})
