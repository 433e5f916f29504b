import type { SeenRequest } from './llm-server.ts'

/** Lets a test decide when each question of the test agent is answered: those that are not shut are answered at once. */
export class Gates {
  private readonly shutOnes = new Map<string, PromiseWithResolvers<void>>()

  shut(...questions: string[]): void {
    for (const id of questions) this.shutOnes.set(id, Promise.withResolvers())
  }

  open(question: string): void {
    this.shutOnes.get(question)?.resolve()
  }

  /** After a test, so that one that failed leaves nobody waiting for the next ones to stumble over. */
  openAll(): void {
    for (const id of this.shutOnes.keys()) this.open(id)
  }

  /** For `startLlmServer`. */
  readonly answerWhen = ({ headers }: SeenRequest): Promise<void> | undefined =>
    this.shutOnes.get(headers.get('x-question') ?? '')?.promise
}

/** How often the stand-in LLM was asked a question. */
export const timesAsked = (requests: SeenRequest[], question: string): number =>
  requests.filter(({ headers }) => headers.get('x-question') === question).length
