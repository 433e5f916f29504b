import { OrbError } from '../errors.ts'
import { type Framing, framingOf, type Header, keepsAlive, malformed, parseHeader, parseHeaders } from './http1-head.ts'

/**
 * An incremental parser of HTTP/1.0 and HTTP/1.1 messages (RFC 9112). It is strict where two readers of the same bytes
 * could disagree, because such a disagreement is how requests are smuggled:
 * - lines end with CRLF; a bare LF, and a CR anywhere else, is refused, in heads, chunk lines and trailers alike
 * - folded lines, white space before a colon and control characters in values are refused
 * - `Transfer-Encoding` with `Content-Length`, in HTTP/1.0, or with anything but `chunked`, is refused
 * - several `Content-Length` lines must be equal; a list in one line is refused
 * - empty lines before a request are skipped (RFC 9112 §2.2)
 */

/** A request's target and headers together (Orb Cloud contract §20). */
export const MAX_REQUEST_HEAD_BYTES = 32 * 1024
/** Answers of LLM services carry a few KiB of headers; far more is a broken upstream. */
const MAX_RESPONSE_HEAD_BYTES = 128 * 1024
/** One chunk-size line with its extensions, which nobody uses. */
const MAX_CHUNK_LINE_BYTES = 4 * 1024
const MAX_TRAILER_BYTES = 32 * 1024

interface Head {
  minorVersion: 0 | 1
  headers: Header[]
  framing: Framing
  /** The sender will take part in another message on this connection. */
  keepAlive: boolean
}

export interface RequestHead extends Head {
  method: string
  target: string
}

export interface ResponseHead extends Head {
  status: number
  /** Each char is a byte (latin1). */
  reason: string
}

export interface MessageEvents<H> {
  onHead(head: H): void
  /** A view into the bytes that were pushed. */
  onBody(bytes: Uint8Array): void
  onEnd(): void
}

export interface ResponseEvents extends MessageEvents<ResponseHead> {
  /** An interim response (RFC 9110 §15.2), after which another head follows; where it is left out they are dropped. */
  onInterim?(status: number, reason: string, headers: Header[]): void
}

type State = 'head' | 'fixed' | 'untilClose' | 'chunkLine' | 'chunkData' | 'chunkCrlf' | 'trailer' | 'ended'

const LF = 0x0a
const CR = 0x0d

/** What requests and responses share. `push` throws OrbError for a message that breaks the rules; the parser is then dead. */
abstract class MessageParser<H extends Head> {
  private state: State = 'head'
  /** Start of a head, chunk line or trailer whose end has not come yet. */
  private partial: Buffer | null = null
  /** Bytes left of a fixed body or of a chunk. */
  private left = 0
  private trailerBytes = 0

  constructor(
    private readonly events: MessageEvents<H>,
    private readonly maxHeadBytes: number,
  ) {}

  /** The message is over; `next` makes ready for another. */
  get ended(): boolean {
    return this.state === 'ended'
  }

  /** Between two messages: nothing of the next one has come. */
  get idle(): boolean {
    return this.state === 'head' && this.partial === null
  }

  next(): void {
    this.state = 'head'
  }

  /** Takes bytes up to the end of the message at most, and returns how many it took. */
  push(bytes: Buffer): number {
    let at = 0
    while (at < bytes.length && this.state !== 'ended') at = this.step(bytes, at)
    return at
  }

  /** The sender closed. True: that ended the message, or none had begun. False: the message is cut off. */
  close(): boolean {
    if (this.state === 'untilClose') this.end()
    return this.state === 'ended' || this.idle
  }

  /** The head, or null for an interim response, after which another head follows. */
  protected abstract parseHead(lines: string[]): H | null
  protected abstract tooLarge(): OrbError
  protected abstract skipsEmptyLines: boolean

  private step(bytes: Buffer, at: number): number {
    switch (this.state) {
      case 'head':
        return this.stepHead(bytes, at)
      case 'chunkLine':
        return this.stepLine(bytes, at, MAX_CHUNK_LINE_BYTES, (line) => this.beginChunk(line))
      case 'trailer':
        return this.stepLine(bytes, at, MAX_TRAILER_BYTES, (line) => this.takeTrailer(line))
      case 'chunkCrlf':
        return this.stepLine(bytes, at, 2, (line) => {
          if (line !== '') throw malformed('a chunk is longer than its size says')
          this.state = 'chunkLine'
        })
      default:
        return this.stepBody(bytes, at)
    }
  }

  private stepBody(bytes: Buffer, at: number): number {
    if (this.state === 'untilClose') {
      this.events.onBody(at === 0 ? bytes : bytes.subarray(at))
      return bytes.length
    }
    const end = Math.min(bytes.length, at + this.left)
    this.left -= end - at
    const { state, left } = this
    this.events.onBody(bytes.subarray(at, end))
    if (left > 0) return end
    if (state === 'fixed') this.end()
    else this.state = 'chunkCrlf'
    return end
  }

  private stepHead(bytes: Buffer, at: number): number {
    const before = this.partial?.length ?? 0
    const buffer =
      this.partial === null
        ? at === 0
          ? bytes
          : bytes.subarray(at)
        : Buffer.concat([this.partial, bytes.subarray(at)])
    let lineStart = before === 0 ? 0 : buffer.lastIndexOf(LF, before - 1) + 1
    const first = this.skipsEmptyLines ? skipEmptyLines(buffer) : 0
    lineStart = Math.max(lineStart, first)
    for (;;) {
      const lf = buffer.indexOf(LF, lineStart)
      if (lf === -1) break
      if (lf > first + this.maxHeadBytes) throw this.tooLarge()
      if (lf === 0 || buffer[lf - 1] !== CR) throw malformed('a line ends without CR')
      if (lf - 1 === lineStart) {
        this.partial = null
        this.takeHead(buffer.toString('latin1', first, Math.max(first, lf - 3)).split('\r\n'))
        return at + lf + 1 - before
      }
      lineStart = lf + 1
    }
    if (buffer.length - first > this.maxHeadBytes) throw this.tooLarge()
    this.partial = first === buffer.length ? null : buffer.subarray(first)
    return bytes.length
  }

  private takeHead(lines: string[]): void {
    const head = this.parseHead(lines)
    if (head === null) return
    const { framing } = head
    if (framing.kind === 'length') this.left = framing.length
    const empty = framing.kind === 'none' || (framing.kind === 'length' && framing.length === 0)
    this.state = empty ? 'ended' : BODY_STATE[framing.kind]
    this.events.onHead(head)
    if (empty) this.events.onEnd()
  }

  private stepLine(bytes: Buffer, at: number, maxBytes: number, take: (line: string) => void): number {
    const lf = bytes.indexOf(LF, at)
    const end = lf === -1 ? bytes.length : lf + 1
    const piece = bytes.subarray(at, end)
    const line = this.partial === null ? piece : Buffer.concat([this.partial, piece])
    if (line.length > maxBytes) throw malformed('a line of the chunked body is too long')
    if (lf === -1) {
      this.partial = line
      return end
    }
    this.partial = null
    if (line[line.length - 2] !== CR) throw malformed('a line ends without CR')
    const text = line.toString('latin1', 0, line.length - 2)
    if (text.includes('\r')) throw malformed('a line ends without CR')
    take(text)
    return end
  }

  private beginChunk(line: string): void {
    // 13 hexadecimal digits stay within the integers that a double holds.
    const size = /^([0-9a-f]{1,13})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?$/i.exec(line)?.[1]
    if (size === undefined) throw malformed('a chunk has no valid size')
    this.left = Number.parseInt(size, 16)
    this.trailerBytes = 0
    this.state = this.left === 0 ? 'trailer' : 'chunkData'
  }

  private takeTrailer(line: string): void {
    if (line === '') {
      this.end()
      return
    }
    parseHeader(line)
    this.trailerBytes += line.length
    if (this.trailerBytes > MAX_TRAILER_BYTES) throw malformed('the trailer section is too long')
  }

  private end(): void {
    this.state = 'ended'
    this.events.onEnd()
  }
}

const CLOSE: Framing = { kind: 'close' }
const BODY_STATE = { none: 'ended', length: 'fixed', chunked: 'chunkLine', close: 'untilClose' } as const

export class RequestParser extends MessageParser<RequestHead> {
  protected override skipsEmptyLines = true

  constructor(events: MessageEvents<RequestHead>) {
    super(events, MAX_REQUEST_HEAD_BYTES)
  }

  protected override tooLarge(): OrbError {
    return new OrbError('headers_too_large', `URL and headers together are over ${MAX_REQUEST_HEAD_BYTES} bytes.`)
  }

  protected override parseHead(lines: string[]): RequestHead {
    const [, method, target, minor] =
      /^([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e\x80-\xff]+) HTTP\/1\.([01])$/.exec(lines[0] ?? '') ?? []
    if (method === undefined || target === undefined) throw malformed('the request line is not HTTP/1.x')
    const minorVersion = minor === '1' ? 1 : 0
    const headers = parseHeaders(lines)
    const hosts = headers.filter((header) => header.name === 'host').length
    if (hosts > 1 || (hosts === 0 && minorVersion === 1)) throw malformed('there must be exactly one Host header')
    const framing = framingOf(headers, minorVersion) ?? { kind: 'none' }
    return { method, target, minorVersion, headers, framing, keepAlive: keepsAlive(headers, minorVersion) }
  }
}

export class ResponseParser extends MessageParser<ResponseHead> {
  protected override skipsEmptyLines = false

  /**
   * `method` is that of the request: an answer to HEAD has no body. Where the request asked for another protocol the head
   * of a 101 ends the message, and what follows is of that protocol.
   */
  constructor(
    private readonly responseEvents: ResponseEvents,
    private readonly method: string,
    private readonly mayUpgrade = false,
  ) {
    super(responseEvents, MAX_RESPONSE_HEAD_BYTES)
  }

  protected override tooLarge(): OrbError {
    return malformed(`the head is over ${MAX_RESPONSE_HEAD_BYTES} bytes`)
  }

  protected override parseHead(lines: string[]): ResponseHead | null {
    const [, minor, code, reason = ''] =
      /^HTTP\/1\.([01]) ([1-5]\d\d)(?: ([\t\x20-\x7e\x80-\xff]*))?$/.exec(lines[0] ?? '') ?? []
    if (code === undefined) throw malformed('the status line is not HTTP/1.x')
    const status = Number(code)
    const minorVersion = minor === '1' ? 1 : 0
    const headers = parseHeaders(lines)
    if (status === 101 && !this.mayUpgrade) {
      throw malformed('the protocol was switched although nobody asked for it')
    }
    if (status < 200 && status !== 101) {
      this.responseEvents.onInterim?.(status, reason, headers)
      return null
    }
    const declared = status === 101 ? null : (framingOf(headers, minorVersion) ?? CLOSE)
    const bodiless = declared === null || this.method === 'HEAD' || status === 204 || status === 304
    const framing: Framing = bodiless ? { kind: 'none' } : declared
    return { status, reason, minorVersion, headers, framing, keepAlive: keepsAlive(headers, minorVersion) }
  }
}

function skipEmptyLines(bytes: Buffer): number {
  let at = 0
  while (bytes[at] === CR && bytes[at + 1] === LF) at += 2
  return at
}
