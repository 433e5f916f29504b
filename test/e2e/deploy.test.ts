import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'
import { until } from '../support/sweep.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

const AGENT_PORT = 10_000
const EXPOSED_PORT = 8_123

/** Placeholder of a secret in `[agent.env]`. */
const secret = (name: string): string => `\${${name}}`

let orb: Orb

beforeAll(async () => {
  orb = await startOrb()
})
afterAll(() => orb?.stop())

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
        RENAMED: secret('SECRET_ONE'),
        EMPTY: secret('SECRET_TWO'),
        INSIDE: `x${secret('SECRET_ONE')}y`,
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
      INSIDE: `x${secret('SECRET_ONE')}y`,
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
    for (const name of [
      'SECRET_ONE',
      'SECRET_TWO',
      'UNUSED',
      'ORB_DATA_DIR',
      'ORB_SUBNET',
      'ORB_API_KEY',
      'ORB_LISTEN',
    ]) {
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
    const env = { A: secret('ALPHA'), B: secret('BETA') }
    const config = { agent: { name: 'agent', lang: 'node', entry: 'agent.mjs', env } }
    for (const sent of [undefined, {}, { ALPHA: 'first-secret' }]) {
      const { status, json } = await computer.deploy(config, { org_secrets: sent })
      expect([status, json['error']]).toEqual([400, 'missing_secrets'])
      expect(json['message']).toBe(
        sent && 'ALPHA' in sent ? 'missing org_secrets: BETA' : 'missing org_secrets: ALPHA, BETA',
      )
    }
    expect(await computer.agent()).toBeUndefined()
    await computer.deployAgent({ env, secrets: { ALPHA: 'first-secret', BETA: 'second-secret' } })
    expect(await computer.agentEnv()).toMatchObject({ A: 'first-secret', B: 'second-secret' })

    await computer.deployAgent({ env, secrets: { BETA: 'third-secret' } })
    expect(await computer.agentEnv()).toMatchObject({ A: 'first-secret', B: 'third-secret' })

    const opened = await computer.deploy({ agent: { ...config.agent, env: { ...env, C: secret('GAMMA') } } })
    expect(opened.status).toBe(201)
    expect(JSON.stringify(opened.json['warnings'])).toContain('GAMMA')

    const shown = await Promise.all(
      ['', '/config', '/agents', '/logs', '/builds'].map((path) => computer.call('GET', path)),
    )
    for (const { text } of shown) expect(text).not.toMatch(/(first|second|third)-secret/)
    expect(orb.log).not.toMatch(/(first|second|third)-secret/)
  })
})

describe('logs', () => {
  test('show, filter and follow what the agent and orb write', async () => {
    const computer = await orb.computer()
    const source =
      "for (let i = 1; i <= 5; i++) console.log('out ' + i); console.error('err \\u{1F600}'); setInterval(() => {}, 1000)"
    await computer.deployScript('node', source)
    await computer.waitForLine((line) => line.startsWith('err '))
    expect(await computer.lines('stdout')).toEqual(['out 1', 'out 2', 'out 3', 'out 4', 'out 5'])
    expect(await computer.lines('stderr')).toEqual(['err \u{1F600}'])
    expect((await computer.lines('orb'))[0]).toMatch(/^spawned pid \d+$/)

    const tail = await computer.call('GET', '/logs?stream=stdout&tail=2')
    expect(tail.json).toMatchObject({
      truncated: true,
      lines: [{ stream: 'stdout', line: 'out 4' }, { line: 'out 5' }],
    })
    expect((await computer.call('GET', '/logs?tail=0')).json).toMatchObject({ lines: [] })
    const text = await computer.call('GET', '/logs?stream=stdout&format=text')
    expect(text.headers.get('content-type')).toStartWith('text/plain')
    expect(text.text).toBe('out 1\nout 2\nout 3\nout 4\nout 5\n')
    const accepted = await computer.call('GET', '/logs?stream=stderr', undefined, { accept: 'text/plain' })
    expect(accepted.text).toBe('err \u{1F600}\n')
  })

  test('are followed over a sleep, which they do not end', async () => {
    const computer = await orb.computer()
    await computer.deployScript(
      'node',
      "let n = 0; process.on('SIGUSR2', () => console.log('tick ' + ++n)); setInterval(() => {}, 1000); console.log('listening')",
    )
    await computer.waitForLine((line) => line === 'listening')
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

    await computer.sh('pkill -USR2 -f "^node main.mjs"')
    expect(await until(() => seen.includes('"line":"tick 1"'))).toBe(true)
    await computer.call('POST', '/agents/demote')
    expect(await until(() => seen.includes('checkpointed (manual)'))).toBe(true)
    expect((await computer.agent())?.state).toBe('checkpointed')
    await computer.call('POST', '/agents/promote')
    expect(await until(() => seen.includes('restored (manual)'))).toBe(true)
    await computer.sh('pkill -USR2 -f "^node main.mjs"')
    expect(await until(() => seen.includes('"line":"tick 2"'))).toBe(true)
    const order = ['tick 1', 'checkpointed (manual)', 'restored (manual)', 'tick 2'].map((line) => seen.indexOf(line))
    expect(order).toEqual(order.toSorted((a, b) => a - b))
    stop.abort()
    await reading
  })
})
