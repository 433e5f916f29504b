import type { Socket } from 'bun'
import { messageOf, OrbError } from '../errors.ts'
import { log } from '../log.ts'
import { type RequestHead, RequestParser } from './http1.ts'
import type { Backend } from './ingress-backend.ts'
import { type ClientIo, Exchange } from './ingress-exchange.ts'
import { refusal } from './refusal.ts'

/** Requests and WebSocket bytes that came before it was their turn. */
const MAX_BACKLOG_BYTES = 64 * 1024
/** A client that says nothing between two requests, or does not finish a head, is let go after this. */
const IDLE_S = 75
/** After an error the connection stays half open this long: closing at once would reset it under the answer. */
const LINGER_MS = 5_000

/** Where a request goes, and the head that it goes with. */
export interface Routed {
  backend: Backend
  head: Buffer
}

/** Decides by the head alone. @throws OrbError */
export type Route = (head: RequestHead, address: string) => Routed

/** One connection from outside: takes its requests one after another, each to where its Host says. */
export class ClientConnection implements ClientIo {
  private readonly parser: RequestParser
  private exchange: Exchange | null = null
  /** Of the request that is being read, once it is known. */
  private head: RequestHead | null = null
  private tunnel = false
  private backlog: Buffer[] = []
  private backlogBytes = 0
  private feeding = false
  /** Inside a request whose head was accepted. */
  private inBody = false
  private paused = false
  private lingering = false
  private closed = false
  private timer: Timer | undefined

  constructor(
    private readonly socket: Socket<ClientConnection>,
    readonly address: string,
    private readonly route: Route,
    private readonly accepting: () => boolean,
    private readonly onClosed: (connection: ClientConnection) => void,
  ) {
    this.parser = new RequestParser({
      onHead: (head) => this.onHead(head),
      onBody: (bytes) => this.exchange?.onBody(bytes),
      onEnd: () => {
        this.inBody = false
        this.exchange?.onRequestEnd()
      },
    })
    socket.timeout(IDLE_S)
  }

  /** A request is open on it; a WebSocket is none, unless it is closed from behind. */
  get busy(): boolean {
    return this.exchange !== null && (!this.tunnel || this.exchange.closesWebSockets)
  }

  onData(bytes: Buffer): void {
    if (this.lingering || this.closed) return
    if (this.tunnel) {
      this.exchange?.fromClient(bytes)
      return
    }
    if (this.exchange === null || !this.parser.ended) {
      this.feed(bytes)
      return
    }
    this.keep(bytes)
  }

  onDrain(): void {
    this.exchange?.onClientDrain()
  }

  onClose(): void {
    if (this.closed) return
    this.closed = true
    clearTimeout(this.timer)
    this.backlog = []
    this.onClosed(this)
    const { exchange } = this
    this.exchange = null
    exchange?.onClientGone()
  }

  /** Nothing came for too long. */
  onTimeout(): void {
    if (this.exchange === null) this.abort()
  }

  /** Breaks the connection off. */
  abort(): void {
    this.onClose()
    this.socket.terminate()
  }

  write(bytes: Uint8Array): number {
    return this.closed ? 0 : Math.max(0, this.socket.write(bytes))
  }

  pauseReading(): void {
    if (this.closed || this.paused) return
    this.paused = true
    this.socket.pause()
  }

  resumeReading(): void {
    if (this.closed || !this.paused) return
    this.paused = false
    this.socket.resume()
  }

  upgraded(): void {
    this.tunnel = true
    this.resumeReading()
    const early = this.takeBacklog()
    if (early.length > 0) this.exchange?.fromClient(early)
  }

  over(next: 'continue' | 'close' | 'abort'): void {
    this.exchange = null
    if (this.closed) return
    if (next === 'abort') {
      this.abort()
      return
    }
    if (next === 'close' || !this.accepting()) {
      this.closeInOrder()
      return
    }
    this.resumeReading()
    this.socket.timeout(IDLE_S)
    if (this.feeding) return
    const waiting = this.takeBacklog()
    if (waiting.length > 0) this.feed(waiting)
  }

  private keep(bytes: Buffer): void {
    this.backlog.push(bytes)
    this.backlogBytes += bytes.length
    if (this.backlogBytes > MAX_BACKLOG_BYTES) this.pauseReading()
  }

  private takeBacklog(): Buffer {
    const bytes = Buffer.concat(this.backlog)
    this.backlog = []
    this.backlogBytes = 0
    return bytes
  }

  private feed(bytes: Buffer): void {
    this.feeding = true
    let rest = bytes
    try {
      while (rest.length > 0 && !this.closed && !this.lingering) {
        if (this.parser.ended) {
          if (this.exchange !== null) break
          this.parser.next()
          this.head = null
        }
        rest = rest.subarray(this.parser.push(rest))
      }
    } catch (error) {
      this.refuse(error)
      rest = EMPTY
    } finally {
      this.feeding = false
    }
    if (rest.length > 0 && this.exchange !== null) this.keep(rest)
    this.exchange?.flush()
  }

  private onHead(head: RequestHead): void {
    this.head = head
    if (!this.accepting()) throw new OrbError('shutting_down', 'The server is stopping.')
    const { backend, head: bytes } = this.route(head, this.address)
    this.inBody = true
    this.socket.timeout(0)
    this.exchange = new Exchange(backend, this, head, bytes, this.accepting)
    this.exchange.start()
  }

  /** What the parser or the route threw. */
  private refuse(error: unknown): void {
    if (!(error instanceof OrbError)) log('error', 'public request failed', { error: messageOf(error) })
    const answer = error instanceof OrbError ? error : new OrbError('internal', 'The request failed.')
    this.lingering = true
    if (this.exchange !== null) {
      this.exchange.fail(answer, true)
      return
    }
    // In a body whose request was answered already there is nothing left to say.
    if (!this.inBody) this.write(refusal(answer, this.head, this.address, true))
    this.closeInOrder()
  }

  private closeInOrder(): void {
    this.backlog = []
    if (!this.lingering && !this.inBody) {
      this.socket.end()
      return
    }
    this.lingering = true
    this.resumeReading()
    this.socket.shutdown()
    this.timer = setTimeout(() => this.abort(), LINGER_MS)
  }
}

const EMPTY = Buffer.alloc(0)
