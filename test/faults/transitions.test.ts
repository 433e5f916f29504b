import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Computer } from '../support/computer.ts'
import { type LlmServer, startLlmServer } from '../support/llm-server.ts'
import type { Answer } from '../support/orb.ts'
import { remains, until } from '../support/sweep.ts'
import { FaultyOrb, type Mode } from './faulty-orb.ts'
import { programs } from './programs.ts'

/** One test goes through all operations of a transition. */
setDefaultTimeout(15 * 60_000)

const MODES: Mode[] = ['fail', 'kill']
/** Each of these transitions has far more operations: fewer would mean that they are not seen. */
const FEW = 10
/** The work of sending a request is over before the freeze, the dump before the answer. */
const LADDER = { ORB_FREEZE_AFTER: '150ms', ORB_CHECKPOINT_AFTER: '250ms', ORB_BUSY_CPU_PERCENT: '100' }
const ANSWER_AFTER_MS = 450
/** After which an agent that has no answer must be helped: the fault was in its wake. */
const ANSWER_TIME_MS = 1500
/** A client library that meets an orb being started again tries for longer than that takes. */
const RETRIES = 8

let faulty: FaultyOrb
let llm: LlmServer
let computer: Computer
/** What the agent must still know. */
let life = ''
let count = 0

beforeAll(async () => {
  llm = startLlmServer()
  faulty = await FaultyOrb.start(LADDER)
  computer = await faulty.orb.computer()
  await computer.deployAgent({ llmPort: llm.port })
  ;({ life, count } = await computer.state())
})
afterAll(async () => {
  await faulty?.stop()
  await llm?.stop()
})

const demote = () => computer.call('POST', '/agents/demote')
const promote = () => computer.call('POST', '/agents/promote')

/** It did what was asked, or says why not. */
function expectHonest({ status, json }: Answer): void {
  if (status < 300) return
  expect(status).toBeGreaterThanOrEqual(409)
  expect(json).toMatchObject({ error: expect.any(String), message: expect.any(String) })
}

/** The agent is there, once, as orb says, and knows what it knew. */
async function expectWhole(states: string[]): Promise<void> {
  const view = await computer.agent()
  expect(states).toContain(view?.state ?? 'none')
  expect(programs(computer)).toHaveLength(view?.state === 'running' ? 1 : 0)
  expect((await promote()).status).toBe(200)
  expect(await computer.state()).toEqual({ life, count: ++count })
  expect(programs(computer)).toHaveLength(1)
}

/** What the agent printed about a question. */
const answers = (question: string): string[] =>
  readFileSync(join(faulty.orb.dataDir, 'computers', computer.id, 'rootfs/var/log/orb/agent.log'), 'utf8')
    .split('\n')
    .filter((line) => line.includes(`{"id":"${question}"`))

for (const mode of MODES) {
  describe(`each operation: ${mode}`, () => {
    test('of a checkpoint', async () => {
      const faults = await faulty.atEach(mode, {
        work: async () => expectHonest(await demote()),
        check: () => expectWhole(['running', 'checkpointed']),
      })
      expect(faults).toBeGreaterThan(FEW)
    })

    test('of a restore', async () => {
      const faults = await faulty.atEach(mode, {
        prepare: async () => expect(await demote()).toMatchObject({ status: 200 }),
        work: async () => expectHonest(await promote()),
        check: () => expectWhole(['running', 'checkpointed', 'failed']),
      })
      expect(faults).toBeGreaterThan(FEW)
    })

    test('of a call that the agent sleeps through', async () => {
      let round = 0
      const question = () => `${mode} ${round}`
      const faults = await faulty.atEach(mode, {
        prepare: async () => {
          round++
          await computer.ask({ id: question(), prompt: question(), delayMs: ANSWER_AFTER_MS, maxRetries: RETRIES })
        },
        // Read behind orb's back: what the test asks of orb is not a part of the transition.
        work: () => until(async () => answers(question()).length > 0 || !(await faulty.alive()), ANSWER_TIME_MS),
        check: async () => {
          await promote()
          const outcome = await computer.outcome(question())
          expect(outcome).toMatchObject({ answer: `echo: ${question()}`, life, count: ++count, intact: true })
          await expectWhole(['running'])
          expect(answers(question())).toHaveLength(1)
        },
      })
      expect(faults).toBeGreaterThan(FEW)
    })

    test('of a start and an end', async () => {
      const other = await faulty.orb.computer()
      await other.deployAgent()
      const faults = await faulty.atEach(mode, {
        work: async () => {
          expectHonest(await other.call('POST', '/agents'))
          expectHonest(await other.call('POST', '/restart'))
        },
        check: async () => {
          expect(programs(other).length).toBeLessThanOrEqual(1)
          expect((await other.call('POST', '/agents')).status).toBe(201)
          expect(await until(() => programs(other).length === 1)).toBe(true)
        },
      })
      expect(faults).toBeGreaterThan(FEW)
      expect((await other.call('DELETE', '')).status).toBe(200)
    })

    test('of making and deleting a computer', async () => {
      let id = ''
      const ids = async () => (await faulty.orb.call('GET', '/v1/computers')).json['computers'] as { id: string }[]
      const faults = await faulty.atEach(mode, {
        work: async () => {
          id = ''
          const made = await faulty.orb.call('POST', '/v1/computers', { name: 'short-lived', disk_mb: 64 })
          expectHonest(made)
          id = String(made.json['id'] ?? '')
          if (id) expectHonest(await faulty.orb.call('DELETE', `/v1/computers/${id}`))
        },
        check: async () => {
          for (const other of await ids()) {
            if (other.id === computer.id) continue
            const left = new Computer(faulty.orb, other.id)
            expect((await left.call('DELETE', '')).status).toBe(200)
            expect(remains(join(faulty.orb.dataDir, 'computers', left.id), [left.name])).toEqual([])
          }
          expect((await ids()).map((one) => one.id)).toEqual([computer.id])
          if (!id || !existsSync(join(faulty.orb.dataDir, 'computers', id))) return
          // What a deletion had to leave is cleared away at the next start.
          await faulty.orb.terminate()
          await faulty.orb.restart()
          expect(await until(() => !existsSync(join(faulty.orb.dataDir, 'computers', id)))).toBe(true)
        },
      })
      expect(faults).toBeGreaterThan(FEW)
    })
  })
}
