import type { ExchangeRequest } from './exchange.ts'
import type { HeldBody } from './hold.ts'
import type { ResponseHead } from './http1.ts'
import type { JournalEntry } from './journal.ts'

/** Keeps the journal's entry of one call, if it has one, in step with what happens to the call. */
export class CallRecord {
  /** How much of the answer is written down; null: nothing is to be, so far. */
  private recorded: number | null = null

  constructor(private entry: JournalEntry | null) {}

  requestWhole(key: string, request: ExchangeRequest): void {
    this.entry?.sent(key, request)
  }

  /** There may be more of the answer than before. @param away its reader sleeps or is gone: the answer is to be kept */
  answer(head: ResponseHead, body: HeldBody, away: boolean): void {
    const { entry } = this
    if (entry === null) return
    if (this.recorded === null) {
      if (!away) return
      entry.answer(head)
      this.recorded = 0
    }
    while (this.recorded < body.end) {
      const piece = body.read(this.recorded)
      entry.append(piece)
      this.recorded += piece.length
    }
  }

  /** The reader has been told of what there is. */
  seen(): void {
    if (this.recorded === null) this.entry?.answered()
  }

  /** The answer is whole, and worth keeping. */
  complete(): void {
    if (this.recorded !== null) this.entry?.complete()
  }

  delivered(): void {
    this.entry?.delivered()
  }

  remove(): void {
    this.entry?.remove()
    this.entry = null
  }
}
