import type { spawnCommand } from './launcher.ts'

/** Exit code of a command that ran out of time, as timeout(1) has it. */
export const EXIT_TIMEOUT = 124
/** How long output that is in the pipes already is waited for once the shell has ended, each time that there is none. */
const DRAIN_MS = 100
/** More than pipes hold (pipe(7)): what comes after it is of children that the shell left behind. */
const DRAIN_BYTES = 1024 * 1024
/** What is written to standard input at once. */
const INPUT_BYTES = 64 * 1024

export type OutputStream = 'stdout' | 'stderr'

export interface Output {
  stream: OutputStream
  bytes: Uint8Array
}

export interface CommandEnd {
  /** 124 after a timeout, 128 + n after signal n, 125 if it could not be started. */
  exitCode: number
  timedOut: boolean
  durationMs: number
}

interface Options {
  stdin?: Uint8Array | 'open'
  timeoutMs: number
  /** Ends the command with all its children. */
  kill(): void
}

/**
 * A command under way. Its output is read from the pipes as fast as it is taken here and no faster: a command that writes
 * more has to wait. Standard output and error each keep their order.
 */
export class LiveCommand {
  /** Resolves when the command itself has ended; never rejects. */
  readonly ended: Promise<CommandEnd>
  private readonly input: Input | null
  private readonly waiting: { output: Output; taken: () => void }[] = []
  private pumps = 2
  private hasEnded = false
  private discards = false
  private wake: () => void = () => undefined

  constructor(
    child: ReturnType<typeof spawnCommand>,
    private readonly options: Options,
  ) {
    const started = performance.now()
    let timedOut = false
    const timer = setTimeout(() => {
      timedOut = true
      options.kill()
    }, options.timeoutMs)
    this.input = child.stdin ? new Input(child.stdin) : null
    this.ended = child.exited.then((exitCode) => {
      clearTimeout(timer)
      this.hasEnded = true
      this.input?.close()
      this.wake()
      const durationMs = Math.round(performance.now() - started)
      return { exitCode: timedOut ? EXIT_TIMEOUT : exitCode, timedOut, durationMs }
    })
    if (options.stdin instanceof Uint8Array) void this.input?.write(options.stdin, true)
    void this.pump('stdout', child.stdout)
    void this.pump('stderr', child.stderr)
  }

  /**
   * What it writes, until it has ended and all of that is taken; children that it left behind may hold the pipes, and what
   * they write from then on is thrown away. To be called once.
   */
  async *output(): AsyncGenerator<Output> {
    let late = 0
    try {
      for (;;) {
        const next = this.waiting.shift()
        if (next) {
          next.taken()
          if (this.hasEnded) late += next.output.bytes.length
          yield next.output
          if (late > DRAIN_BYTES) return
          continue
        }
        if (this.pumps === 0) return
        if (this.hasEnded && !(await this.moreWithin(DRAIN_MS))) return
        if (!this.hasEnded) await this.moreWithin(null)
      }
    } finally {
      this.discard()
    }
  }

  /**
   * Writes to its standard input, in the order of the calls. Resolves when that is taken; false: it is closed, or the
   * command has ended. @param last nothing comes after this
   */
  write(bytes: Uint8Array, last: boolean): Promise<boolean> {
    return this.input?.write(bytes, last) ?? Promise.resolve(false)
  }

  /**
   * Ends it with all its children, and what it has still to say is thrown away. What it left behind when it ended by itself
   * lives on.
   */
  kill(): void {
    if (!this.hasEnded) this.options.kill()
    this.discard()
  }

  private discard(): void {
    this.discards = true
    for (const { taken } of this.waiting.splice(0)) taken()
    this.wake()
  }

  /** Resolves at the next piece of output or the end; false: not in time. */
  private moreWithin(timeoutMs: number | null): Promise<boolean> {
    return new Promise((resolve) => {
      const timer = timeoutMs === null ? undefined : setTimeout(() => resolve(false), timeoutMs)
      this.wake = () => {
        clearTimeout(timer)
        resolve(true)
      }
    })
  }

  private async pump(stream: OutputStream, source: ReadableStream<Uint8Array>): Promise<void> {
    try {
      for await (const bytes of source) {
        // Thrown away, so that a writer left behind is not ended by a full pipe.
        if (this.discards) continue
        await new Promise<void>((taken) => {
          this.waiting.push({ output: { stream, bytes }, taken })
          this.wake()
        })
      }
    } finally {
      this.pumps--
      this.wake()
    }
  }
}

/** The standard input of a command. */
export class Input {
  private turn: Promise<unknown> = Promise.resolve()
  private readonly over = Promise.withResolvers<false>()
  private closed = false

  constructor(private readonly sink: Bun.FileSink) {}

  /** As `LiveCommand.write`. */
  write(bytes: Uint8Array, last: boolean): Promise<boolean> {
    const written = this.turn.then(() => this.writeNow(bytes, last))
    this.turn = written
    return written
  }

  /** Nobody reads it any more: what waits is given up. */
  close(): void {
    if (this.closed) return
    this.closed = true
    this.over.resolve(false)
    this.end()
  }

  private async writeNow(bytes: Uint8Array, last: boolean): Promise<boolean> {
    for (let at = 0; at < bytes.length; at += INPUT_BYTES) {
      if (this.closed) return false
      const taken = this.push(bytes.subarray(at, at + INPUT_BYTES))
      if (!(await Promise.race([taken, this.over.promise]))) return false
    }
    if (this.closed) return false
    if (last) this.close()
    return true
  }

  private async push(bytes: Uint8Array): Promise<boolean> {
    try {
      await this.sink.write(bytes)
      return true
    } catch {
      // It has closed its input, which it may.
      this.close()
      return false
    }
  }

  private end(): void {
    try {
      void Promise.resolve(this.sink.end()).catch(() => undefined)
    } catch {
      // It was closed from the other side.
    }
  }
}
