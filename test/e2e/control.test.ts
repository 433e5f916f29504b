import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { constants } from 'node:os'
import { demoted, promoted, restarted } from '../../src/api/cloud/schemas.ts'
import type { Computer } from '../support/computer.ts'
import { Gates, timesAsked } from '../support/gates.ts'
import { type LlmServer, startLlmServer } from '../support/llm-server.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'
import { until } from '../support/sweep.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

const AGENT_PORT = 10_000
const EXPOSED_PORT = 8_123

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

describe('demote and promote', () => {
  let computer: Computer
  beforeAll(async () => {
    computer = await orb.computer()
    await computer.deployAgent({ llmPort: llm.port, config: { ports: { expose: [EXPOSED_PORT] } } })
  })

  const demote = async (body?: object) => demoted.parse((await computer.call('POST', '/agents/demote', body)).json)
  const promote = async (body?: object) => promoted.parse((await computer.call('POST', '/agents/promote', body)).json)

  test.each([
    ['no body', undefined],
    ['an empty body', {}],
    ['the port of the agent', { port: AGENT_PORT }],
    ['an exposed port', { port: EXPOSED_PORT }],
    ['a port of null', { port: null }],
  ])('put it to disk and back, with %s', async (_, body) => {
    const before = await computer.state()
    const slept = await demote(body)
    expect(slept).toMatchObject({ status: 'demoted', port: AGENT_PORT, state: 'checkpointed', kind: 'full' })
    expect(slept.checkpoint_dir).not.toBe('')
    expect(slept.size_bytes).toBeGreaterThan(0)
    expect(await computer.agent()).toMatchObject({ state: 'checkpointed', pid: null, sleep_reason: 'manual' })
    expect(computer.agentProcesses()).toEqual([])
    expect((await computer.view()).agent_state).toBe('checkpointed')

    const woken = await promote(body)
    expect(woken).toMatchObject({ status: 'promoted', port: AGENT_PORT, state: 'running' })
    expect(woken.restore_ms).toBeGreaterThan(0)
    expect(woken.pid).toBe((await computer.agent())?.pid ?? 0)
    expect(await computer.state()).toEqual({ life: before.life, count: before.count + 1 })
  })

  test('done twice change nothing more', async () => {
    const first = await demote()
    const second = await demote()
    expect(second).toMatchObject({ status: 'demoted', state: 'checkpointed', checkpoint_dir: first.checkpoint_dir })
    expect(second.size_bytes).toBe(first.size_bytes)
    expect(second.duration_ms).toBe(0)
    expect((await promote()).status).toBe('promoted')
    const { pid } = await promote().then((answer) => {
      expect(answer).toMatchObject({ status: 'running', state: 'running', port: AGENT_PORT, restore_ms: null })
      return answer
    })
    expect(pid).toBe((await computer.agent())?.pid ?? 0)
  })

  test('at once, many times, end in one state', async () => {
    const before = await computer.state()
    const answers = await Promise.all(
      ['demote', 'promote', 'demote', 'demote', 'promote', 'promote'].map((verb) =>
        computer.call('POST', `/agents/${verb}`),
      ),
    )
    expect(answers.map(({ status }) => status)).toEqual([200, 200, 200, 200, 200, 200])
    await promote()
    expect(await computer.state()).toEqual({ life: before.life, count: before.count + 1 })
    await computer.expectStarts(1)
  })

  test.each(['demote', 'promote'])('%s of a port that nothing has is refused', async (verb) => {
    for (const port of [1, 9_999, 10_001, 65_536]) {
      const { status, json } = await computer.call('POST', `/agents/${verb}`, { port })
      expect([port, status, json['error']]).toEqual([port, 404, 'port_not_found'])
    }
    for (const port of ['10000', 0, -1, 1.5, true]) {
      const { status, json } = await computer.call('POST', `/agents/${verb}`, { port })
      expect([port, status, json['error']]).toEqual([port, 400, 'invalid_request'])
    }
    expect((await computer.agent())?.state).toBe('running')
  })

  test('wake a frozen agent', async () => {
    gates.shut('frozen')
    await computer.ask({ id: 'frozen', prompt: 'frozen' })
    const { pid } = await computer.waitForState('frozen')
    expect(await promote()).toMatchObject({ status: 'promoted', state: 'running', pid, restore_ms: null })
    gates.open('frozen')
    expect(await computer.outcome('frozen')).toMatchObject({ answer: 'echo: frozen' })
  })

  test('a demoted agent wakes by the answer it waits for', async () => {
    gates.shut('outstanding')
    await computer.ask({ id: 'outstanding', prompt: 'outstanding' })
    await until(() => timesAsked(llm.requests, 'outstanding') === 1)
    await demote()
    gates.open('outstanding')
    expect(await computer.outcome('outstanding')).toMatchObject({ answer: 'echo: outstanding', intact: true })
    expect((await computer.agent())?.state).toBe('running')
    expect(timesAsked(llm.requests, 'outstanding')).toBe(1)
  })

  test('restart ends everything, orphans too, and keeps the disk', async () => {
    await computer.sh('sleep 1000 & disown')
    await computer.spawnInAgent('setsid sleep 1000 &')
    await until(() => computer.processes().length >= 5)
    await demote()
    const answer = await computer.call('POST', '/restart')
    expect(restarted.parse(answer.json)).toMatchObject({ restarted: true, killed_agents: 1 })
    expect(await computer.agent()).toBeUndefined()
    expect(await computer.view()).toMatchObject({ status: 'ready', agent_count: 0, agent_state: null })
    expect(computer.agentProcesses()).toEqual([])
    // Its own pid 1 is all there is.
    expect(computer.processes()).toHaveLength(1)
    await computer.expectStarts(1)
    expect((await computer.call('POST', '/restart')).json).toMatchObject({ restarted: true, killed_agents: 0 })
    for (const verb of ['demote', 'promote']) {
      const refused = await computer.call('POST', `/agents/${verb}`)
      expect([refused.status, refused.json['error']]).toEqual([404, 'agent_not_found'])
    }
    // The configuration is still there to deploy from.
    expect((await computer.call('POST', '/agents')).json).toMatchObject({ state: 'running', deployed: 1 })
  })
})

describe('an agent that ends', () => {
  const RUN_ON = 'setInterval(() => {}, 1000)\n'

  test('with a code and words on stderr has failed with both', async () => {
    const computer = await orb.computer()
    const source =
      "console.error('first line'); console.error('the last words'); setTimeout(() => process.exit(3), 600)"
    expect((await computer.deployScript('node', source)).json).toMatchObject({ state: 'running' })
    const view = await computer.waitForState('failed')
    expect(view).toMatchObject({ pid: null, exit_code: 3, failure_reason: 'exit' })
    expect(view.stderr_tail).toBe('first line\nthe last words\n')
    expect(await computer.view()).toMatchObject({ status: 'failed', agent_count: 0, agent_state: 'failed' })
    expect(await computer.lines('orb')).toContain('exited with code 3')
    for (const verb of ['demote', 'promote']) {
      const { status, json } = await computer.call('POST', `/agents/${verb}`, { port: AGENT_PORT })
      expect([status, json['error']]).toEqual([409, 'agent_failed'])
      expect(json['message']).toBe(`agent ${AGENT_PORT} has failed — cannot ${verb}`)
    }
  })

  test('within 300 ms is shown as failed by the deploy', async () => {
    const computer = await orb.computer()
    const answer = await computer.deployScript('binary', '#!/bin/sh\necho oh no >&2\nexit 4\n')
    expect(answer.status).toBe(201)
    expect(answer.json).toMatchObject({ state: 'failed', pid: null, agents: [{ state: 'failed' }] })
    expect(await computer.agent()).toMatchObject({ state: 'failed', exit_code: 4, stderr_tail: 'oh no\n' })
  })

  test('with code 0 has failed too', async () => {
    const computer = await orb.computer()
    await computer.deployScript('node', 'process.exit(0)')
    expect(await computer.waitForState('failed')).toMatchObject({ exit_code: 0, failure_reason: 'exit' })
  })

  test.each(['SIGKILL', 'SIGTERM', 'SIGSEGV'] as const)('by %s has failed with 128 and its number', async (signal) => {
    const computer = await orb.computer()
    await computer.deployScript('node', RUN_ON)
    await computer.sh(`pkill -${signal.slice(3)} -f "^node main.mjs"`)
    const view = await computer.waitForState('failed')
    expect(view).toMatchObject({ exit_code: 128 + constants.signals[signal], failure_reason: 'exit' })
  })

  test('for want of memory has failed with 137 and says so', async () => {
    const computer = await orb.computer({ runtime_mb: 64 })
    const source = 'const kept = []; setInterval(() => kept.push(Buffer.alloc(16 * 1024 * 1024, 1)), 5)'
    await computer.deployScript('node', source)
    expect(await computer.waitForState('failed')).toMatchObject({ exit_code: 137, failure_reason: 'oom' })
    expect(computer.memoryBytes()).toBeLessThan(200 * 1024 * 1024)
  })

  test('right after a wake is seen to end', async () => {
    const computer = await orb.computer()
    await computer.deployScript('node', RUN_ON)
    await computer.call('POST', '/agents/demote')
    await computer.call('POST', '/agents/promote')
    await computer.sh('pkill -KILL -f "^node main.mjs"')
    expect(await computer.waitForState('failed')).toMatchObject({ exit_code: 137, failure_reason: 'exit' })
  })
})
