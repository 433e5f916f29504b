/** A part of what a stream brings. */
export interface Output {
  truncated: boolean
  push(chunk: Uint8Array): void
  /** What comes from here on is thrown away. */
  close(): void
  /** The text, invalid UTF-8 replaced. */
  text(): string
}

/** Keeps the last `limit` bytes of what is written to it. */
export class Tail implements Output {
  private chunks: Uint8Array[] = []
  private size = 0
  truncated = false
  private closed = false

  constructor(private readonly limit: number) {}

  push(chunk: Uint8Array): void {
    if (this.closed) return
    this.chunks.push(chunk)
    this.size += chunk.length
    // Compact only once in a while: each byte is copied at most a few times however small the chunks are.
    if (this.size > 2 * this.limit) this.compact()
  }

  close(): void {
    this.closed = true
    this.chunks = []
  }

  text(): string {
    this.compact()
    return Buffer.concat(this.chunks).toString('utf8')
  }

  private compact(): void {
    const all = Buffer.concat(this.chunks)
    if (all.length > this.limit) this.truncated = true
    const kept = all.subarray(Math.max(0, all.length - this.limit))
    this.chunks = [kept]
    this.size = kept.length
  }
}

/** Keeps the first `limit` bytes of what is written to it. */
export class Head implements Output {
  private readonly chunks: Uint8Array[] = []
  private left: number
  truncated = false
  private closed = false

  constructor(limit: number) {
    this.left = limit
  }

  push(chunk: Uint8Array): void {
    if (this.closed) return
    const kept = chunk.subarray(0, this.left)
    if (kept.length < chunk.length) this.truncated = true
    if (kept.length === 0) return
    this.left -= kept.length
    this.chunks.push(kept)
  }

  close(): void {
    this.closed = true
  }

  /** Without a character that the limit cuts through. */
  text(): string {
    return new TextDecoder('utf-8', { ignoreBOM: true }).decode(Buffer.concat(this.chunks), { stream: this.truncated })
  }
}
