import type { ExchangeRequest } from './exchange.ts'
import type { ResponseHead } from './http1.ts'

/**
 * Writes the calls of agents down, so that one that sleeps gets its answer although orb was killed meanwhile. What fails
 * here costs no call anything: it is then as if the call had not been written down. Services implement it.
 */
export interface CallJournal {
  /** A call of the computer's agent has begun. */
  begin(computerId: string): JournalEntry
  /** Complete answers that a former orb left undelivered, as far as their time is not over. To be asked once. */
  leftAnswers(): LeftAnswer[]
  /**
   * The calls of the computer that a former orb left without a byte of their answers, to be sent once more: that is
   * noted before this returns. Null when there is none, or when any of them cannot be sent again.
   */
  takeUnanswered(computerId: string): LeftCall[] | null
  /** Removes all of a computer. */
  forget(computerId: string): void
  /** What is written down now is for the next orb: nothing is added or removed any more. */
  close(): void
}

/** One call. Nothing of it throws. */
export interface JournalEntry {
  /** A piece of the request's body, without the framing that it came in. */
  body(bytes: Uint8Array): void
  /** The request is whole and about to go: from now on a crash of orb leaves it to be sent again. */
  sent(key: string, request: ExchangeRequest): void
  /** The answer goes to an agent that runs: there is nothing to send again any more. */
  answered(): void
  /** The answer is kept from its first byte on. */
  answer(head: ResponseHead): void
  append(bytes: Uint8Array): void
  /** The answer is whole and waits for an agent, over a crash too. */
  complete(): void
  /** The agent's kernel has the answer, which a crash need not keep. `complete` may follow. */
  delivered(): void
  /** The call is over. */
  remove(): void
}

/** Bytes by position. */
export interface Bytes {
  /** How many there are. */
  readonly end: number
  /** Some bytes from position `at` on; none at the end. Good until the next call. */
  read(at: number): Buffer
  /** Nothing may be called afterwards but this. */
  dispose(): void
}

export interface LeftCall {
  key: string
  request: ExchangeRequest
  body: Bytes
  entry: JournalEntry
}

export interface LeftAnswer {
  computerId: string
  key: string
  head: ResponseHead
  body: Bytes
  /** How much longer it is good. */
  ttlMs: number
  entry: JournalEntry
}
