import { closeSync, writeSync } from 'node:fs'
import type { Socket, SocketHandler } from 'bun'
import type { Size, TerminalProcess } from './launcher.ts'
import { errnoCode } from './libc.ts'

declare module 'bun' {
  /** Bun takes a connected socket too; of its types only the options say so. */
  function connect<Data = undefined>(options: FdSocketOptions<Data>): Promise<Socket<Data>>
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
  private input: Uint8Array[] = []
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
    this.input.push(bytes)
    this.waiting += bytes.length
    this.flush()
  }

  resize({ columns, rows }: Size): void {
    if (this.socket === null || this.hungUp) return
    try {
      writeSync(this.sizes, new Uint16Array([columns, rows]))
    } catch (thrown) {
      // It ends, and a terminal that ends needs no size.
      if (errnoCode(thrown) !== 'EPIPE' && errnoCode(thrown) !== 'ECONNRESET') throw thrown
    }
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

  private flush(): void {
    while (this.input.length > 0) {
      const bytes = this.input.length === 1 ? this.input[0]! : Buffer.concat(this.input)
      const taken = Math.max(0, this.socket?.write(bytes) ?? 0)
      this.waiting -= taken
      this.input = taken < bytes.length ? [bytes.subarray(taken)] : []
      if (this.input.length > 0) return
    }
  }

  private onClose(): void {
    this.hungUp = true
    this.input = []
    this.waiting = 0
    this.closed.resolve()
  }
}
