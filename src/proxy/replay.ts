import type { Answer, AnswerConsumer } from './answer.ts'

/**
 * Answers whose agent lost its connection in or after a sleep (Orb Cloud contract §11.5), still running or complete, each
 * for one use by an identical request of the same computer.
 */
export interface KeptAnswers {
  /** Is there any for this computer? Only then must the bodies of its requests be hashed before they are sent. */
  any(computerId: string): boolean
  /** Takes over an answer that nobody reads any more. */
  keep(computerId: string, key: string, answer: Answer, terms?: KeepTerms): void
  /** Hands over the oldest one for the key. */
  take(computerId: string, key: string): Answer | undefined
  /** Ends and drops all of a computer. */
  forget(computerId: string): void
  /** Ends and drops all. */
  clear(): void
}

export interface KeepTerms {
  /** How long it stays once it is complete, where that is not the usual time. */
  ttlMs?: number
  /** Called once while it is kept: at the first byte of its body, its end or its failure. */
  noticed?: () => void
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

  keep(computerId: string, key: string, answer: Answer, { ttlMs = this.ttlMs, noticed }: KeepTerms = {}): void {
    const list = this.computers.get(computerId) ?? []
    this.computers.set(computerId, list)
    const kept = new Kept(key, answer, ttlMs, () => this.remove(computerId, kept)?.discard(), noticed)
    list.push(kept)
    answer.attach(kept)
    answer.rewind()
    kept.onProgress()
  }

  take(computerId: string, key: string): Answer | undefined {
    const kept = this.computers.get(computerId)?.find((candidate) => candidate.key === key)
    return kept === undefined ? undefined : this.remove(computerId, kept)
  }

  forget(computerId: string): void {
    for (const kept of this.computers.get(computerId)?.slice() ?? []) this.remove(computerId, kept)?.discard()
  }

  clear(): void {
    for (const computerId of [...this.computers.keys()]) this.forget(computerId)
  }

  private remove(computerId: string, kept: Kept): Answer | undefined {
    const list = this.computers.get(computerId)
    const at = list?.indexOf(kept) ?? -1
    if (list === undefined || at === -1) return undefined
    list.splice(at, 1)
    if (list.length === 0) this.computers.delete(computerId)
    kept.release()
    return kept.answer
  }
}

class Kept implements AnswerConsumer {
  private timer: Timer | undefined

  constructor(
    readonly key: string,
    readonly answer: Answer,
    private readonly ttlMs: number,
    private readonly drop: () => void,
    private noticed?: () => void,
  ) {}

  onProgress(): void {
    const { state, head, replayable, end } = this.answer
    if (end > 0 || state !== 'open') {
      this.noticed?.()
      this.noticed = undefined
    }
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
    this.answer.attach(null)
  }
}
