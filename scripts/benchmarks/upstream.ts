/** What the agents of a benchmark ask: each question is handed out, and answered when the benchmark says so. */
import { z } from 'zod'

const Question = z.object({ round: z.int(), intact: z.boolean().nullable() })

export interface Asked {
  question: z.output<typeof Question>
  answer(text: string): void
}

const NEXT_TIMEOUT_MS = 30_000

export class Upstream {
  readonly port: number
  private readonly server
  private readonly asked: Asked[] = []
  private waiting: ((asked: Asked) => void) | null = null

  constructor(hostname: string) {
    this.server = Bun.serve({
      hostname,
      port: 0,
      idleTimeout: 0,
      fetch: async (request) => {
        const question = Question.parse(await request.json())
        return new Promise<Response>((resolve) =>
          this.hand({ question, answer: (text) => resolve(new Response(text)) }),
        )
      },
    })
    this.port = this.server.port ?? 0
  }

  /** The next question. @throws Error when none comes within 30 s */
  async next(): Promise<Asked> {
    const ready = this.asked.shift()
    if (ready) return ready
    const asked = await Promise.race([
      new Promise<Asked>((resolve) => (this.waiting = resolve)),
      Bun.sleep(NEXT_TIMEOUT_MS),
    ])
    if (!asked) throw new Error(`no question came within ${NEXT_TIMEOUT_MS} ms`)
    return asked
  }

  stop(): Promise<void> {
    return this.server.stop(true)
  }

  private hand(asked: Asked): void {
    const { waiting } = this
    this.waiting = null
    if (waiting) waiting(asked)
    else this.asked.push(asked)
  }
}
