import type { OrbError } from '../errors.ts'
import type { ResponseHead } from './http1.ts'
import type { Bytes, JournalEntry } from './journal.ts'

/** Who takes an answer. Called back synchronously; may call the answer at any time. */
export interface AnswerConsumer {
  /** There is more to read, or the answer has ended or failed. */
  onProgress(): void
  /** The whole request has gone to the upstream. */
  onSent(): void
  /** The head of the response is there, and nothing behind it yet. */
  onHead(): void
  /** There is room again after `backlogged`. */
  onRoom(): void
  /** The reader sleeps or is away: hold as much as is permitted instead of slowing the upstream down. */
  holding(): boolean
  /** The reader has slept in this call: the answer stays whole for a replay. */
  slept(): boolean
}

/** An upstream's answer as its reader sees it: read by position, it can outlast a connection and be read again by another. */
export interface Answer {
  readonly head: ResponseHead | null
  readonly state: 'open' | 'complete' | 'failed'
  readonly error: OrbError | null
  /** The whole request has gone to the upstream. */
  readonly sent: boolean
  /** Position behind the last byte of the body so far. */
  readonly end: number
  /** Nothing of it was let go of: it can still be read from its beginning. */
  readonly replayable: boolean
  /** From now on `consumer` is called back; null: nobody. */
  attach(consumer: AnswerConsumer | null): void
  /** Some bytes of the body from position `at`. Good until the next call. */
  read(at: number): Buffer
  /** The reader has taken everything before `at`. */
  consume(at: number): void
  /** The reader is gone; another one will begin at the first byte. */
  rewind(): void
  /** Everything was written to the reader, whose kernel may still refuse it. */
  delivered(): void
  /** Ends the upstream call where it runs, and frees what is held. */
  discard(): void
}

/** A complete answer that a former orb left. */
export class StoredAnswer implements Answer {
  readonly state = 'complete'
  readonly error = null
  readonly sent = true
  readonly replayable = true

  constructor(
    readonly head: ResponseHead,
    private readonly body: Bytes,
    private readonly entry: JournalEntry,
  ) {}

  get end(): number {
    return this.body.end
  }

  attach(): void {}

  read(at: number): Buffer {
    return this.body.read(at)
  }

  consume(): void {}

  rewind(): void {
    this.entry.complete()
  }

  delivered(): void {
    this.entry.delivered()
  }

  discard(): void {
    this.body.dispose()
    this.entry.remove()
  }
}
