import { constants, ftruncateSync, openSync, readSync, writeSync } from 'node:fs'
import type { Bytes } from '../../proxy/journal.ts'

/** What the file is given out in. */
export const BLOCK_BYTES = 32 * 1024
/** An arena that nobody uses keeps at most this much of the disk. */
const KEEP_BYTES = 16 * 1024 * 1024

/**
 * Bodies of requests in one file, in blocks that are used again and again. To make and remove a file for each would cost
 * a call more than the writing of its bytes. Calls are synchronous: they go to the page cache, and outlive this process.
 */
export class Arena {
  private readonly fd: number
  private readonly free: number[] = []
  /** Blocks of the file. */
  private count = 0
  private used: number

  /** @param taken the blocks that hold something; all others are free */
  constructor(path: string, taken: ReadonlySet<number>) {
    this.fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600)
    this.used = taken.size
    for (const block of taken) this.count = Math.max(this.count, block + 1)
    for (let block = 0; block < this.count; block++) if (!taken.has(block)) this.free.push(block)
    ftruncateSync(this.fd, this.count * BLOCK_BYTES)
  }

  /** A body: an empty one, or what lies in the blocks. */
  body(blocks: number[] = [], bytes = 0): ArenaBody {
    return new ArenaBody(this, blocks, bytes)
  }

  allocate(): number {
    this.used++
    return this.free.pop() ?? this.count++
  }

  release(blocks: number[]): void {
    this.used -= blocks.length
    this.free.push(...blocks)
    if (this.used > 0 || this.count * BLOCK_BYTES <= KEEP_BYTES) return
    ftruncateSync(this.fd, 0)
    this.free.length = 0
    this.count = 0
  }

  /** Returns how many bytes were written. */
  write(at: number, bytes: Uint8Array, from: number, length: number): number {
    return writeSync(this.fd, bytes, from, length, at)
  }

  read(at: number, length: number): Buffer {
    const piece = Buffer.allocUnsafe(length)
    return piece.subarray(0, readSync(this.fd, piece, 0, length, at))
  }
}

export class ArenaBody implements Bytes {
  constructor(
    private readonly arena: Arena,
    readonly blocks: number[],
    private bytes: number,
  ) {}

  get end(): number {
    return this.bytes
  }

  append(bytes: Uint8Array): void {
    for (let from = 0; from < bytes.length; ) {
      if (this.bytes === this.blocks.length * BLOCK_BYTES) this.blocks.push(this.arena.allocate())
      const length = Math.min(bytes.length - from, this.blocks.length * BLOCK_BYTES - this.bytes)
      const written = this.arena.write(this.place(this.bytes), bytes, from, length)
      this.bytes += written
      from += written
    }
  }

  read(at: number): Buffer {
    const length = Math.min(this.bytes - at, BLOCK_BYTES - (at % BLOCK_BYTES))
    return length <= 0 ? EMPTY : this.arena.read(this.place(at), length)
  }

  /** It stays. */
  dispose(): void {}

  /** Gives its blocks back. */
  remove(): void {
    this.bytes = 0
    this.arena.release(this.blocks.splice(0))
  }

  private place(at: number): number {
    return (this.blocks[Math.floor(at / BLOCK_BYTES)] ?? 0) * BLOCK_BYTES + (at % BLOCK_BYTES)
  }
}

const EMPTY = Buffer.alloc(0)
