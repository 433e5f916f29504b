import { writeSync } from 'node:fs'

const STDOUT = 1
const FULL_PAUSE_MS = 2
/** What ends the process from outside, with the numbers that exit codes are made of. */
const ENDING = { SIGHUP: 1, SIGINT: 2, SIGTERM: 15 } as const
const SIGNAL_EXIT = 128

/**
 * Whatever a program of the other side may have switched on and can no longer switch off: mouse, bracketed paste, alternate
 * screen, hidden cursor, colours (xterm's control sequences). Not 1049: where there was no other screen it moves the cursor.
 */
const RESET = '\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[?1047l\x1b[?25h\x1b[0m'

/** The user's terminal, passing on each key as it is typed until it is given back. */
export class RawTerminal {
  private raw = false

  private readonly onExit = () => this.giveBack(true)
  private readonly onSignal = Object.entries(ENDING).map(([name, number]) => ({
    name,
    end: () => {
      this.giveBack(true)
      process.exit(SIGNAL_EXIT + number)
    },
  }))

  take(): void {
    process.on('exit', this.onExit)
    for (const { name, end } of this.onSignal) process.on(name, end)
    process.stdin.setRawMode(true)
    this.raw = true
  }

  /** @param broken Whether the other side had no chance to tidy the screen */
  giveBack(broken: boolean): void {
    if (!this.raw) return
    this.raw = false
    process.off('exit', this.onExit)
    for (const { name, end } of this.onSignal) process.off(name, end)
    try {
      if (broken && process.stdout.isTTY) writeAll(RESET)
    } finally {
      process.stdin.setRawMode(false)
      process.stdin.pause()
    }
  }
}

/**
 * Writes to the terminal and waits until it has taken everything: what a program prints faster stays with the server, which
 * then lets the program wait. Otherwise Ctrl-C would stop a flood only after all of it was shown.
 */
export function writeAll(text: string): void {
  let rest = Buffer.from(text)
  while (rest.length > 0) {
    try {
      rest = rest.subarray(writeSync(STDOUT, rest))
    } catch (thrown) {
      if (!(thrown instanceof Error && 'code' in thrown && thrown.code === 'EAGAIN')) throw thrown
      Bun.sleepSync(FULL_PAUSE_MS)
    }
  }
}

const ENTER = ['\r', '\n']
const BACKSPACE = ['\x7f', '\b']
const CANCEL = ['\x03', '\x04']

/** A line from the terminal that is not shown while it is typed; null when the user gave up. */
export async function askHidden(question: string): Promise<string | null> {
  const terminal = new RawTerminal()
  process.stderr.write(question)
  terminal.take()
  try {
    return await new Promise<string | null>((resolve) => {
      let line = ''
      process.stdin.setEncoding('utf8').on('data', (typed: string) => {
        for (const key of typed) {
          if (ENTER.includes(key)) return resolve(line)
          if (CANCEL.includes(key)) return resolve(null)
          line = BACKSPACE.includes(key) ? line.slice(0, -1) : line + key
        }
      })
      process.stdin.on('end', () => resolve(null))
    })
  } finally {
    terminal.giveBack(false)
    process.stderr.write('\n')
  }
}
