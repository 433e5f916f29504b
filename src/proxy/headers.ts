import { connectionOptions, type Header } from './http1-head.ts'

/** RFC 9110 §7.6.1, with the Proxy- fields that concern this hop alone. */
const HOP_BY_HOP = new Set([
  'connection',
  'keep-alive',
  'proxy-connection',
  'proxy-authenticate',
  'proxy-authorization',
  'te',
  'trailer',
  'transfer-encoding',
  'upgrade',
])

/** Taking these away would change what the message is: no Connection header can name them away. */
const NEVER_DROPPED = new Set(['content-length', 'host'])

/**
 * The header lines that travel to the next hop: their bytes, order and repetitions as they came, without hop-by-hop
 * fields and what Connection names. Of equal Content-Length lines the first stays (RFC 9110 §8.6).
 */
export function endToEndHeaders(headers: Header[]): Header[] {
  const named = connectionOptions(headers)
  let lengths = 0
  return headers.filter(({ name }) => {
    if (name === 'content-length' && lengths++ > 0) return false
    return !HOP_BY_HOP.has(name) && (NEVER_DROPPED.has(name) || !named.includes(name))
  })
}

/** The bytes of a head: start line and header lines, each of latin1 chars without CRLF. */
export function encodeHead(startLine: string, lines: string[]): Buffer {
  return Buffer.from(`${startLine}\r\n${lines.length === 0 ? '' : `${lines.join('\r\n')}\r\n`}\r\n`, 'latin1')
}

const CRLF = Buffer.from('\r\n')
const LAST_CHUNK = Buffer.from('0\r\n\r\n')

/** `bytes` as one chunk of a chunked body, and the body's end behind it where `last` (RFC 9112 §7.1). */
export function encodeChunk(bytes: Uint8Array, last: boolean): Buffer {
  if (bytes.length === 0) return last ? LAST_CHUNK : Buffer.alloc(0)
  const size = Buffer.from(`${bytes.length.toString(16)}\r\n`, 'latin1')
  return Buffer.concat(last ? [size, bytes, CRLF, LAST_CHUNK] : [size, bytes, CRLF])
}
