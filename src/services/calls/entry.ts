import { rmSync } from 'node:fs'
import { join } from 'node:path'
import type { ExchangeRequest } from '../../proxy/exchange.ts'
import type { ResponseHead } from '../../proxy/http1.ts'
import type { Bytes, JournalEntry } from '../../proxy/journal.ts'
import type { LlmCallRepository } from '../../store/llm-calls.ts'
import type { LlmCallRow, LlmCallState } from '../../store/types.ts'
import type { Vault } from '../vault.ts'
import type { Arena, ArenaBody } from './arena.ts'
import { bytesOf, SpoolFile } from './spool-file.ts'

/** A body up to this size lies in the row. Larger rows make the database's log grow fast. */
const INLINE_BYTES = 4 * 1024
/** Bodies and answers of one computer's calls at once: the largest of each (64 MiB, Orb Cloud contract §11), twice. */
export const MAX_COMPUTER_BYTES = 256 * 1024 * 1024

/** What the calls of one computer take. */
export interface Shelf {
  bytes: number
  entries: Set<Entry>
}

export interface EntryContext {
  calls: LlmCallRepository
  vault: Vault
  dir: string
  /** Where the larger bodies of requests lie. */
  arena: Arena
  ttlMs: number
  /** Nothing is written any more. */
  closed(): boolean
  failed(computerId: string, error: unknown): void
}

/** What of a request is sealed in its row. */
interface SealedRequest {
  key: string
  upstream: ExchangeRequest['upstream']
  method: string
  /** Each char is a byte (latin1). */
  head: string
  chunked: boolean
}

/** `arriving`: the request is not whole. `answered`: an agent that runs reads the answer. `gone`: for good. */
type State = 'arriving' | LlmCallState | 'answered' | 'gone'

/** One call in the journal: a row, a place in the arena where its body is large, and a file for an answer that waits. */
export class Entry implements JournalEntry {
  private state: State = 'arriving'
  /** A former orb's: its file may be there without being open here. */
  private left = false
  private pieces: Uint8Array[] = []
  private size = 0
  private stored: ArenaBody | null = null
  private sealed: Uint8Array = EMPTY
  private answerFile: SpoolFile | null = null
  private answerHead: Uint8Array | null = null
  private hasher: Bun.CryptoHasher | null = null
  private answerHash: string | null = null
  private answerBytes = 0

  constructor(
    private readonly context: EntryContext,
    private readonly shelf: Shelf,
    readonly computerId: string,
    readonly id: number,
  ) {
    shelf.entries.add(this)
  }

  /** One that a former orb left. */
  static from(context: EntryContext, shelf: Shelf, row: LlmCallRow): Entry {
    const entry = new Entry(context, shelf, row.computerId, row.id)
    entry.left = true
    entry.state = row.state
    entry.sealed = row.request
    entry.answerHead = row.answerHead
    entry.answerHash = row.answerHash
    entry.answerBytes = row.answerBytes ?? 0
    if (row.state === 'sent') {
      entry.size = row.bodyBytes
      if (row.bodyBlocks !== null) entry.stored = context.arena.body(blocksOf(row), row.bodyBytes)
    }
    shelf.bytes += entry.size + entry.answerBytes
    return entry
  }

  body(bytes: Uint8Array): void {
    if (this.state !== 'arriving') return
    this.attempt(() => {
      this.take(bytes.length)
      this.size += bytes.length
      if (this.stored === null && this.size <= INLINE_BYTES) {
        this.pieces.push(bytes)
        return
      }
      if (this.stored === null) {
        this.stored = this.context.arena.body()
        for (const piece of this.pieces.splice(0)) this.stored.append(piece)
      }
      this.stored.append(bytes)
    })
  }

  sent(key: string, request: ExchangeRequest): void {
    if (this.state !== 'arriving') return
    this.attempt(() => {
      const { upstream, method, head, chunked } = request
      const plain: SealedRequest = { key, upstream, method, head: head.toString('latin1'), chunked }
      this.sealed = this.context.vault.seal(JSON.stringify(plain), this.computerId)
      this.insert('sent')
      this.pieces = []
    })
  }

  answered(): void {
    if (this.state !== 'sent') return
    this.attempt(() => {
      this.context.calls.remove(this.id)
      this.dropRequest()
      this.state = 'answered'
    })
  }

  answer(head: ResponseHead): void {
    if (this.state !== 'sent' && this.state !== 'answered') return
    this.attempt(() => {
      this.answerHead = this.context.vault.seal(JSON.stringify(head), this.computerId)
      if (this.state === 'answered') this.insert('answering')
      else this.save('answering', null)
      this.dropRequest()
      this.answerFile = SpoolFile.create(this.answerPath)
      this.hasher = new Bun.CryptoHasher('sha256')
    })
  }

  append(bytes: Uint8Array): void {
    if (this.state !== 'answering') return
    this.attempt(() => {
      this.take(bytes.length)
      this.answerBytes += bytes.length
      this.answerFile?.append(bytes)
      this.hasher?.update(bytes)
    })
  }

  complete(): void {
    if (this.state !== 'answering' && this.state !== 'delivered') return
    this.attempt(() => {
      this.answerFile?.dispose()
      this.answerHash ??= this.hasher?.digest('hex') ?? null
      this.save('complete', Date.now() + this.context.ttlMs)
    })
  }

  delivered(): void {
    if (this.state === 'complete') this.attempt(() => this.save('delivered', null))
  }

  remove(): void {
    if (this.context.closed()) return
    if (this.state === 'gone') return
    const { state } = this
    this.state = 'gone'
    this.shelf.entries.delete(this)
    this.shelf.bytes -= this.size + this.answerBytes
    this.pieces = []
    try {
      if (state !== 'arriving' && state !== 'answered') this.context.calls.remove(this.id)
      this.stored?.remove()
      this.answerFile?.remove()
      if (this.left) rmSync(this.answerPath, { force: true })
    } catch (error) {
      this.context.failed(this.computerId, error)
    }
  }

  /** The request of one that a former orb left. Throws when it is damaged. */
  leftRequest(row: LlmCallRow): { key: string; request: ExchangeRequest; body: Bytes } {
    const { key, head, ...rest } = this.unsealed()
    const body = this.stored ?? bytesOf(row.body ?? EMPTY)
    return { key, request: { ...rest, head: Buffer.from(head, 'latin1') }, body }
  }

  /** The answer of one that a former orb left. Throws when it is damaged. */
  leftAnswer(): { key: string; head: ResponseHead; body: Bytes; hash: string | null } {
    const { key } = this.unsealed()
    const head: ResponseHead = JSON.parse(this.context.vault.open(this.answerHead ?? EMPTY, this.computerId))
    this.answerFile = SpoolFile.open(this.answerPath)
    return { key, head, body: this.answerFile, hash: this.answerHash }
  }

  private unsealed(): SealedRequest {
    return JSON.parse(this.context.vault.open(this.sealed, this.computerId))
  }

  private insert(state: LlmCallState): void {
    const { stored } = this
    this.context.calls.insert({
      id: this.id,
      computerId: this.computerId,
      state,
      resent: false,
      sentAt: Date.now(),
      expiresAt: null,
      answerHead: this.answerHead,
      answerBytes: null,
      answerHash: null,
      request: this.sealed,
      bodyBytes: this.size,
      bodyBlocks: stored === null ? null : JSON.stringify(stored.blocks),
      body: stored === null ? Buffer.concat(this.pieces) : null,
    })
    this.state = state
  }

  private save(state: LlmCallState, expiresAt: number | null): void {
    const { answerHead, answerBytes, answerHash } = this
    this.context.calls.setAnswer(this.id, { state, expiresAt, answerHead, answerBytes, answerHash })
    this.state = state
  }

  private take(bytes: number): void {
    if (this.shelf.bytes + bytes > MAX_COMPUTER_BYTES) {
      throw new Error(`the calls of the computer have more than ${MAX_COMPUTER_BYTES} bytes`)
    }
    this.shelf.bytes += bytes
  }

  private dropRequest(): void {
    this.stored?.remove()
    this.stored = null
    this.pieces = []
    this.shelf.bytes -= this.size
    this.size = 0
  }

  private get answerPath(): string {
    return join(this.context.dir, `${this.id}.answer`)
  }

  /** What fails costs the call its place in the journal, and nothing else. */
  private attempt(work: () => void): void {
    if (this.context.closed()) return
    try {
      work()
    } catch (error) {
      this.context.failed(this.computerId, error)
      this.remove()
    }
  }
}

/** Where the body of a row's request lies in the arena. */
export const blocksOf = (row: LlmCallRow): number[] => JSON.parse(row.bodyBlocks ?? '[]')

const EMPTY = Buffer.alloc(0)
