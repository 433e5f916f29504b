import type { Socket } from 'bun'
import { messageOf, OrbError } from '../errors.ts'
import { log } from '../log.ts'
import { errorAnswer } from './error-answer.ts'
import { type RequestHead, RequestParser } from './http1.ts'
import { connectionOptions, type Header } from './http1-head.ts'
import { type Delivered, Turn, type TurnContext, type TurnIo } from './turn.ts'
import type { LlmPeer } from './types.ts'

/** Orb Cloud contract §11.1 and §20. */
export const MAX_REQUEST_BODY_BYTES = 64 * 1024 * 1024
/** Pipelined requests that wait for the answer before them. */
const MAX_BACKLOG_BYTES = 64 * 1024
/** After an error the connection stays half open this long: closing at once would reset it under the answer. */
const LINGER_MS = 5_000
/** A lost connection answers a delivered packet with a reset within a round trip on the same host. */
const CONFIRM_MS = 2_000
const CONTINUE = Buffer.from('HTTP/1.1 100 Continue\r\n\r\n')

/** One connection of a process in a computer: takes its requests one after another. */
export class AgentConnection implements TurnIo {
  /** At its other end. */
  readonly port: number
  private readonly parser: RequestParser
  private turn: Turn | null = null
  private backlog: Buffer[] = []
  private backlogBytes = 0
  private bodyBytes = 0
  private feeding = false
  /** Inside a request whose head was accepted. */
  private inBody = false
  private paused = false
  private lingering = false
  private closed = false
  private timer: Timer | undefined
  private delivered: (Delivered & { timer: Timer }) | null = null

  constructor(
    private readonly context: TurnContext,
    readonly peer: LlmPeer,
    private readonly socket: Socket<AgentConnection | null>,
    private readonly accepting: () => boolean,
    private readonly onClosed: (connection: AgentConnection) => void,
  ) {
    this.port = socket.remotePort
    this.parser = new RequestParser({
      onHead: (head) => this.onHead(head),
      onBody: (bytes) => this.onBody(bytes),
      onEnd: () => {
        this.inBody = false
        this.turn?.onRequestEnd()
      },
    })
  }

  /** A call is open on it. */
  get busy(): boolean {
    return this.turn !== null
  }

  onData(bytes: Buffer): void {
    if (this.lingering || this.closed) return
    this.confirm()
    if (this.turn === null || !this.parser.ended) {
      this.feed(bytes)
      return
    }
    this.backlog.push(bytes)
    this.backlogBytes += bytes.length
    if (this.backlogBytes > MAX_BACKLOG_BYTES) this.pauseReading()
  }

  onDrain(): void {
    this.turn?.onDrain()
  }

  /** `broken`: by a reset, not by an orderly end. */
  onClose(broken: boolean): void {
    if (this.closed) return
    this.closed = true
    clearTimeout(this.timer)
    this.onClosed(this)
    const { turn, delivered } = this
    this.turn = null
    this.backlog = []
    turn?.onAgentGone()
    if (delivered === null || !broken) {
      this.confirm()
      return
    }
    clearTimeout(delivered.timer)
    this.context.kept.keep(this.peer.computerId, delivered.key, delivered.answer)
  }

  /** Breaks the connection off, as a reset by the agent would. */
  abort(): void {
    this.onClose(true)
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

  over(next: 'continue' | 'close' | 'abort', delivered: Delivered | null): void {
    this.turn = null
    if (this.closed) return
    if (delivered !== null) {
      this.delivered = { ...delivered, timer: setTimeout(() => this.confirm(), CONFIRM_MS) }
    }
    if (next === 'abort') {
      this.abort()
      return
    }
    if (next === 'close' || !this.accepting()) {
      this.closeInOrder()
      return
    }
    this.resumeReading()
    if (this.feeding || this.backlog.length === 0) return
    const waiting = Buffer.concat(this.backlog)
    this.backlog = []
    this.backlogBytes = 0
    this.feed(waiting)
  }

  private feed(bytes: Buffer): void {
    this.feeding = true
    let rest = bytes
    try {
      while (rest.length > 0 && !this.closed && !this.lingering) {
        if (this.parser.ended) {
          if (this.turn !== null) break
          this.parser.next()
        }
        rest = rest.subarray(this.parser.push(rest))
      }
    } catch (error) {
      this.refuse(error)
      rest = EMPTY
    } finally {
      this.feeding = false
    }
    if (rest.length > 0 && this.turn !== null) {
      this.backlog.push(rest)
      this.backlogBytes += rest.length
    }
    this.turn?.flush()
  }

  private onHead(head: RequestHead): void {
    this.bodyBytes = 0
    if (!this.accepting()) throw new OrbError('shutting_down', 'orb is shutting down.')
    checkRequest(head)
    this.inBody = true
    if (head.framing.kind !== 'none' && head.minorVersion === 1 && wantsContinue(head.headers)) this.write(CONTINUE)
    this.turn = new Turn(this.context, this.peer, this, head)
    this.turn.start()
  }

  private onBody(bytes: Uint8Array): void {
    this.bodyBytes += bytes.length
    if (this.bodyBytes > MAX_REQUEST_BODY_BYTES) throw tooLarge()
    this.turn?.onBody(bytes)
  }

  /** What the parser or a check threw. The agent is sending, so it runs: the answer may be written at once. */
  private refuse(error: unknown): void {
    if (!(error instanceof OrbError)) {
      log('error', 'llm proxy failed', { computer: this.peer.computerId, error: messageOf(error) })
    }
    this.lingering = true
    const answer = error instanceof OrbError ? error : new OrbError('internal', 'The LLM proxy failed.')
    if (this.turn !== null) {
      this.turn.fail(answer, true)
      return
    }
    // In a body whose request was answered already there is nothing left to say.
    if (!this.inBody) this.write(errorAnswer(answer, '', true))
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

  /** The agent has its last answer: it need not be kept any more. */
  private confirm(): void {
    if (this.delivered === null) return
    clearTimeout(this.delivered.timer)
    this.delivered.answer.discard()
    this.delivered = null
  }
}

const EMPTY = Buffer.alloc(0)

const tooLarge = (): OrbError =>
  new OrbError('payload_too_large', `The request body is over ${MAX_REQUEST_BODY_BYTES} bytes.`)

/** What the proxy does not do (Orb Cloud contract §11.1). */
function checkRequest(head: RequestHead): void {
  const { method, target, headers, framing } = head
  if (method === 'CONNECT')
    throw new OrbError('invalid_request', 'CONNECT is not supported: this is not a forward proxy.')
  if (!target.startsWith('/')) throw new OrbError('invalid_request', 'The request target must be a path.')
  const upgrades = headers.some(({ name, value }) => name === 'upgrade' && /\bwebsocket\b/i.test(value))
  if (upgrades && connectionOptions(headers).includes('upgrade')) {
    throw new OrbError('not_supported', 'WebSocket is not supported on the LLM proxy.')
  }
  if (framing.kind === 'length' && framing.length > MAX_REQUEST_BODY_BYTES) throw tooLarge()
}

const wantsContinue = (headers: Header[]): boolean =>
  headers.some(({ name, value }) => name === 'expect' && value.toLowerCase() === '100-continue')
