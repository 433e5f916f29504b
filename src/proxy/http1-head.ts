import { OrbError } from '../errors.ts'

export interface Header {
  /** Lower case. */
  name: string
  /** Without white space around it; each char is a byte (latin1). */
  value: string
  /** The line as it came, without CRLF; each char is a byte (latin1). */
  line: string
}

export type Framing = { kind: 'none' } | { kind: 'length'; length: number } | { kind: 'chunked' } | { kind: 'close' }

export const malformed = (what: string): OrbError => new OrbError('invalid_request', `Malformed HTTP message: ${what}.`)

/** The header lines of a head, whose first line is its start line. Throws OrbError. */
export function parseHeaders(lines: string[]): Header[] {
  const headers: Header[] = []
  for (let i = 1; i < lines.length; i++) headers.push(parseHeader(lines[i] ?? ''))
  return headers
}

export function parseHeader(line: string): Header {
  const [, name, value] =
    /^([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*((?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*$/.exec(
      line,
    ) ?? []
  if (name === undefined || value === undefined) throw malformed('a header line is not "name: value"')
  return { name: name.toLowerCase(), value, line }
}

/** RFC 9112 §6.3; null: the headers say nothing of a body. */
export function framingOf(headers: Header[], minorVersion: 0 | 1): Framing | null {
  let length: string | undefined
  let encoding: string | undefined
  for (const { name, value } of headers) {
    if (name === 'content-length') {
      if (length !== undefined && length !== value) throw malformed('Content-Length headers differ')
      length = value
    } else if (name === 'transfer-encoding') {
      if (encoding !== undefined) throw malformed('there is more than one Transfer-Encoding')
      encoding = value.toLowerCase()
    }
  }
  if (encoding !== undefined) {
    if (length !== undefined) throw malformed('it has both Content-Length and Transfer-Encoding')
    if (encoding !== 'chunked' || minorVersion === 0)
      throw malformed('Transfer-Encoding may only be chunked, in HTTP/1.1')
    return { kind: 'chunked' }
  }
  if (length === undefined) return null
  // 15 digits stay within the integers that a double holds.
  if (!/^\d{1,15}$/.test(length)) throw malformed('Content-Length is not a number')
  return { kind: 'length', length: Number(length) }
}

/** RFC 9112 §9.3 */
export function keepsAlive(headers: Header[], minorVersion: 0 | 1): boolean {
  const options = connectionOptions(headers)
  return minorVersion === 1 ? !options.includes('close') : options.includes('keep-alive')
}

/** What the Connection headers name, in lower case. */
export function connectionOptions(headers: Header[]): string[] {
  const options: string[] = []
  for (const { name, value } of headers) {
    if (name !== 'connection') continue
    for (const option of value.toLowerCase().split(',')) options.push(option.trim())
  }
  return options
}
