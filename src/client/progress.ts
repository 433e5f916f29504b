import { printable } from './output.ts'

const FRAMES = ['⠋', '⠙', '⠹', '⠸', '⠼', '⠴', '⠦', '⠧', '⠇', '⠏']
const FRAME_MS = 100
const CLEAR_LINE = '\r\x1b[K'

/** What goes on, on stderr: one line that moves on a terminal, else a line for each thing that was done. */
export class Progress {
  private readonly moving = process.stderr.isTTY === true
  private timer: Timer | undefined
  private text = ''
  private frame = 0
  private since = 0

  /** What is being done from now on. */
  doing(text: string): void {
    if (this.text === text) return
    this.text = printable(text.split('\n')[0] ?? '')
    this.since = performance.now()
    if (!this.moving) return
    this.timer ??= setInterval(() => this.draw(), FRAME_MS)
    this.draw()
  }

  /** A line that stays. */
  done(text: string): void {
    this.clear()
    process.stderr.write(`${printable(text)}\n`)
    if (this.timer) this.draw()
  }

  /** Lines of somebody else's that stay, as they are. */
  raw(text: string): void {
    this.clear()
    process.stderr.write(text)
    if (this.timer) this.draw()
  }

  stop(): void {
    this.clear()
    clearInterval(this.timer)
    this.timer = undefined
    this.text = ''
  }

  private clear(): void {
    if (this.timer) process.stderr.write(CLEAR_LINE)
  }

  private draw(): void {
    const mark = FRAMES[this.frame++ % FRAMES.length]
    const seconds = Math.floor((performance.now() - this.since) / 1000)
    const line = `${mark} ${this.text}${seconds === 0 ? '' : ` (${seconds} s)`}`
    const columns = process.stderr.columns || 80
    process.stderr.write(`${CLEAR_LINE}${Bun.sliceAnsi(line, 0, columns - 1)}`)
  }
}
