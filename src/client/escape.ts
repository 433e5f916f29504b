const TILDE = 0x7e
const DOT = 0x2e
const LINE_ENDS = [0x0a, 0x0d]

/** Finds `~.` at the beginning of a line in what is typed, as ssh does: the way out of a session that hangs. */
export class EscapeWatch {
  private atLineStart = true
  private holdsTilde = false

  /** @returns what is to be sent; a tilde that may be the first half is kept back. `leave`: the rest was not read */
  feed(typed: Uint8Array): { send: Uint8Array<ArrayBuffer>; leave: boolean } {
    const send: number[] = []
    for (const byte of typed) {
      if (this.holdsTilde) {
        this.holdsTilde = false
        if (byte === DOT) return { send: Uint8Array.from(send), leave: true }
        send.push(TILDE)
        // A second tilde stands for one.
        if (byte !== TILDE) send.push(byte)
        this.atLineStart = LINE_ENDS.includes(byte)
        continue
      }
      if (byte === TILDE && this.atLineStart) {
        this.holdsTilde = true
        continue
      }
      send.push(byte)
      this.atLineStart = LINE_ENDS.includes(byte)
    }
    return { send: Uint8Array.from(send), leave: false }
  }
}
