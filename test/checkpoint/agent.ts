/** A program of the matrix as the agent of a computer. */
import { z } from 'zod'
import type { Computer } from '../support/computer.ts'
import type { Orb } from '../support/orb.ts'
import { until } from '../support/sweep.ts'
import { type Program, programFile } from './programs.ts'
import type { Kind } from './upstream.ts'

const PORT = 8000
const START_TIMEOUT_MS = 60_000
const ANSWER_TIMEOUT_MS = 30_000
const GO_ON_TIMEOUT_MS = 20_000
const DISK_MB = 768

const Report = z.object({
  life: z.string(),
  counts: z.record(z.string(), z.number()),
  problem: z.string().nullable(),
})
export type Report = z.output<typeof Report>

export class MatrixAgent {
  private reports = 0

  private constructor(
    readonly computer: Computer,
    readonly program: Program,
  ) {}

  static async deploy(orb: Orb, program: Program, llmPort: number): Promise<MatrixAgent> {
    const { name, lang, entry, args = [], files, runtimeMb = 512 } = program
    const computer = await orb.computer({ name, runtime_mb: runtimeMb, disk_mb: DISK_MB })
    for (const file of files) await computer.put(`agent/code/${file}`, await programFile(file))
    await computer.sh(`cd /agent/code && chmod +x ${files.join(' ')}`)
    const answer = await computer.deploy({
      agent: { name: 'matrix', lang, entry, args },
      ports: { expose: [PORT] },
      llm: { base_url: `http://127.0.0.1:${llmPort}` },
    })
    if (answer.status !== 201) throw new Error(`${name} could not be deployed: ${answer.status} ${answer.text}`)
    await computer.waitForLine((line) => line === 'ready', START_TIMEOUT_MS)
    return new MatrixAgent(computer, program)
  }

  /** Has the program check all that it has, and say how far it is. @throws Error with what it found wrong */
  async report(): Promise<Report> {
    const number = `${++this.reports}`
    const report = Report.parse(
      await (this.program.control === 'fifo' ? this.reportInLog(number) : this.visit('/report')),
    )
    if (report.problem !== null) throw new Error(`the program says: ${report.problem}`)
    return report
  }

  /** Resolves once it has gone on from `before` in everything that it counts. */
  async goesOnFrom(before: Report): Promise<void> {
    let now = before
    const went = await until(async () => {
      now = await this.report()
      if (now.life !== before.life) throw new Error('the program was started afresh')
      return Object.entries(before.counts).every(([name, count]) => (now.counts[name] ?? 0) > count)
    }, GO_ON_TIMEOUT_MS)
    if (!went) throw new Error(`stands still: ${JSON.stringify(before.counts)}, then ${JSON.stringify(now.counts)}`)
  }

  async ask(question: string, kind: Kind): Promise<void> {
    if (this.program.control === 'fifo') await this.tell(`ask ${question} ${kind}`)
    else await this.visit(`/ask?id=${question}&kind=${kind}`, 'POST')
  }

  /** What of the answer the program has. Wakes nobody. */
  async heard(question: string): Promise<string> {
    const { status, text } = await this.computer.call('GET', `/files/agent/data/answers/${question}`)
    return status === 200 ? text : ''
  }

  /** The answer once it has ended. @throws Error with how the call failed, as the program saw it */
  async answer(question: string): Promise<string> {
    let ends = ''
    const ended = await until(async () => {
      ends = await this.heard(`${question}.end`)
      return ends !== ''
    }, ANSWER_TIMEOUT_MS)
    if (!ended) throw new Error(`no end of the answer, only ${(await this.heard(question)).length} bytes`)
    if (ends !== '\n') throw new Error(`the call ended with: ${ends.trim()}`)
    return this.heard(question)
  }

  private async visit(path: string, method = 'GET'): Promise<unknown> {
    const { orb, shortId } = this.computer
    const response = await fetch(`${orb.url}${path}`, { method, headers: { host: `${shortId}.orb.localhost` } })
    const text = await response.text()
    if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${text}`)
    return JSON.parse(text)
  }

  private async reportInLog(number: string): Promise<unknown> {
    await this.tell(`report ${number}`)
    return JSON.parse(await this.computer.waitForLine((line) => line.startsWith(`{"report":"${number}"`)))
  }

  private async tell(line: string): Promise<void> {
    await this.computer.sh(`echo '${line}' >/agent/data/control`)
  }
}
