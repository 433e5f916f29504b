/** Of one buffer, which small pieces share: a program may well write single bytes. */
const BLOCK_BYTES = 16 * 1024

/** The last bytes of what a terminal showed, as UTF-8 that begins with a whole character. */
export class Scrollback {
  private blocks: { buffer: Buffer; used: number }[] = []
  private bytes = 0

  constructor(private readonly maxBytes: number) {}

  add(text: string): void {
    const piece = Buffer.from(text)
    let last = this.blocks.at(-1)
    if (!last || last.used + piece.length > last.buffer.length) {
      last = { buffer: Buffer.alloc(Math.max(BLOCK_BYTES, piece.length)), used: 0 }
      this.blocks.push(last)
    }
    last.used += piece.copy(last.buffer, last.used)
    this.bytes += piece.length
    while (this.bytes - (this.blocks[0]?.used ?? 0) >= this.maxBytes) this.bytes -= this.blocks.shift()?.used ?? 0
  }

  text(): string {
    const all = Buffer.concat(this.blocks.map(({ buffer, used }) => buffer.subarray(0, used)))
    let start = Math.max(0, all.length - this.maxBytes)
    while (start > 0 && isContinuation(all[start])) start++
    return all.toString('utf8', start)
  }

  clear(): void {
    this.blocks = []
    this.bytes = 0
  }
}

/** In the middle of a character (RFC 3629 §3). */
const isContinuation = (byte: number | undefined): boolean => byte !== undefined && (byte & 0xc0) === 0x80
