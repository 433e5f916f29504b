import { closeSync, writeSync } from 'node:fs'
import type { Socket, SocketHandler } from 'bun'
import type { Size, TerminalProcess } from './launcher.ts'
import { errnoCode } from './libc.ts'

declare module 'bun' {
  /** Bun takes a connected socket too; of its types only the options say so. */
  function connect<Data = undefined>(options: FdSocketOptions<Data>): Promise<Socket<Data>>
}

/** Input that waits is kept in blocks of this, so that single bytes cost no more than they are. */
const BLOCK_BYTES = 64 * 1024
/** A size that could not be passed on is tried again after this. */
const RESIZE_AGAIN_MS = 50

interface Block {
  bytes: Uint8Array
  start: number
  end: number
}

/**
 * The other side of a terminal in a computer. orb-init stands between: it has the terminal, and a socket to here, so that
 * output which nobody takes stays where it is and the program that writes it has to wait, and so that the terminal is
 * hung up when orb is gone.
 */
export class Terminal {
  /**
   * The exit code of the shell, once all that it wrote was passed on; 128 + n after signal n, 125 if it could not be
   * started.
   */
  readonly ended: Promise<number>
  /** What orb-init said, which it does when a terminal cannot be made. */
  readonly problem: Promise<string>
  private socket: Socket<undefined> | null = null
  private readonly closed = Promise.withResolvers<void>()
  private input: Block[] = []
  /** The newest size, while orb-init has not read so many others that there is no room for it. */
  private size: Size | null = null
  private paused = false
  private hungUp = false
  /** Bytes of input that the terminal has not taken yet. */
  waiting = 0

  private constructor(
    process: TerminalProcess['process'],
    private readonly sizes: number,
  ) {
    this.problem = new Response(process.stderr).text().then((text) => text.trim())
    this.ended = this.closed.promise.then(() => process.exited).finally(() => closeSync(sizes))
  }

  /** @param onOutput gets what the programs write, piece by piece as it comes, also in the middle of a character */
  static async open(
    { process, socket: fd, sizes }: TerminalProcess,
    onOutput: (bytes: Uint8Array) => void,
  ): Promise<Terminal> {
    const terminal = new Terminal(process, sizes)
    const socket: SocketHandler = {
      data: (_, bytes) => onOutput(bytes),
      drain: () => terminal.flush(),
      close: () => terminal.onClose(),
      error: () => terminal.hangUp(),
    }
    try {
      terminal.socket = await Bun.connect<undefined>({ fd, socket })
    } catch (thrown) {
      closeSync(fd)
      terminal.onClose()
      throw thrown
    }
    return terminal
  }

  /** What is typed. Kept here while the program does not read; see `waiting`. */
  write(bytes: Uint8Array): void {
    if (this.socket === null || this.hungUp || bytes.length === 0) return
    // While something waits the socket is full: its drain comes.
    this.keep(this.waiting === 0 ? bytes.subarray(this.send(bytes)) : bytes)
  }

  resize(size: Size): void {
    if (this.socket === null || this.hungUp) return
    const isTried = this.size !== null
    this.size = size
    if (!isTried) this.passSize()
  }

  /** Leaves output where it is, until `resume`. */
  pause(): void {
    if (this.paused) return
    this.paused = true
    this.socket?.pause()
  }

  resume(): void {
    if (!this.paused) return
    this.paused = false
    this.socket?.resume()
  }

  /** The line goes dead: the shell gets SIGHUP, and SIGKILL if it does not end of that. Output that comes still is lost. */
  hangUp(): void {
    if (this.hungUp) return
    this.hungUp = true
    this.resume()
    this.socket?.terminate()
  }

  private passSize(): void {
    if (this.size === null || this.hungUp) return
    try {
      writeSync(this.sizes, new Uint16Array([this.size.columns, this.size.rows]))
    } catch (thrown) {
      const code = errnoCode(thrown)
      if (code === 'EAGAIN') {
        setTimeout(() => this.passSize(), RESIZE_AGAIN_MS).unref()
        return
      }
      // It ends, and a terminal that ends needs no size.
      if (code !== 'EPIPE' && code !== 'ECONNRESET') throw thrown
    }
    this.size = null
  }

  /** Returns how many bytes the socket took. */
  private send(bytes: Uint8Array): number {
    return Math.max(0, this.socket?.write(bytes) ?? 0)
  }

  private keep(bytes: Uint8Array): void {
    this.waiting += bytes.length
    for (let at = 0; at < bytes.length; ) {
      let last = this.input.at(-1)
      if (!last || last.end === BLOCK_BYTES) {
        last = { bytes: new Uint8Array(BLOCK_BYTES), start: 0, end: 0 }
        this.input.push(last)
      }
      const piece = bytes.subarray(at, at + BLOCK_BYTES - last.end)
      last.bytes.set(piece, last.end)
      last.end += piece.length
      at += piece.length
    }
  }

  private flush(): void {
    for (let first = this.input[0]; first; first = this.input[0]) {
      const taken = this.send(first.bytes.subarray(first.start, first.end))
      first.start += taken
      this.waiting -= taken
      if (first.start < first.end) return
      this.input.shift()
    }
  }

  private onClose(): void {
    this.hungUp = true
    this.input = []
    this.waiting = 0
    this.closed.resolve()
  }
}
