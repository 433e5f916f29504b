import { OrbError } from '../errors.ts'
import { log } from '../log.ts'
import type { Answer, AnswerConsumer } from './answer.ts'
import { errorAnswer } from './error-answer.ts'
import { Exchange, type ExchangeOptions } from './exchange.ts'
import { encodeChunk, encodeHead, endToEndHeaders } from './headers.ts'
import { HeldBody } from './hold.ts'
import type { RequestHead, ResponseHead } from './http1.ts'
import type { CallJournal, JournalEntry } from './journal.ts'
import { type KeptAnswers, replayKey } from './replay.ts'
import type { CallOutcome, LlmCall, LlmPeer } from './types.ts'
import { type UpstreamTarget, upstreamFor } from './upstream-url.ts'

export interface TurnContext extends ExchangeOptions {
  kept: KeptAnswers
  journal: CallJournal
}

/** A delivered answer that may still have to be kept: the agent slept, and its kernel has not taken it yet. */
export interface Delivered {
  key: string
  answer: Answer
}

/** The agent's connection, as one turn sees it. */
export interface TurnIo {
  /** Returns how many bytes the kernel took. What it left is asked for again by `onDrain`. */
  write(bytes: Uint8Array): number
  pauseReading(): void
  resumeReading(): void
  /** How the turn leaves the connection: ready for the next, to be closed in order, or to be broken off. */
  over(next: 'continue' | 'close' | 'abort', delivered: Delivered | null): void
}

/**
 * One request of an agent and its answer: sends the request upstream, holds the answer while the agent sleeps, and
 * writes it once the agent runs. Nothing is written before the first byte of the response's body, its end or a failure.
 */
export class Turn implements AnswerConsumer {
  private readonly call: LlmCall
  private readonly gated: boolean
  private readonly hasher: Bun.CryptoHasher | null
  private readonly entry: JournalEntry | null
  private key = ''
  /** The call of its own that this turn makes. */
  private exchange: Exchange | null = null
  /** Of that call, or of an earlier one. */
  private answer: Answer | null = null
  /** The request's body, where it must be known before anything is sent. */
  private buffer: HeldBody | null = null
  private upstream: UpstreamTarget | null = null
  private requestWhole = false
  private failure: OrbError | null = null
  private replay = false
  private mustClose: boolean

  private out: Uint8Array | null = null
  private headWritten = false
  private chunked = false
  private cursor = 0
  private final: 'continue' | 'close' | 'abort' | null = null
  private woken = false
  private waitsForGate = false
  private isOver = false

  constructor(
    private readonly context: TurnContext,
    private readonly peer: LlmPeer,
    private readonly io: TurnIo,
    private readonly request: RequestHead,
  ) {
    this.mustClose = !request.keepAlive
    this.gated = peer.agentTree
    this.call = peer.begin()
    const mayReplay = context.kept.any(peer.computerId)
    this.hasher = this.gated || mayReplay ? new Bun.CryptoHasher('sha256') : null
    this.entry = this.gated ? context.journal.begin(peer.computerId) : null
    if (mayReplay) this.buffer = new HeldBody(context.spoolDir)
  }

  /** To be called once `this` is known to the connection: it may end the turn at once. */
  start(): void {
    try {
      this.upstream = upstreamFor(this.peer.llm, this.request.target, this.request.headers)
    } catch (error) {
      if (!(error instanceof OrbError)) throw error
      this.fail(error)
      return
    }
    if (this.buffer === null) this.open(this.upstream)
  }

  onBody(bytes: Uint8Array): void {
    if (this.isOver) return
    this.hasher?.update(bytes)
    this.entry?.body(bytes)
    if (this.buffer !== null) this.buffer.append(bytes)
    else this.exchange?.write(bytes)
  }

  onRequestEnd(): void {
    this.requestWhole = true
    if (this.isOver) return
    if (this.hasher !== null) {
      this.key = replayKey(this.request.method, this.request.target, this.hasher.digest('hex'))
    }
    if (this.buffer === null) {
      this.exchange?.requestWhole(this.key)
      this.exchange?.endBody()
      return
    }
    const earlier = this.context.kept.take(this.peer.computerId, this.key)
    if (earlier !== undefined) this.join(earlier)
    else if (this.upstream !== null && this.failure === null) this.open(this.upstream)
  }

  /** The bytes that came together are all taken: now is the time to pass them on. */
  flush(): void {
    if (this.isOver) return
    this.exchange?.flush()
    if (this.exchange?.backlogged) this.io.pauseReading()
  }

  /** Answers with an error of orb's own where the answer has not begun, else breaks it off. */
  fail(error: OrbError, close = false): void {
    if (this.isOver || this.failure !== null) return
    this.failure = error
    if (close) this.mustClose = true
    this.answer?.discard()
    this.pump()
  }

  onDrain(): void {
    this.pump()
  }

  /** The agent's connection is gone. */
  onAgentGone(): void {
    if (!this.isOver) this.abandon(this.gated && this.call.slept())
  }

  onProgress(): void {
    this.pump()
  }

  onSent(): void {
    if (this.isOver || !this.gated || this.out !== null || this.headWritten) return
    this.call.waiting()
  }

  onHead(): void {
    if (!this.isOver && this.gated && !this.woken) this.call.answering()
  }

  onRoom(): void {
    if (!this.isOver) this.io.resumeReading()
  }

  holding(): boolean {
    return this.waitsForGate
  }

  slept(): boolean {
    return this.gated && !this.isOver && this.call.slept()
  }

  private open(upstream: UpstreamTarget): void {
    const { method, headers, framing } = this.request
    const lines = endToEndHeaders(headers).map(({ name, line }) =>
      name === 'host' ? `Host: ${upstream.authority}` : line,
    )
    if (!headers.some(({ name }) => name === 'host')) lines.unshift(`Host: ${upstream.authority}`)
    const chunked = framing.kind === 'chunked'
    if (chunked) lines.push('Transfer-Encoding: chunked')
    const head = encodeHead(`${method} ${upstream.target} HTTP/1.1`, lines)
    const exchange = new Exchange(this.context, { upstream, method, head, chunked }, this.entry)
    this.peer.ownCall()
    this.exchange = exchange
    this.answer = exchange
    exchange.attach(this)
    const { buffer } = this
    if (buffer === null) return
    this.buffer = null
    exchange.requestWhole(this.key)
    exchange.sendBody(buffer)
  }

  private join(earlier: Answer): void {
    this.dropBuffer()
    this.replay = true
    this.answer = earlier
    earlier.attach(this)
    if (earlier.sent && earlier.state === 'open' && earlier.end === 0) this.onSent()
    this.pump()
  }

  private dropBuffer(): void {
    this.buffer?.dispose()
    this.buffer = null
  }

  private pump(): void {
    while (!this.isOver && !this.waitsForGate) {
      this.out ??= this.nextOut()
      if (this.out === null) return
      const gate = this.gate()
      if (gate !== undefined) {
        this.holdFor(gate)
        return
      }
      const taken = this.out.length === 0 ? 0 : this.io.write(this.out)
      if (taken < this.out.length) {
        this.out = this.out.subarray(taken)
        return
      }
      this.out = null
      if (this.final !== null) {
        this.finish(this.final)
        return
      }
      this.answer?.consume(this.cursor)
    }
  }

  /** Undefined: write now. */
  private gate(): Promise<void> | undefined {
    if (!this.gated) return undefined
    if (this.woken) return this.call.writable()
    this.woken = true
    return this.call.wake() ?? this.call.writable()
  }

  private holdFor(gate: Promise<void>): void {
    this.waitsForGate = true
    gate
      .finally(() => {
        this.waitsForGate = false
      })
      .then(() => this.pump())
      .catch((error) => {
        if (!(error instanceof OrbError)) log('error', 'llm answer failed', { computer: this.peer.computerId, error })
        if (this.isOver) return
        this.abandon(true)
        this.io.over('abort', null)
      })
  }

  /** The next bytes for the agent, or null where there are none yet. Sets `final` with the last ones. */
  private nextOut(): Uint8Array | null {
    const { answer } = this
    if (this.failure === null && answer?.error != null && answer.end === this.cursor) this.failure = answer.error
    if (this.failure !== null) return this.failureOut(this.failure)
    if (answer === null || answer.head === null) return null
    const piece = answer.read(this.cursor)
    const last = answer.state === 'complete' && this.cursor + piece.length === answer.end
    if (piece.length === 0 && !last) return null
    this.cursor += piece.length
    const head = this.headWritten ? null : this.responseHead(answer.head)
    if (last) this.final = this.mustClose ? 'close' : 'continue'
    const body = this.chunked ? encodeChunk(piece, last) : piece
    if (head === null) return body
    this.headWritten = true
    return body.length === 0 ? head : Buffer.concat([head, body])
  }

  /** Nothing of the answer was written: an error instead of it. Else all that can be said is to break off. */
  private failureOut(failure: OrbError): Uint8Array {
    if (this.headWritten) {
      this.final = 'abort'
      return EMPTY
    }
    this.final = this.mustClose ? 'close' : 'continue'
    return errorAnswer(failure, this.request.method, this.mustClose)
  }

  private responseHead(head: ResponseHead): Buffer {
    const lines = endToEndHeaders(head.headers).map(({ line }) => line)
    const old = this.request.minorVersion === 0
    if (head.framing.kind === 'chunked' || head.framing.kind === 'close') {
      this.chunked = !old
      if (this.chunked) lines.push('Transfer-Encoding: chunked')
      else this.mustClose = true
    }
    if (this.replay) lines.push('X-Orb-Replay: 1')
    if (this.mustClose) lines.push('Connection: close')
    else if (old) lines.push('Connection: keep-alive')
    return encodeHead(`HTTP/1.1 ${head.status} ${head.reason}`, lines)
  }

  private finish(next: 'continue' | 'close' | 'abort'): void {
    const { answer } = this
    const delivered = this.unconfirmed()
    this.end(this.replay ? 'replayed' : this.failure === null ? 'delivered' : 'upstream_error')
    if (delivered === null) answer?.discard()
    else {
      answer?.attach(null)
      answer?.delivered()
    }
    this.io.over(next, delivered)
  }

  private unconfirmed(): Delivered | null {
    const { answer } = this
    const success = answer?.head != null && answer.head.status >= 200 && answer.head.status <= 299
    if (!success || answer.state !== 'complete' || !answer.replayable || !this.slept()) return null
    return { key: this.key, answer }
  }

  /** The answer can't be delivered any more: it stays for a replay if `keep`, else the upstream call ends. */
  private abandon(keep: boolean): void {
    const { answer } = this
    const whole = this.requestWhole && answer !== null && this.failure === null
    if (keep && whole && answer.sent && answer.replayable) {
      this.end('kept')
      this.context.kept.keep(this.peer.computerId, this.key, answer)
      return
    }
    this.end('client_closed')
    answer?.discard()
  }

  private end(outcome: CallOutcome): void {
    this.isOver = true
    this.out = null
    this.dropBuffer()
    // With a call of its own the entry is that call's.
    if (this.exchange === null) this.entry?.remove()
    if (this.exchange === null && !this.replay) this.peer.ownCall()
    this.call.end(outcome)
  }
}

const EMPTY = Buffer.alloc(0)
