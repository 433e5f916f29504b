import { closeSync, fstatSync, openSync, readSync, rmSync, writeSync } from 'node:fs'
import type { Bytes } from '../../proxy/journal.ts'

/** One read from a file. */
const READ_BYTES = 64 * 1024

/**
 * A file that grows at its end. Its calls are synchronous: they go to the page cache, where they outlive this process.
 */
export class SpoolFile implements Bytes {
  private constructor(
    private readonly path: string,
    private fd: number | null,
    private size: number,
  ) {}

  static create(path: string): SpoolFile {
    return new SpoolFile(path, openSync(path, 'wx+', 0o600), 0)
  }

  static open(path: string): SpoolFile {
    const fd = openSync(path, 'r')
    return new SpoolFile(path, fd, fstatSync(fd).size)
  }

  get end(): number {
    return this.size
  }

  append(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      if (this.fd === null) return
      const written = writeSync(this.fd, bytes, at, bytes.length - at, this.size)
      at += written
      this.size += written
    }
  }

  read(at: number): Buffer {
    const length = Math.min(READ_BYTES, this.size - at)
    if (this.fd === null || length <= 0) return EMPTY
    const piece = Buffer.allocUnsafe(length)
    return piece.subarray(0, readSync(this.fd, piece, 0, length, at))
  }

  /** Closes it; it stays. */
  dispose(): void {
    if (this.fd !== null) closeSync(this.fd)
    this.fd = null
  }

  remove(): void {
    this.dispose()
    rmSync(this.path, { force: true })
  }
}

/** Bytes that lie in memory. */
export const bytesOf = (buffer: Uint8Array): Bytes => ({
  end: buffer.length,
  read: (at) => Buffer.from(buffer.buffer, buffer.byteOffset + at, buffer.length - at),
  dispose() {},
})

/** SHA-256 in hex. */
export function hashOf(bytes: Bytes): string {
  const hasher = new Bun.CryptoHasher('sha256')
  for (let at = 0; at < bytes.end; ) {
    const piece = bytes.read(at)
    if (piece.length === 0) break
    hasher.update(piece)
    at += piece.length
  }
  return hasher.digest('hex')
}

const EMPTY = Buffer.alloc(0)
