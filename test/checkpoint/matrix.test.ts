/*
 * Every program × every situation × every way to sleep, each on a real orb: it is put to sleep, really sleeps, is woken by
 * what wakes it in life, and goes on with nothing lost and nothing doubled. `scripts/checkpoint-matrix` makes the table of it.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { type Orb, startOrb } from '../support/orb.ts'
import { until } from '../support/sweep.ts'
import { MatrixAgent } from './agent.ts'
import { PROGRAMS, type Program, type Situation } from './programs.ts'
import { Results } from './results.ts'
import { firstPart, startUpstream, type Upstream, wholeAnswer } from './upstream.ts'
import { WAYS, type Way } from './ways.ts'

setDefaultTimeout(120_000)

/** Of its log, when something is not as it should be. */
const SHOWN_LINES = 20

const results = new Results()
afterAll(() => results.write())

describe.each(WAYS)('$name', (way) => {
  let orb: Orb
  let upstream: Upstream
  beforeAll(async () => {
    upstream = startUpstream()
    orb = await startOrb({ env: way.env })
  })
  afterAll(async () => {
    await orb?.stop()
    await upstream?.stop()
  })

  describe.each(PROGRAMS)('$name', (program) => {
    let agent: MatrixAgent
    beforeAll(async () => {
      agent = await MatrixAgent.deploy(orb, program, upstream.port)
      await way.prepare?.(agent, upstream)
    })
    afterAll(async () => {
      if (agent) expect((await agent.computer.call('DELETE', '')).status).toBe(200)
    })

    test.each(way.situations)('%s', (situation) =>
      results.record({ program, situation, way: way.name }, () =>
        sleepAndWake(agent, situation, way, upstream).catch(async (thrown) => {
          console.error((await agent.computer.lines()).slice(-SHOWN_LINES).join('\n'))
          throw thrown
        }),
      ),
    )
  })
})

async function sleepAndWake(agent: MatrixAgent, situation: Situation, way: Way, upstream: Upstream) {
  const { computer, program } = agent
  const question = `${computer.shortId}-${situation}`
  const before = await agent.report()
  if (situation !== 'idle') {
    upstream.hold(question)
    await agent.ask(question, situation)
    const begun = await until(async () => (await agent.heard(question)) === firstPart(question, situation))
    if (!begun) throw new Error(`of the stream came ${JSON.stringify(await agent.heard(question))}`)
  }

  const sleep = await way.sleep(agent, situation)
  const refusal = program.refused?.[way.name]
  if (sleep.refused === null) await way.expectAsleep(agent)
  expect(sleep.refused ?? 'asleep').toMatch(refusal ?? /^asleep$/)

  if (situation === 'idle') {
    if (program.wake === 'promote') expect((await computer.call('POST', '/agents/promote')).status).toBe(200)
  } else {
    expect(await agent.heard(question)).toBe(firstPart(question, situation))
    upstream.release(question)
    expect(await agent.answer(question)).toBe(wholeAnswer(question, situation))
    expect(upstream.asked.get(question)).toBe(1)
  }
  await agent.goesOnFrom(before)
  expect(await computer.agent()).toMatchObject({ state: 'running', sleep_reason: null, failure_reason: null })
  return { ...sleep, wakeMs: sleep.refused === null ? await way.wakeMs(agent, reasonOf(program, situation)) : null }
}

/** What the log says that woke it. */
const reasonOf = (program: Program, situation: Situation): string =>
  situation !== 'idle' ? 'llm' : program.wake === 'promote' ? 'manual' : 'http'
