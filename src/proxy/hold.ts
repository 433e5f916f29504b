import { closeSync, openSync, readSync, unlinkSync, writeSync } from 'node:fs'
import { join } from 'node:path'

/** What is kept of one body in memory; the rest goes to disk (Orb Cloud contract §11.4). */
export const HOLD_MEMORY_BYTES = 1024 * 1024
/** One read from the spool file. */
const READ_BYTES = 64 * 1024
const FIRST_BUFFER_BYTES = 4 * 1024

let spoolCount = 0

/**
 * Bytes in order, kept until `forget` or `dispose`: the first MiB in memory, what follows in a spool file. The file is
 * unlinked as soon as it is open, so nothing is left of it whatever happens to this process. Its calls are synchronous:
 * they go to the page cache, and only bodies beyond a MiB make any.
 */
export class HeldBody {
  private memory: Buffer = EMPTY
  private inMemory = 0
  private fd: number | null = null
  private inFile = 0
  private base = 0

  constructor(private readonly spoolDir: string) {}

  /** Position behind the last byte, counted from the first ever appended. */
  get end(): number {
    return this.base + this.inMemory + this.inFile
  }

  /** Position of the first byte that is still here. */
  get start(): number {
    return this.base
  }

  append(bytes: Uint8Array): void {
    if (this.fd === null && this.inMemory + bytes.length <= HOLD_MEMORY_BYTES) {
      this.reserve(this.inMemory + bytes.length)
      this.memory.set(bytes, this.inMemory)
      this.inMemory += bytes.length
      return
    }
    this.fd ??= openUnlinked(this.spoolDir)
    for (let at = 0; at < bytes.length; ) {
      at += writeSync(this.fd, bytes, at, bytes.length - at, this.inFile + at)
    }
    this.inFile += bytes.length
  }

  /** Some bytes from position `at` on, which must lie between `start` and `end`. Good until the next call. */
  read(at: number): Buffer {
    const offset = at - this.base
    if (offset < this.inMemory) return this.memory.subarray(offset, this.inMemory)
    const fileOffset = offset - this.inMemory
    const length = Math.min(READ_BYTES, this.inFile - fileOffset)
    if (this.fd === null || length <= 0) return EMPTY
    const piece = Buffer.allocUnsafe(length)
    return piece.subarray(0, readSync(this.fd, piece, 0, length, fileOffset))
  }

  /** Lets go of everything so far; positions go on from here. */
  forget(): void {
    this.base = this.end
    this.inMemory = 0
    this.inFile = 0
    if (this.fd !== null) closeSync(this.fd)
    this.fd = null
  }

  /** Frees memory and disk. Nothing may be called afterwards but `dispose`. */
  dispose(): void {
    this.forget()
    this.memory = EMPTY
  }

  private reserve(size: number): void {
    if (size <= this.memory.length) return
    let capacity = Math.max(FIRST_BUFFER_BYTES, this.memory.length * 2)
    while (capacity < size) capacity *= 2
    const larger = Buffer.allocUnsafeSlow(capacity)
    this.memory.copy(larger, 0, 0, this.inMemory)
    this.memory = larger
  }
}

const EMPTY = Buffer.alloc(0)

function openUnlinked(dir: string): number {
  const path = join(dir, `hold-${process.pid}-${++spoolCount}`)
  const fd = openSync(path, 'wx+', 0o600)
  unlinkSync(path)
  return fd
}
