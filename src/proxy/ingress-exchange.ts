import { OrbError } from '../errors.ts'
import { log } from '../log.ts'
import { encodeChunk } from './headers.ts'
import { type RequestHead, type ResponseHead, ResponseParser } from './http1.ts'
import type { Backend } from './ingress-backend.ts'
import { answerForm, interimHead, wantsWebSocket } from './ingress-head.ts'
import type { Link, LinkOwner } from './ingress-link.ts'
import type { Visit } from './ingress-types.ts'
import { refusal } from './refusal.ts'

/** What is kept of a request while its app cannot take it; beyond this the client is not read any more. */
const MAX_QUEUED_BYTES = 64 * 1024

const FIRST_ERROR_STATUS = 400

/** The client's connection, as one exchange sees it. */
export interface ClientIo {
  /** Of the client; `unix` on a socket. */
  readonly address: string
  /** Returns how many bytes the kernel took. What it left is asked for again by `onDrain`. */
  write(bytes: Uint8Array): number
  pauseReading(): void
  resumeReading(): void
  /** It is a WebSocket from now on: all that the client sends is for `fromClient`. */
  upgraded(): void
  /** How the exchange leaves the connection: ready for the next, to be closed in order, or to be broken off. */
  over(next: 'continue' | 'close' | 'abort'): void
}

/** One request and its answer, or a WebSocket: passes bytes both ways, and none to an agent that does not run. */
export class Exchange implements LinkOwner {
  private readonly parser: ResponseParser
  private readonly visit: Visit
  private link: Link | null = null
  private queue: Uint8Array[]
  private queued: number
  private requestWhole = false
  private backlogged = false
  private waitsForGate = false
  private clientGone = false

  /** Of the answer, not taken by the client's kernel yet. */
  private pending: Uint8Array | null = null
  private batch: Uint8Array[] | null = null
  private headWritten = false
  private chunked = false
  private mustClose: boolean
  private tunnel = false
  private final: 'continue' | 'close' | 'abort' | null = null
  private isOver = false

  constructor(
    private readonly backend: Backend,
    private readonly io: ClientIo,
    private readonly request: RequestHead,
    /** The request's head as the backend gets it. */
    head: Buffer,
    private readonly mayKeepAlive: () => boolean,
  ) {
    this.mustClose = !request.keepAlive
    this.queue = [head]
    this.queued = head.length
    this.visit = backend.begin()
    this.parser = new ResponseParser(
      {
        onHead: (answer) => this.onHead(answer),
        onBody: (bytes) => this.send(this.chunked ? encodeChunk(bytes, false) : bytes),
        onEnd: () => this.onEnd(),
        onInterim: (status, reason, headers) => {
          if (request.minorVersion === 1) this.send(interimHead(status, reason, headers))
        },
      },
      request.method,
      wantsWebSocket(request),
    )
  }

  get closesWebSockets(): boolean {
    return this.backend.closesWebSockets
  }

  /** To be called once `this` is known to the connection: it may end the exchange at once. */
  start(): void {
    this.backend
      .connect(() => this.isOver)
      .then((link) => {
        if (this.isOver) {
          this.backend.release(link, 'destroy')
          return
        }
        this.link = link
        link.owner = this
        if (link.closed) this.onClose()
        else this.flush()
      })
      .catch((error) => this.failWith(error))
  }

  /* ---- client to app ---- */

  onBody(bytes: Uint8Array): void {
    if (this.isOver || bytes.length === 0) return
    this.enqueue(this.request.framing.kind === 'chunked' ? encodeChunk(bytes, false) : bytes)
  }

  onRequestEnd(): void {
    this.requestWhole = true
    if (!this.isOver && this.request.framing.kind === 'chunked') this.enqueue(encodeChunk(new Uint8Array(0), true))
  }

  /** Bytes of a WebSocket. */
  fromClient(bytes: Uint8Array): void {
    if (this.isOver) return
    this.visit.touch()
    this.enqueue(bytes)
    this.flush()
  }

  /** The bytes that came together are all taken: now is the time to pass them on. */
  flush(): void {
    while (!this.isOver && this.link !== null && this.queue.length > 0 && !this.waitsForGate) {
      const gate = this.backend.gate()
      if (gate !== undefined) {
        this.waitFor(gate)
        break
      }
      const bytes = this.queue.length === 1 ? (this.queue[0] ?? EMPTY) : Buffer.concat(this.queue)
      const taken = this.link.write(bytes)
      this.queue = taken < bytes.length ? [bytes.subarray(taken)] : []
      this.queued = bytes.length - taken
      if (this.queued > 0) break
    }
    if (this.isOver) return
    if (this.queued > MAX_QUEUED_BYTES !== this.backlogged) {
      this.backlogged = !this.backlogged
      if (this.backlogged) this.io.pauseReading()
      else this.io.resumeReading()
    }
    if (this.clientGone && this.queued === 0) this.finish('abort')
  }

  /** The client has closed. A WebSocket's last bytes still go to the app. */
  onClientGone(): void {
    if (this.isOver) return
    this.clientGone = true
    this.pending = null
    if (!this.tunnel || this.queued === 0) this.finish('abort')
  }

  onClientDrain(): void {
    const { pending } = this
    if (pending === null) return
    this.pending = null
    this.write(pending)
    if (this.pending !== null) return
    this.link?.resume()
    this.settle()
  }

  private enqueue(bytes: Uint8Array): void {
    this.queue.push(bytes)
    this.queued += bytes.length
  }

  private waitFor(gate: Promise<void>): void {
    this.waitsForGate = true
    gate
      .finally(() => {
        this.waitsForGate = false
      })
      .then(() => this.flush())
      .catch((error) => this.failWith(error))
  }

  /* ---- app to client ---- */

  onData(bytes: Buffer): void {
    if (this.tunnel) {
      this.write(bytes)
      return
    }
    this.parse(() => {
      const taken = this.parser.push(bytes)
      if (this.tunnel) this.send(bytes.subarray(taken))
    })
  }

  onDrain(): void {
    this.flush()
  }

  onClose(): void {
    if (this.isOver || this.final !== null) return
    if (this.tunnel) {
      this.final = 'close'
      this.settle()
      return
    }
    this.parse(() => {
      if (!this.parser.close() || !this.parser.ended) throw unreachable('it closed the connection before its answer')
    })
  }

  /** Answers with an error of orb's own where the answer has not begun, else breaks it off. */
  fail(error: OrbError, close = false): void {
    if (this.isOver || this.final !== null) return
    if (this.headWritten) {
      this.finish('abort')
      return
    }
    this.headWritten = true
    if (close || !this.requestWhole || !this.mayKeepAlive()) this.mustClose = true
    this.final = this.mustClose ? 'close' : 'continue'
    this.write(refusal(error, this.request, this.io.address, this.mustClose))
    this.settle()
  }

  private failWith(error: unknown): void {
    if (error instanceof OrbError) {
      this.fail(error)
      return
    }
    log('error', 'public request failed', { error })
    this.fail(new OrbError('internal', 'The request failed.', {}, { cause: error }))
  }

  /** Lets the parser send piece by piece, and writes it in one. */
  private parse(work: () => void): void {
    if (this.isOver || this.final !== null) return
    const batch: Uint8Array[] = []
    this.batch = batch
    let failure: unknown = null
    try {
      work()
    } catch (error) {
      failure = error
    }
    this.batch = null
    if (batch.length > 0) this.write(batch.length === 1 ? (batch[0] ?? EMPTY) : Buffer.concat(batch))
    if (failure !== null) this.fail(failure instanceof OrbError ? asUnreachable(failure) : unreachable('it failed'))
    else this.settle()
  }

  private onHead(answer: ResponseHead): void {
    // The rest of a request that was refused early is not read: whoever sends it must not use the connection again.
    const unread = answer.status >= FIRST_ERROR_STATUS && !this.requestWhole
    const form = answerForm(this.request, answer, this.mustClose || unread || !this.mayKeepAlive())
    this.headWritten = true
    this.chunked = form.chunked
    this.mustClose = form.close
    this.send(form.head)
    if (answer.status !== 101) return
    this.tunnel = true
    this.visit.upgraded()
    this.io.upgraded()
  }

  private onEnd(): void {
    if (this.tunnel || this.final !== null) return
    if (this.chunked) this.send(encodeChunk(EMPTY, true))
    // What is left of a request that was answered early is not wanted any more.
    this.final = this.mustClose || !this.requestWhole ? 'close' : 'continue'
  }

  private send(bytes: Uint8Array): void {
    if (bytes.length === 0) return
    if (this.batch !== null) this.batch.push(bytes)
    else this.write(bytes)
  }

  private write(bytes: Uint8Array): void {
    if (this.isOver || this.clientGone) return
    if (this.pending !== null) {
      this.pending = Buffer.concat([this.pending, bytes])
      return
    }
    const taken = this.io.write(bytes)
    if (taken >= bytes.length) return
    this.pending = bytes.subarray(taken)
    this.link?.pause()
  }

  private settle(): void {
    if (this.final !== null && this.pending === null) this.finish(this.final)
  }

  private finish(next: 'continue' | 'close' | 'abort'): void {
    if (this.isOver) return
    this.isOver = true
    this.queue = []
    this.pending = null
    const { link } = this
    this.link = null
    if (link !== null) this.backend.release(link, next === 'abort' && !this.tunnel ? 'destroy' : 'end')
    this.visit.end()
    if (!this.clientGone) this.io.over(next)
  }
}

const EMPTY = new Uint8Array(0)

const unreachable = (why: string): OrbError => new OrbError('app_unreachable', `The app cannot be reached: ${why}.`)

/** What the parser says of an answer is said of a malformed request elsewhere. */
const asUnreachable = (error: OrbError): OrbError =>
  error.code === 'invalid_request' ? unreachable('its answer is not valid HTTP') : error
