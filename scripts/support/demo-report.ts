/** What the demo saw of its agent: printed as it comes, summed up at the end. */

const MB = 1024 * 1024
/** A sleeping agent holds less than this. */
const ASLEEP_LIMIT_BYTES = 2 * MB
/** Lines of the log come later than what they tell of; so near to a change a look at the kernel is of neither state. */
const BLUR_MS = 750

interface Look {
  at: number
  memoryBytes: number
  processes: number
}

interface Sleep {
  bytes: number
  dumpMs: number
  asleepMs: number
  wakeMs: number
  /** What the kernel said meanwhile. */
  looks: Look[]
}

export class Report {
  private readonly began = performance.now()
  private readonly tty = process.stdout.isTTY === true
  private readonly sleeps: Sleep[] = []
  private readonly complaints: string[] = []
  private asleep: { since: number; bytes: number; dumpMs: number; looks: Look[] } | null = null
  private awakePeakBytes = 0
  private intact = 0
  private done = false

  /** A line of the computer's log. */
  line(stream: string, line: string): void {
    this.print(`${stream === 'orb' ? '  orb' : 'agent'} | ${line}`)
    if (stream === 'stderr') this.complaints.push(`the agent complained: ${line}`)
    if (stream === 'stdout' && line.endsWith('memory intact')) this.intact++
    if (stream === 'stdout' && line === 'done') this.done = true
    if (stream !== 'orb') return
    if (/failed|lost|exited|killed/.test(line)) this.complaints.push(`orb says: ${line}`)
    const slept = /^checkpointed \(\w+\), (\d+) bytes in (\d+) ms$/.exec(line)
    if (slept) {
      this.asleep = { since: performance.now(), bytes: Number(slept[1]), dumpMs: Number(slept[2]), looks: [] }
    }
    const woken = /^restored \(\w+\) in (\d+) ms$/.exec(line)
    if (woken && this.asleep) {
      const { since, bytes, dumpMs } = this.asleep
      const now = performance.now()
      const looks = this.asleep.looks.filter(({ at }) => at - since > BLUR_MS && now - at > BLUR_MS)
      const sleep = { bytes, dumpMs, looks, asleepMs: now - since, wakeMs: Number(woken[1]) }
      this.asleep = null
      this.sleeps.push(sleep)
      this.print(`      > sleep ${this.sleeps.length}: ${sleepText(sleep)}`)
    }
  }

  /** Once a second. */
  tick(state: string, memoryBytes: number, processes: number): void {
    if (this.asleep) this.asleep.looks.push({ at: performance.now(), memoryBytes, processes })
    else this.awakePeakBytes = Math.max(this.awakePeakBytes, memoryBytes)
    const elapsed = ((performance.now() - this.began) / 1000).toFixed(0)
    const line = `${elapsed.padStart(4)} s  ${state.padEnd(12)}  ${megabytes(memoryBytes).padStart(9)} of RAM  ${processes} processes`
    process.stdout.write(this.tty ? `\r\x1b[2K${line}` : `${line}\n`)
  }

  close(): void {
    if (this.tty) process.stdout.write('\r\x1b[2K')
  }

  /** Everything that is not as it should be. */
  problems(calls: number, mustSleep: boolean): string[] {
    const problems = [...this.complaints]
    if (!this.done) problems.push('the agent did not come to its end')
    if (this.intact !== calls) problems.push(`its memory was found intact ${this.intact} times, not ${calls}`)
    if (mustSleep && this.sleeps.length !== calls) problems.push(`it slept ${this.sleeps.length} times, not ${calls}`)
    for (const { memoryBytes, processes } of this.sleeps.flatMap(({ looks }) => looks)) {
      if (memoryBytes >= ASLEEP_LIMIT_BYTES) problems.push(`it held ${megabytes(memoryBytes)} of RAM asleep`)
      if (processes > 0) problems.push(`${processes} processes of it were there while it slept`)
    }
    return problems
  }

  /** Two lines. */
  summary(upstreamRequests: number | null): string {
    const total = (of: (sleep: Sleep) => number) => this.sleeps.reduce((sum, sleep) => sum + of(sleep), 0)
    const asleep = Math.max(0, ...this.sleeps.flatMap(({ looks }) => looks.map(({ memoryBytes }) => memoryBytes)))
    const wakes = this.sleeps.map(({ wakeMs }) => wakeMs).join(', ')
    const seen = upstreamRequests === null ? '' : `; the LLM saw ${upstreamRequests} requests`
    return [
      `Calls: ${this.intact} answered, memory intact after each${seen}.`,
      `Sleep: ${this.sleeps.length} times, ${(total(({ asleepMs }) => asleepMs) / 1000).toFixed(1)} s in all; RAM ${megabytes(this.awakePeakBytes)} awake, ${megabytes(asleep)} asleep; awake again in ${wakes || '-'} ms.`,
    ].join('\n')
  }

  private print(line: string): void {
    process.stdout.write(this.tty ? `\r\x1b[2K${line}\n` : `${line}\n`)
  }
}

const sleepText = ({ asleepMs, bytes, dumpMs, wakeMs }: Sleep): string =>
  `${(asleepMs / 1000).toFixed(1)} s asleep, ${megabytes(bytes)} written in ${dumpMs} ms, awake again in ${wakeMs} ms`

const megabytes = (bytes: number): string => `${(bytes / MB).toFixed(1)} MB`
