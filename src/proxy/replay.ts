import type { Exchange, ExchangeConsumer } from './exchange.ts'

/**
 * Answers whose agent lost its connection in or after a sleep (Orb Cloud contract §11.5), still running or complete, each
 * for one use by an identical request of the same computer.
 */
export interface KeptAnswers {
  /** Is there any for this computer? Only then must the bodies of its requests be hashed before they are sent. */
  any(computerId: string): boolean
  /** Takes over an exchange that nobody reads any more. */
  keep(computerId: string, key: string, exchange: Exchange): void
  /** Hands over the oldest one for the key. */
  take(computerId: string, key: string): Exchange | undefined
  /** Ends and drops all of a computer. */
  forget(computerId: string): void
  /** Ends and drops all. */
  clear(): void
}

/** What makes two requests of a computer identical: method, path with query, SHA-256 of the body in hex. */
export const replayKey = (method: string, target: string, bodyHash: string): string => `${bodyHash} ${method} ${target}`

/** Keeps them in memory (their bodies as HeldBody does), each for `ttlMs` after it is complete. Only a 2xx stays. */
export class MemoryKeptAnswers implements KeptAnswers {
  private readonly computers = new Map<string, Kept[]>()

  constructor(private readonly ttlMs: number) {}

  any(computerId: string): boolean {
    return this.computers.has(computerId)
  }

  keep(computerId: string, key: string, exchange: Exchange): void {
    const list = this.computers.get(computerId) ?? []
    this.computers.set(computerId, list)
    const kept = new Kept(key, exchange, this.ttlMs, () => this.remove(computerId, kept)?.discard())
    list.push(kept)
    exchange.rewind()
    exchange.attach(kept)
    kept.onProgress()
  }

  take(computerId: string, key: string): Exchange | undefined {
    const kept = this.computers.get(computerId)?.find((candidate) => candidate.key === key)
    return kept === undefined ? undefined : this.remove(computerId, kept)
  }

  forget(computerId: string): void {
    for (const kept of this.computers.get(computerId)?.slice() ?? []) this.remove(computerId, kept)?.discard()
  }

  clear(): void {
    for (const computerId of [...this.computers.keys()]) this.forget(computerId)
  }

  private remove(computerId: string, kept: Kept): Exchange | undefined {
    const list = this.computers.get(computerId)
    const at = list?.indexOf(kept) ?? -1
    if (list === undefined || at === -1) return undefined
    list.splice(at, 1)
    if (list.length === 0) this.computers.delete(computerId)
    kept.release()
    return kept.exchange
  }
}

class Kept implements ExchangeConsumer {
  private timer: Timer | undefined

  constructor(
    readonly key: string,
    readonly exchange: Exchange,
    private readonly ttlMs: number,
    private readonly drop: () => void,
  ) {}

  onProgress(): void {
    const { state, head, replayable } = this.exchange
    const worthless = !replayable || (head !== null && (head.status < 200 || head.status > 299))
    if (worthless) this.drop()
    else if (state === 'complete') this.timer ??= setTimeout(this.drop, this.ttlMs)
  }

  onSent(): void {}

  onHead(): void {}

  onRoom(): void {}

  holding(): boolean {
    return true
  }

  slept(): boolean {
    return true
  }

  release(): void {
    clearTimeout(this.timer)
    this.exchange.attach(null)
  }
}
