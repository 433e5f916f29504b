import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import type { Computer } from '../support/computer.ts'
import type { Answer } from '../support/orb.ts'
import { FaultyOrb, type Mode } from './faulty-orb.ts'
import { programs } from './programs.ts'

/** One test goes through all operations of a transition. */
setDefaultTimeout(15 * 60_000)

const MODES: Mode[] = ['fail', 'kill']

let faulty: FaultyOrb
let computer: Computer
/** What the agent must still know. */
let life = ''
let count = 0

beforeAll(async () => {
  faulty = await FaultyOrb.start()
  computer = await faulty.orb.computer()
  await computer.deployAgent()
  ;({ life, count } = await computer.state())
})
afterAll(() => faulty?.stop())

const demote = () => computer.call('POST', '/agents/demote')
const promote = () => computer.call('POST', '/agents/promote')

/** It did what was asked, or says why not. */
function expectHonest(answer: Answer | undefined): void {
  if (!answer || answer.status === 200) return
  expect(answer.status).toBeGreaterThanOrEqual(409)
  expect(answer.json).toMatchObject({ error: expect.any(String), message: expect.any(String) })
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

for (const mode of MODES) {
  describe(`each operation: ${mode}`, () => {
    test('of a checkpoint', async () => {
      const faults = await faulty.atEach(
        mode,
        async () => expectHonest(await demote()),
        () => expectWhole(['running', 'checkpointed']),
      )
      expect(faults).toBeGreaterThan(10)
    })

    test('of a restore', async () => {
      const faults = await faulty.atEach(
        mode,
        async () => {
          expect((await demote()).status).toBe(200)
          expectHonest(await promote())
        },
        () => expectWhole(['running', 'checkpointed', 'failed']),
      )
      expect(faults).toBeGreaterThan(10)
    })
  })
}
