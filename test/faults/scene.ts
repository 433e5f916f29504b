/** One agent of a faulty orb, and what must hold of it after a fault. */
import { Database } from 'bun:sqlite'
import { expect } from 'bun:test'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Computer } from '../support/computer.ts'
import { type LlmServer, startLlmServer } from '../support/llm-server.ts'
import type { Answer } from '../support/orb.ts'
import { until } from '../support/sweep.ts'
import { FaultyOrb, type Mode } from './faulty-orb.ts'
import { programs } from './programs.ts'

/** The work of sending a request is over before the freeze, the dump before the answer. */
const LADDER = { ORB_FREEZE_AFTER: '150ms', ORB_CHECKPOINT_AFTER: '250ms', ORB_BUSY_CPU_PERCENT: '100' }
const ANSWER_AFTER_MS = 450
/** After which an agent that has no answer must be helped: the fault was in its wake. */
const ANSWER_TIME_MS = 1500
/** A client library that meets an orb being started again tries for longer than that takes. */
const RETRIES = 8

/** What an agent takes of the server in each state. */
const TAKES = { running: 'ram', frozen: 'ram', checkpointed: 'nvme', failed: 'none' }

export class Scene {
  private round = 0

  private constructor(
    readonly faulty: FaultyOrb,
    private readonly llm: LlmServer,
    readonly computer: Computer,
    /** What the agent must still know. */
    private readonly life: string,
    private count: number,
  ) {}

  static async start(env: Record<string, string> = {}): Promise<Scene> {
    const llm = startLlmServer()
    const faulty = await FaultyOrb.start({ ...LADDER, ...env })
    const computer = await faulty.orb.computer()
    await computer.deployAgent({ llmPort: llm.port })
    const { life, count } = await computer.state()
    return new Scene(faulty, llm, computer, life, count)
  }

  async stop(): Promise<void> {
    await this.faulty.stop().finally(() => this.llm.stop())
  }

  demote(): Promise<Answer> {
    return this.computer.call('POST', '/agents/demote')
  }

  promote(): Promise<Answer> {
    return this.computer.call('POST', '/agents/promote')
  }

  /** The agent is there, once, as orb says, and knows what it knew. */
  async expectWhole(states: string[]): Promise<void> {
    const view = await this.computer.agent()
    expect(states).toContain(view?.state ?? 'none')
    expect(programs(this.computer)).toHaveLength(view?.state === 'running' ? 1 : 0)
    expect(this.accountedState()).toBe(TAKES[view?.state ?? 'failed'])
    expect((await this.promote()).status).toBe(200)
    expect(await this.computer.state()).toEqual({ life: this.life, count: ++this.count })
    expect(programs(this.computer)).toHaveLength(1)
  }

  /** Begins an LLM call whose answer takes long enough for the agent to fall asleep. */
  async ask(): Promise<void> {
    this.round++
    await this.computer.ask({
      id: this.question,
      prompt: this.question,
      delayMs: ANSWER_AFTER_MS,
      maxRetries: RETRIES,
    })
  }

  /** That call is over, once, and the agent is whole. */
  async expectAnswer(): Promise<void> {
    await this.promote()
    const outcome = await this.computer.outcome(this.question)
    const { life, question } = this
    expect(outcome).toMatchObject({ answer: `echo: ${question}`, life, count: ++this.count, intact: true })
    await this.expectWhole(['running'])
    expect(this.answers()).toHaveLength(1)
  }

  /** Goes through all operations of such a call. Returns how many there were. */
  callAtEach(mode: Mode): Promise<number> {
    return this.faulty.atEach(mode, {
      prepare: () => this.ask(),
      // Read behind orb's back: what the test asks of orb is not a part of the transition.
      work: () => until(async () => this.answers().length > 0 || !(await this.faulty.alive()), ANSWER_TIME_MS),
      check: () => this.expectAnswer(),
    })
  }

  private get question(): string {
    return `question ${this.round}`
  }

  /** What by the account of its usage the agent takes now. */
  private accountedState(): string | undefined {
    const db = new Database(join(this.faulty.orb.dataDir, 'orb.db'), { readonly: true })
    try {
      const marks = db.query<{ state: string }, [string]>(
        'SELECT state FROM usage_marks JOIN usage_computers ON number = computer WHERE id = ? ORDER BY at DESC',
      )
      return marks.get(this.computer.id)?.state
    } finally {
      db.close()
    }
  }

  /** What the agent printed about the question. */
  private answers(): string[] {
    const log = join(this.faulty.orb.dataDir, 'computers', this.computer.id, 'rootfs/var/log/orb/agent.log')
    return readFileSync(log, 'utf8')
      .split('\n')
      .filter((line) => line.includes(`{"id":"${this.question}"`))
  }
}

/** It did what was asked, or says why not. */
export function expectHonest({ status, json }: Answer): void {
  if (status < 300) return
  expect(status).toBeGreaterThanOrEqual(409)
  expect(json).toMatchObject({ error: expect.any(String), message: expect.any(String) })
}
