/** Keeps the last `limit` bytes of what is written to it. */
export class Tail {
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

  /** What comes from here on is thrown away. */
  close(): void {
    this.closed = true
    this.chunks = []
  }

  /** The text, invalid UTF-8 replaced. */
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
