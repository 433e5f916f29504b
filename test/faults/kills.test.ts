import { afterAll, beforeAll, expect, setDefaultTimeout, test } from 'bun:test'
import { createHash, randomUUID } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { z } from 'zod'
import type { Computer } from '../support/computer.ts'
import { type Orb, startOrb } from '../support/orb.ts'
import { until } from '../support/sweep.ts'
import { programs } from './programs.ts'

setDefaultTimeout(10 * 60_000)

const AGENTS = 10
const TRANSITIONS = 200
const KILLS = 30
/** Between two kills at most: long enough for several transitions, short enough to meet most of them half way. */
const LONGEST_LIFE_MS = 2000
/** Answers take up to this: some come before the freeze, some before the checkpoint, most after it. */
const LONGEST_ANSWER_MS = 1500
/** Every agent must have got this much further after the last kill. */
const QUESTIONS_AFTERWARDS = 3

const Question = z.object({ life: z.string(), number: z.int(), chain: z.string() })

/** What the LLM knows of one agent. */
interface Talk {
  life: string
  /** Question that it is at, and the hash of all answers before. */
  number: number
  chain: string
  /** Answers that were given to this question; more than one when it was asked again. */
  given: string[]
}

/** Says something else each time that it is asked, and checks that agents know exactly one answer to each question. */
class Llm {
  readonly talks = new Map<string, Talk>()
  readonly faults: string[] = []
  requests = 0
  private readonly server = Bun.serve({
    hostname: '127.0.0.1',
    port: 0,
    idleTimeout: 0,
    fetch: async (request) => {
      this.requests++
      const { life, number, chain } = Question.parse(await request.json())
      const talk: Talk = this.talks.get(life) ?? { life, number: 0, chain: '', given: [] }
      this.talks.set(life, talk)
      if (number === talk.number + 1) this.next(talk, chain)
      if (number !== talk.number || chain !== talk.chain) {
        this.faults.push(`${life} asks question ${number} with ${chain}, it was at ${talk.number} with ${talk.chain}`)
      }
      await Bun.sleep(Math.random() * LONGEST_ANSWER_MS)
      const answer = randomUUID()
      talk.given.push(answer)
      return new Response(answer)
    },
  })

  get port(): number {
    return this.server.port ?? 0
  }

  stop(): Promise<void> {
    return this.server.stop(true)
  }

  private next(talk: Talk, chain: string): void {
    const after = (answer: string) => createHash('sha256').update(`${talk.chain} ${answer}`).digest('hex')
    if (!talk.given.some((answer) => after(answer) === chain)) {
      this.faults.push(`${talk.life} knows another answer to question ${talk.number} than those that were given`)
    }
    Object.assign(talk, { number: talk.number + 1, chain, given: [] })
  }
}

let orb: Orb
let llm: Llm
const computers: Computer[] = []

beforeAll(async () => {
  llm = new Llm()
  orb = await startOrb()
  const source = readFileSync(join(import.meta.dir, 'agent.mjs'), 'utf8')
  for (let i = 0; i < AGENTS; i++) {
    const computer = await orb.computer()
    const config = { llm: { base_url: `http://127.0.0.1:${llm.port}` } }
    expect((await computer.deployScript('node', source, config)).status).toBe(201)
    computers.push(computer)
  }
})
afterAll(async () => {
  await orb?.stop()
  await llm?.stop()
})

/** Freezes, checkpoints and restores of all agents so far, by what their logs say. */
async function transitions(): Promise<number> {
  const logs = await Promise.all(computers.map((computer) => computer.lines('orb')))
  return logs.flat().filter((line) => /^(checkpointed|restored|reclaimed)/.test(line)).length
}

test(`${TRANSITIONS} transitions of ${AGENTS} agents, with ${KILLS} kills at random moments`, async () => {
  let kills = 0
  while ((await transitions()) < TRANSITIONS || kills < KILLS) {
    await Bun.sleep(Math.random() * LONGEST_LIFE_MS)
    await orb.kill9()
    await orb.restart()
    kills++
    for (const computer of computers) {
      const agents = programs(computer).length
      expect(agents).toBeLessThanOrEqual(1)
    }
    expect(llm.faults).toEqual([])
  }
  const before = new Map([...llm.talks.values()].map(({ life, number }) => [life, number]))
  const behind = () =>
    [...llm.talks.values()].filter(({ life, number }) => number < (before.get(life) ?? 0) + QUESTIONS_AFTERWARDS)
  await until(() => behind().length === 0, 60_000)
  const logs = await Promise.all(computers.map(async (one) => (await one.lines()).slice(-15).join('\n')))
  expect({ behind: behind(), logs: behind().length > 0 ? logs : [] }).toEqual({ behind: [], logs: [] })
  expect(llm.faults).toEqual([])
  expect(llm.talks.size).toBe(AGENTS)
  for (const computer of computers) {
    await computer.expectStarts(1)
    const agree = async () =>
      (await computer.agent())?.state === 'checkpointed'
        ? programs(computer).length === 0
        : programs(computer).length === 1
    expect(await until(agree)).toBe(true)
  }
  console.log(`${kills} kills, ${await transitions()} transitions, ${llm.requests} requests`)
})
