import { afterAll, afterEach, beforeAll, describe, expect, test } from 'bun:test'
import { constants } from 'node:os'
import { demoted, promoted, restarted } from '../../src/api/cloud/schemas.ts'
import type { Computer } from '../support/computer.ts'
import { Gates, timesAsked } from '../support/gates.ts'
import { type LlmServer, startLlmServer } from '../support/llm-server.ts'
import { type Orb, startOrb } from '../support/orb.ts'
import { until } from '../support/sweep.ts'

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
      ['demote', 'promote', 'demote', 'demote', 'promote', 'promote'].map((verb) => computer.call('POST', `/agents/${verb}`)),
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
    const source = "console.error('first line'); console.error('the last words'); setTimeout(() => process.exit(3), 600)"
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
    await computer.sh(`pkill -${signal.slice(3)} -f main.mjs`)
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
    await computer.sh('pkill -KILL -f main.mjs')
    expect(await computer.waitForState('failed')).toMatchObject({ exit_code: 137, failure_reason: 'exit' })
  })
})

describe('deploy', () => {
  test('replaces the whole old tree', async () => {
    const computer = await orb.computer()
    await computer.deployAgent()
    await computer.spawnInAgent('setsid sleep 1000 &')
    const old = computer.agentProcesses()
    await computer.deployAgent()
    const now = computer.agentProcesses()
    expect(now.filter((pid) => old.includes(pid))).toEqual([])
    expect(await computer.sh('pgrep -fc "^sleep 1000" || true')).toBe('0\n')
    expect((await computer.view()).agent_count).toBe(1)
  })

  test('replaces an agent that is asleep', async () => {
    const computer = await orb.computer()
    await computer.deployAgent()
    await computer.call('POST', '/agents/demote')
    const answer = await computer.call('POST', '/agents')
    expect(answer.json).toMatchObject({ state: 'running' })
    await until(async () => (await computer.get('agent/data/lives')).trim().split('\n').length === 2)
    await computer.expectStarts(2)
  })

  test('without replace leaves a live agent alone', async () => {
    const computer = await orb.computer()
    await computer.deployAgent()
    const before = await computer.agent()
    const { status, json } = await computer.call('POST', '/agents', { replace: false })
    expect([status, json['error']]).toEqual([409, 'agent_exists'])
    expect(await computer.agent()).toEqual(before)
  })

  test.each([
    ['no such file', { lang: 'binary', entry: '/no/such/program' }],
    ['not executable', { lang: 'binary', entry: '/etc/hostname' }],
    ['a directory', { lang: 'binary', entry: '/agent/data' }],
  ])('of a program that cannot be started keeps the old agent: %s', async (_, agent) => {
    const computer = await orb.computer()
    await computer.deployAgent()
    const before = await computer.agent()
    const { status, json } = await computer.deploy({ agent: { name: 'broken', ...agent } })
    expect([status, json['error']]).toEqual([422, 'spawn_failed'])
    expect(String(json['message'])).not.toContain(orb.dataDir)
    expect(await computer.agent()).toEqual(before)
    expect((await computer.state()).count).toBeGreaterThan(0)
  })
})

describe('environment and secrets', () => {
  test('an agent gets what the contract names, and nothing of the server', async () => {
    const computer = await orb.computer()
    await computer.deployAgent({
      env: {
        LITERAL: 'as it is',
        RENAMED: '${SECRET_ONE}',
        EMPTY: '${SECRET_TWO}',
        INSIDE: 'x${SECRET_ONE}y',
        ANTHROPIC_BASE_URL: 'http://mine',
        OPENAI_BASE_URL: 'http://mine',
        ORB_PORT: '1',
        LANG: 'de_DE.UTF-8',
      },
      secrets: { SECRET_ONE: 'one', SECRET_TWO: '', UNUSED: 'unused' },
      config: { ports: { expose: [EXPOSED_PORT, 9000] } },
    })
    const env = await computer.agentEnv()
    const proxy = `http://${orb.gateway}:${AGENT_PORT}`
    expect(env).toMatchObject({
      LITERAL: 'as it is',
      RENAMED: 'one',
      EMPTY: '',
      INSIDE: 'x${SECRET_ONE}y',
      ORB_PROXY_URL: proxy,
      ANTHROPIC_BASE_URL: proxy,
      OPENAI_BASE_URL: 'http://mine',
      ORB_PORT: '20001',
      PORT: String(EXPOSED_PORT),
      ORB_COMPUTER_ID: computer.id,
      ORB_API_URL: `http://${orb.gateway}:${new URL(orb.url).port}`,
      HOME: '/root',
      USER: 'root',
      LANG: 'de_DE.UTF-8',
      NPM_CONFIG_PREFIX: '/root/.npm-global',
      PIP_BREAK_SYSTEM_PACKAGES: '1',
      UV_USE_IO_URING: '0',
    })
    expect(env['PATH']).toStartWith('/root/.npm-global/bin:/root/.local/bin:/agent/packages/bin:')
    for (const name of ['SECRET_ONE', 'SECRET_TWO', 'UNUSED', 'ORB_DATA_DIR', 'ORB_SUBNET', 'ORB_API_KEY', 'ORB_LISTEN']) {
      expect(env).not.toHaveProperty(name)
    }
    const exec = await computer.sh('env')
    expect(exec).toContain(`ANTHROPIC_BASE_URL=${proxy}`)
    expect(exec).toContain(`OPENAI_BASE_URL=${proxy}`)
    expect(exec).not.toContain('LITERAL')
    expect(exec).not.toContain('RENAMED')
  })

  test('secrets are kept, merged by name, and never shown', async () => {
    const computer = await orb.computer()
    const env = { A: '${ALPHA}', B: '${BETA}' }
    const config = { agent: { name: 'agent', lang: 'node', entry: 'agent.mjs', env } }
    for (const sent of [undefined, {}, { ALPHA: 'first-secret' }]) {
      const { status, json } = await computer.deploy(config, { org_secrets: sent })
      expect([status, json['error']]).toEqual([400, 'missing_secrets'])
      expect(json['message']).toBe(sent && 'ALPHA' in sent ? 'missing org_secrets: BETA' : 'missing org_secrets: ALPHA, BETA')
    }
    expect(await computer.agent()).toBeUndefined()
    await computer.deployAgent({ env, secrets: { ALPHA: 'first-secret', BETA: 'second-secret' } })
    expect(await computer.agentEnv()).toMatchObject({ A: 'first-secret', B: 'second-secret' })

    await computer.deployAgent({ env, secrets: { BETA: 'third-secret' } })
    expect(await computer.agentEnv()).toMatchObject({ A: 'first-secret', B: 'third-secret' })

    const opened = await computer.deploy({ agent: { ...config.agent, env: { ...env, C: '${GAMMA}' } } })
    expect(opened.status).toBe(201)
    expect(JSON.stringify(opened.json['warnings'])).toContain('GAMMA')

    const shown = await Promise.all(['', '/config', '/agents', '/logs', '/builds'].map((path) => computer.call('GET', path)))
    for (const { text } of shown) expect(text).not.toMatch(/(first|second|third)-secret/)
    expect(orb.log).not.toMatch(/(first|second|third)-secret/)
  })
})

describe('logs', () => {
  test('show, filter and follow what the agent and orb write', async () => {
    const computer = await orb.computer()
    const source = "for (let i = 1; i <= 5; i++) console.log('out ' + i); console.error('err \\u{1F600}'); setInterval(() => {}, 1000)"
    await computer.deployScript('node', source)
    await computer.waitForLine((line) => line.startsWith('err '))
    expect(await computer.lines('stdout')).toEqual(['out 1', 'out 2', 'out 3', 'out 4', 'out 5'])
    expect(await computer.lines('stderr')).toEqual(['err \u{1F600}'])
    expect((await computer.lines('orb'))[0]).toMatch(/^spawned pid \d+$/)

    const tail = await computer.call('GET', '/logs?stream=stdout&tail=2')
    expect(tail.json).toMatchObject({ truncated: true, lines: [{ stream: 'stdout', line: 'out 4' }, { line: 'out 5' }] })
    expect((await computer.call('GET', '/logs?tail=0')).json).toMatchObject({ lines: [] })
    const text = await computer.call('GET', '/logs?stream=stdout&format=text')
    expect(text.headers.get('content-type')).toStartWith('text/plain')
    expect(text.text).toBe('out 1\nout 2\nout 3\nout 4\nout 5\n')
    const accepted = await computer.call('GET', '/logs?stream=stderr', undefined, { accept: 'text/plain' })
    expect(accepted.text).toBe('err \u{1F600}\n')
  })

  test('are followed over a sleep, which they do not end', async () => {
    const computer = await orb.computer()
    await computer.deployScript('node', "let n = 0; process.on('SIGUSR2', () => console.log('tick ' + ++n)); setInterval(() => {}, 1000)")
    const stop = new AbortController()
    const response = await fetch(`${orb.url}/v1/computers/${computer.id}/logs?follow=1`, {
      headers: { authorization: `Bearer ${orb.key}` },
      signal: stop.signal,
    })
    expect(response.headers.get('content-type')).toStartWith('text/event-stream')
    let seen = ''
    const reading = (async () => {
      for await (const chunk of response.body ?? []) seen += Buffer.from(chunk).toString()
    })().catch(() => undefined)

    await computer.sh('pkill -USR2 -f main.mjs')
    expect(await until(() => seen.includes('"line":"tick 1"'))).toBe(true)
    await computer.call('POST', '/agents/demote')
    expect(await until(() => seen.includes('checkpointed (manual)'))).toBe(true)
    expect((await computer.agent())?.state).toBe('checkpointed')
    await computer.call('POST', '/agents/promote')
    await computer.sh('pkill -USR2 -f main.mjs')
    expect(await until(() => seen.includes('"line":"tick 2"'))).toBe(true)
    const order = ['tick 1', 'checkpointed (manual)', 'restored (manual)', 'tick 2'].map((line) => seen.indexOf(line))
    expect(order).toEqual(order.toSorted((a, b) => a - b))
    stop.abort()
    await reading
  })
})
