import { Database } from 'bun:sqlite'
import { afterAll, afterEach, beforeAll, expect, setDefaultTimeout, test } from 'bun:test'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import type { Computer } from '../support/computer.ts'
import { Gates, timesAsked } from '../support/gates.ts'
import { type LlmServer, startLlmServer } from '../support/llm-server.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'
import { until } from '../support/sweep.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

/** Too long for a row of the database: it lies in a file. */
const LONG_PROMPT = 'a long question '.repeat(320).trim()

const WAKE_LIMIT_MS = 20_000

const gates = new Gates()
let orb: Orb
let llm: LlmServer

beforeAll(async () => {
  llm = startLlmServer({ answerWhen: gates.answerWhen })
  orb = await startOrb()
})
afterEach(() => gates.openAll())
afterAll(async () => {
  await orb?.stop()
  await llm?.stop()
})

const crash = async (): Promise<void> => {
  await orb.kill9()
  await orb.restart()
}

const fromDatabase = (query: string): unknown[] => {
  const db = new Database(join(orb.dataDir, 'orb.db'), { readonly: true })
  try {
    return db.query(query).values().flat()
  } finally {
    db.close()
  }
}

/** States of the calls in the journal. */
const journaled = (): unknown[] => fromDatabase('SELECT state FROM llm_calls')

const outstanding = (computer: Computer): unknown[] =>
  fromDatabase(`SELECT llm_outstanding FROM agents WHERE computer_id = '${computer.id}'`)

const expectEmptyJournal = async (): Promise<void> => {
  const spool = () => readdirSync(join(orb.dataDir, 'spool')).filter((name) => name !== 'requests')
  await until(() => journaled().length === 0 && spool().length === 0)
  expect([...journaled(), ...spool()]).toEqual([])
}

/** An agent on disk that has asked `id` and waits. */
async function sleeper(id: string, question: Partial<Parameters<Computer['ask']>[0]> = {}): Promise<Computer> {
  gates.shut(id)
  const computer = await orb.computer()
  await computer.deployAgent({ llmPort: llm.port })
  await computer.ask({ id, prompt: id, maxRetries: 2, ...question })
  await computer.waitForState('checkpointed')
  return computer
}

/** Lets the LLM answer, and kills orb while it wakes the agent for that. */
async function killDuringWake(computer: Computer, id: string): Promise<void> {
  gates.open(id)
  const phase = `SELECT phase FROM agents WHERE computer_id = '${computer.id}'`
  const limit = performance.now() + WAKE_LIMIT_MS
  let seen: unknown
  // A restore is short: no pause here, but for what serves the answer.
  for (; seen !== 'restoring' && performance.now() < limit; await Bun.sleep(0)) seen = fromDatabase(phase)[0]
  await orb.kill9()
  expect(seen).toBe('restoring')
}

test.each([
  { how: 'killed', sdk: 'anthropic', stream: false, prompt: LONG_PROMPT },
  { how: 'killed', sdk: 'openai', stream: true, prompt: 'short' },
  { how: 'stopped', sdk: 'anthropic', stream: true, prompt: 'short' },
] as const)(
  'orb is $how before the answer to $sdk, streamed: $stream: the agent sleeps on until it is there',
  async ({ how, sdk, stream, prompt }) => {
    const id = `resent-${how}-${sdk}`
    const computer = await sleeper(id, { prompt, sdk, stream })
    if (how === 'killed') await orb.kill9()
    else expect(await orb.terminate()).toBe(0)
    await orb.restart()
    await until(() => timesAsked(llm.requests, id) === 2)
    const [first, second] = llm.requests.filter(({ headers }) => headers.get('x-question') === id)
    expect(second).toEqual(first!)
    expect(await computer.agent()).toMatchObject({ state: 'checkpointed', pid: null })
    expect(computer.agentProcesses()).toEqual([])

    gates.open(id)
    expect(await computer.outcome(id)).toMatchObject({ answer: `echo: ${prompt}`, count: 1, intact: true })
    expect(timesAsked(llm.requests, id)).toBe(2)
    expect((await computer.lines('orb')).filter((line) => line.startsWith('restored'))).toEqual([
      expect.stringMatching(/^restored \(llm\)/),
    ])
    expect(await computer.state()).toMatchObject({ count: 2 })
    expect(outstanding(computer)).toEqual([0])
    await computer.expectStarts(1)
    await expectEmptyJournal()
  },
)

test('orb is killed with an answer that was not delivered: the agent gets that one', async () => {
  const computer = await sleeper('undelivered')
  await killDuringWake(computer, 'undelivered')
  expect(journaled()).toEqual(['complete'])
  await orb.restart()
  expect(await computer.outcome('undelivered')).toMatchObject({ answer: 'echo: undelivered', count: 1, intact: true })
  expect(timesAsked(llm.requests, 'undelivered')).toBe(1)
  await computer.expectStarts(1)
  await expectEmptyJournal()
})

test('an answer that is kept over a crash is for the same request, once', async () => {
  const computer = await sleeper('lost', { prompt: 'the same', maxRetries: 0 })
  await killDuringWake(computer, 'lost')
  await orb.restart()
  expect((await computer.outcome('lost')).error).toContain('Connection error')

  await computer.ask({ id: 'other', prompt: 'another' })
  expect(await computer.outcome('other')).toMatchObject({ answer: 'echo: another' })
  await computer.ask({ id: 'same', prompt: 'the same' })
  expect(await computer.outcome('same')).toMatchObject({ answer: 'echo: the same' })
  await computer.ask({ id: 'again', prompt: 'the same' })
  expect(await computer.outcome('again')).toMatchObject({ answer: 'echo: the same' })
  const asked = ['lost', 'other', 'same', 'again'].map((id) => timesAsked(llm.requests, id))
  expect(asked).toEqual([1, 1, 0, 1])
  await expectEmptyJournal()
})

test('a call is sent again once only: after another crash the agent is woken and asks itself', async () => {
  const computer = await sleeper('twice')
  await crash()
  await until(() => timesAsked(llm.requests, 'twice') === 2)
  await crash()
  await computer.waitForLine((line) => line.startsWith('restored (recovery)'))
  await until(() => timesAsked(llm.requests, 'twice') === 3)
  gates.open('twice')
  expect(await computer.outcome('twice')).toMatchObject({ answer: 'echo: twice', count: 1, intact: true })
  expect(timesAsked(llm.requests, 'twice')).toBe(3)
  await computer.expectStarts(1)
  await expectEmptyJournal()
})

test('an agent that is woken before the answer that orb fetches joins that call, and sleeps in it again', async () => {
  const computer = await sleeper('joined')
  await crash()
  await until(() => timesAsked(llm.requests, 'joined') === 2)
  expect((await computer.call('POST', '/agents/promote')).json).toMatchObject({ status: 'promoted' })
  await computer.waitForState('checkpointed')
  gates.open('joined')
  expect(await computer.outcome('joined')).toMatchObject({ answer: 'echo: joined', count: 1, intact: true })
  expect(timesAsked(llm.requests, 'joined')).toBe(2)
  await expectEmptyJournal()
})

test('with the agent its calls go', async () => {
  const computer = await sleeper('forgotten', { prompt: LONG_PROMPT })
  await crash()
  await until(() => timesAsked(llm.requests, 'forgotten') === 2)
  await computer.call('POST', '/restart')
  await expectEmptyJournal()
})
