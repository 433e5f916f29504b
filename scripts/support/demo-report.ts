/** What the demo saw of its agent: printed as it comes, summed up at the end. */

const MB = 1024 * 1024
/** A sleeping agent holds less than this. */
const ASLEEP_LIMIT_BYTES = 2 * MB
/** The kernel needs a moment to hand back the memory of a process that has ended. */
const SETTLE_MS = 500

interface Sleep {
  bytes: number
  dumpMs: number
  asleepMs: number
  wakeMs: number
  /** The most and the least that the kernel saw while it slept; null when it looked too late. */
  memoryBytes: number | null
}

export class Report {
  private readonly began = performance.now()
  private readonly tty = process.stdout.isTTY === true
  private readonly sleeps: Sleep[] = []
  private readonly complaints: string[] = []
  private asleep: { since: number; bytes: number; dumpMs: number; memoryBytes: number | null } | null = null
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
      this.asleep = { since: performance.now(), bytes: Number(slept[1]), dumpMs: Number(slept[2]), memoryBytes: null }
    }
    const woken = /^restored \(\w+\) in (\d+) ms$/.exec(line)
    if (woken && this.asleep) {
      const { since, ...rest } = this.asleep
      const sleep = { ...rest, asleepMs: performance.now() - since, wakeMs: Number(woken[1]) }
      this.asleep = null
      this.sleeps.push(sleep)
      this.print(`      > sleep ${this.sleeps.length}: ${sleepText(sleep)}`)
    }
  }

  /** Once a second. */
  tick(state: string, memoryBytes: number, processes: number): void {
    if (!this.asleep) this.awakePeakBytes = Math.max(this.awakePeakBytes, memoryBytes)
    else if (state === 'checkpointed' && performance.now() - this.asleep.since > SETTLE_MS) {
      this.asleep.memoryBytes = Math.max(this.asleep.memoryBytes ?? 0, memoryBytes)
      if (processes > 0) this.complaints.push(`${processes} processes of the agent are there while it sleeps`)
    }
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
    for (const { memoryBytes } of this.sleeps) {
      if (memoryBytes !== null && memoryBytes >= ASLEEP_LIMIT_BYTES)
        problems.push(`it held ${megabytes(memoryBytes)} of RAM asleep`)
    }
    return problems
  }

  /** Two lines. */
  summary(upstreamRequests: number | null): string {
    const total = (of: (sleep: Sleep) => number) => this.sleeps.reduce((sum, sleep) => sum + of(sleep), 0)
    const asleep = Math.max(0, ...this.sleeps.map(({ memoryBytes }) => memoryBytes ?? 0))
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
