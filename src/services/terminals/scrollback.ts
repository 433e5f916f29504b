/** The last bytes of what a terminal showed, as UTF-8 that begins with a whole character. */
export class Scrollback {
  private pieces: Buffer[] = []
  private bytes = 0

  constructor(private readonly maxBytes: number) {}

  add(text: string): void {
    const piece = Buffer.from(text)
    this.pieces.push(piece)
    this.bytes += piece.length
    while (this.bytes - (this.pieces[0]?.length ?? 0) >= this.maxBytes) this.bytes -= this.pieces.shift()?.length ?? 0
  }

  text(): string {
    const all = Buffer.concat(this.pieces)
    let start = Math.max(0, all.length - this.maxBytes)
    while (start > 0 && isContinuation(all[start])) start++
    return all.toString('utf8', start)
  }

  clear(): void {
    this.pieces = []
    this.bytes = 0
  }
}

/** In the middle of a character (RFC 3629 §3). */
const isContinuation = (byte: number | undefined): boolean => byte !== undefined && (byte & 0xc0) === 0x80
