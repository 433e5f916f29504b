import { messageOf, OrbError } from '../errors.ts'
import type { Answer, AnswerConsumer } from './answer.ts'
import { CallRecord } from './call-record.ts'
import { encodeChunk } from './headers.ts'
import { HeldBody, HOLD_MEMORY_BYTES } from './hold.ts'
import { type ResponseHead, ResponseParser } from './http1.ts'
import type { Bytes, JournalEntry } from './journal.ts'
import type { Link, UpstreamLinks } from './upstream-link.ts'
import type { UpstreamTarget } from './upstream-url.ts'

/** Held of one response before orb stops reading upstream (Orb Cloud contract §11.4). */
const MAX_HELD_BYTES = 64 * 1024 * 1024
/** An agent that runs but reads slowly is to slow the upstream down, not to fill our disk. */
const MAX_BEHIND_BYTES = 256 * 1024
/** Request bytes waiting for the upstream before the agent is told to wait. */
const MAX_UNSENT_BYTES = 256 * 1024
/** Pieces up to this size are joined into one write. */
const JOIN_BYTES = 64 * 1024

export interface ExchangeOptions {
  links: UpstreamLinks
  spoolDir: string
  /** Longest wait for the response head and for each gap in the body. */
  timeoutMs: number
}

export interface ExchangeRequest {
  upstream: UpstreamTarget
  method: string
  head: Buffer
  chunked: boolean
}

/** One request to an upstream and its response. It lives apart from the agent's connection, which it can outlast. */
export class Exchange implements Answer {
  head: ResponseHead | null = null
  state: 'open' | 'complete' | 'failed' = 'open'
  error: OrbError | null = null
  sent = false

  private consumer: AnswerConsumer | null = null
  private readonly body: HeldBody
  private readonly parser: ResponseParser
  private link: Link | null = null
  private queue: Uint8Array[] = []
  private queued = 0
  private source: Bytes | null = null
  private sourceAt = 0
  private bodyEnded = false
  private wantsRoom = false
  private reading = true
  private consumed = 0
  private whole = true
  private readonly record: CallRecord
  private lastActivity = performance.now()
  private timer: Timer

  /** @param entry where the call is written down, or null for one that is not */
  constructor(
    private readonly options: ExchangeOptions,
    private readonly request: ExchangeRequest,
    entry: JournalEntry | null,
  ) {
    this.record = new CallRecord(entry)
    this.body = new HeldBody(options.spoolDir)
    this.parser = new ResponseParser(
      {
        onHead: (head) => {
          this.head = head
        },
        onBody: (bytes) => {
          this.letGoOfRead(bytes.length)
          this.body.append(bytes)
        },
        onEnd: () => this.complete(),
      },
      request.method,
    )
    this.timer = setTimeout(() => this.checkTime(), options.timeoutMs)
    this.enqueue(request.head)
    const idle = options.links.take(request.upstream)
    if (idle !== undefined) this.use(idle)
    else this.connect()
  }

  attach(consumer: AnswerConsumer | null): void {
    this.consumer = consumer
    if (this.state === 'open') this.flow()
  }

  /** Queues a piece of the request's body; `flush` sends it. */
  write(bytes: Uint8Array): void {
    if (this.state !== 'open') return
    this.enqueue(this.request.chunked ? encodeChunk(bytes, false) : bytes)
  }

  /** The agent's request is whole, though perhaps not all of it was written here yet. */
  requestWhole(key: string): void {
    if (this.state === 'open' && this.body.end === 0) this.record.requestWhole(key, this.request)
  }

  /** Sends the whole body from where it lies, and disposes of that. */
  sendBody(source: Bytes): void {
    if (this.state !== 'open') {
      source.dispose()
      return
    }
    this.source = source
    this.flush()
  }

  endBody(): void {
    if (this.request.chunked && this.state === 'open') this.enqueue(encodeChunk(EMPTY, true))
    this.bodyEnded = true
  }

  /** More request bytes wait than should: hold back until `onRoom`. */
  get backlogged(): boolean {
    if (this.queued <= MAX_UNSENT_BYTES) return false
    this.wantsRoom = true
    return true
  }

  flush(): void {
    const { link } = this
    if (link === null || this.state !== 'open') return
    for (;;) {
      this.refill()
      if (this.queue.length === 0) break
      const piece = this.nextPiece()
      const taken = link.write(piece)
      if (taken > 0) this.lastActivity = performance.now()
      this.queued -= taken
      if (taken < piece.length) {
        this.queue[0] = piece.subarray(taken)
        break
      }
      this.queue.shift()
    }
    if (this.wantsRoom && this.queued <= MAX_UNSENT_BYTES) {
      this.wantsRoom = false
      this.consumer?.onRoom()
    }
    if (this.queue.length > 0 || !this.bodyEnded || this.sent) return
    this.sent = true
    this.consumer?.onSent()
  }

  get end(): number {
    return this.body.end
  }

  get replayable(): boolean {
    return this.whole && this.state !== 'failed'
  }

  read(at: number): Buffer {
    return this.body.read(at)
  }

  consume(at: number): void {
    this.consumed = at
    if (!this.whole && at === this.body.end) this.body.forget()
    if (this.state === 'open') this.flow()
  }

  rewind(): void {
    this.consumed = 0
    this.recordAnswer()
  }

  delivered(): void {
    this.record.delivered()
  }

  discard(): void {
    this.consumer = null
    if (this.state === 'open') this.finish('failed')
    this.body.dispose()
    this.record.remove()
  }

  onData(bytes: Buffer): void {
    this.lastActivity = performance.now()
    const before = this.body.end
    const hadHead = this.head !== null
    let rest = bytes
    try {
      while (rest.length > 0 && !this.parser.ended) rest = rest.subarray(this.parser.push(rest))
    } catch (error) {
      this.fail(unreachable(`The upstream's answer is broken: ${messageOf(error)}`))
      return
    }
    if (this.parser.ended) {
      this.letGo(rest.length === 0)
      this.tell()
      return
    }
    if (this.body.end === before) {
      if (hadHead !== (this.head !== null)) this.consumer?.onHead()
      return
    }
    this.tell()
    if (this.state === 'open') this.flow()
  }

  onDrain(): void {
    this.flush()
  }

  onClose(broken: boolean): void {
    if (!broken && this.parser.close() && this.head !== null) {
      this.letGo(false)
      this.tell()
      return
    }
    const when = this.head === null ? 'before it answered' : 'in the middle of its answer'
    this.fail(unreachable(`The upstream closed the connection ${when}.`))
  }

  private connect(): void {
    this.options.links
      .connect(this.request.upstream)
      .then((link) => {
        if (this.state !== 'open') {
          this.options.links.release(link)
          return
        }
        this.lastActivity = performance.now()
        this.use(link)
        this.flush()
      })
      .catch((error) => this.fail(error instanceof OrbError ? error : unreachable(messageOf(error))))
  }

  private use(link: Link): void {
    this.link = link
    link.owner = this
    if (link.closed) this.onClose(true)
    else if (!this.reading) link.pause()
  }

  /** Takes from the source what the upstream can be given soon. */
  private refill(): void {
    const { source } = this
    if (source === null) return
    while (this.queued <= MAX_UNSENT_BYTES) {
      const piece = source.read(this.sourceAt)
      if (piece.length === 0) {
        this.dropSource()
        this.endBody()
        return
      }
      this.sourceAt += piece.length
      this.write(piece)
    }
  }

  private dropSource(): void {
    this.source?.dispose()
    this.source = null
  }

  private enqueue(bytes: Uint8Array): void {
    if (bytes.length === 0) return
    this.queue.push(bytes)
    this.queued += bytes.length
  }

  /** The first of the queue, joined with what follows while that is small: one system call, one packet. */
  private nextPiece(): Uint8Array {
    const first = this.queue[0] ?? EMPTY
    if (this.queue.length === 1 || first.length >= JOIN_BYTES) return first
    let size = 0
    let count = 0
    for (const piece of this.queue) {
      if (count > 0 && size + piece.length > JOIN_BYTES) break
      size += piece.length
      count++
    }
    if (count === 1) return first
    const joined = Buffer.concat(this.queue.splice(0, count), size)
    this.queue.unshift(joined)
    return joined
  }

  /** Before `more` bytes: a response that is too long to stay whole for a replay loses what was read. */
  private letGoOfRead(more: number): void {
    if (!this.whole) return
    const limit = (this.consumer?.slept() ?? true) ? MAX_HELD_BYTES : HOLD_MEMORY_BYTES
    if (this.body.end + more <= limit) return
    this.whole = false
    if (this.consumed === this.body.end) this.body.forget()
  }

  /** There is more of the response, or its end. */
  private tell(): void {
    this.recordAnswer()
    this.consumer?.onProgress()
    this.record.seen()
  }

  private recordAnswer(): void {
    const { head, body, consumer, record } = this
    if (head === null || !this.whole || body.end === 0) return
    record.answer(head, body, consumer?.slept() ?? true)
    if (this.state === 'complete' && head.status >= 200 && head.status <= 299) record.complete()
  }

  /** Decides whether the upstream is read. */
  private flow(): void {
    const held = this.body.end - (this.whole ? this.consumed : this.body.start)
    const limit = (this.consumer?.holding() ?? true) ? MAX_HELD_BYTES : MAX_BEHIND_BYTES
    const reading = this.reading ? held <= limit : held <= limit / 2
    if (reading === this.reading) return
    this.reading = reading
    this.lastActivity = performance.now()
    if (reading) this.link?.resume()
    else this.link?.pause()
  }

  private complete(): void {
    if (this.state === 'open') this.finish('complete')
  }

  private fail(error: OrbError): void {
    if (this.state !== 'open') return
    this.error = error
    this.finish('failed')
    this.consumer?.onProgress()
  }

  private finish(state: 'complete' | 'failed'): void {
    this.state = state
    clearTimeout(this.timer)
    this.dropSource()
    this.queue = []
    this.queued = 0
    if (state === 'failed') this.letGo(false)
    // The rest of a request that was answered early is not wanted any more.
    if (!this.wantsRoom) return
    this.wantsRoom = false
    this.consumer?.onRoom()
  }

  /** The connection goes back for other calls if both messages on it are over, else it is closed. */
  private letGo(clean: boolean): void {
    const { link } = this
    if (link === null) return
    this.link = null
    link.owner = null
    const reusable = clean && this.sent && this.head?.keepAlive === true && this.head.framing.kind !== 'close'
    if (!reusable) {
      link.destroy()
      return
    }
    if (!this.reading) link.resume()
    this.options.links.release(link)
  }

  /** The timer is not moved with each byte: when it fires it looks how long the silence has lasted. */
  private checkTime(): void {
    const silent = this.reading ? performance.now() - this.lastActivity : 0
    const left = this.options.timeoutMs - silent
    if (left > 0) {
      this.timer = setTimeout(() => this.checkTime(), left)
      return
    }
    const seconds = this.options.timeoutMs / 1000
    this.fail(new OrbError('upstream_timeout', `The upstream sent nothing for ${seconds} s.`))
  }
}

const EMPTY = Buffer.alloc(0)

const unreachable = (message: string): OrbError => new OrbError('upstream_unreachable', message)
