/*
 * The public API references of Orb Cloud, walked endpoint by endpoint against a real `orb serve`: each request as they
 * show it, each status, and each field of each answer with its type. What is asked of the answers stands here once more,
 * apart from the schemas that orb validates with, so that these cannot drift from the contract together.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { z } from 'zod'
import type { Computer } from '../support/computer.ts'
import { type GitServer, startGitServer } from '../support/git-server.ts'
import { type GitHubServer, startGitHub } from '../support/github-server.ts'
import { type LlmServer, startLlmServer } from '../support/llm-server.ts'
import { type Orb, type Payload, startOrb } from '../support/orb.ts'
import { until } from '../support/sweep.ts'

setDefaultTimeout(120_000)

const HOST = '127.0.0.1'
const WAIT_MS = 20_000
const REPOSITORY = 'acme/my-agent'
const WORKFLOW = '.github/workflows/orb-deploy.yml'
const PAT = 'gho_0123456789abcdef'

const uuid = z.string().regex(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/)
const time = z.string().regex(/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/)
const count = z.int().min(0)
const amount = z.number().min(0)
const text = z.string()

const key = z.object({ key_id: uuid, api_key: text.regex(/^orb_/), name: text })
const computer = z.object({
  id: uuid,
  org_id: uuid,
  name: text,
  runtime_mb: count,
  disk_mb: count,
  status: text,
  agent_count: count,
  port_mappings: z.array(z.object({ host_port: count, container_port: count })),
})
const summary = z.object({
  agent: z.object({ name: text, lang: text, entry: text }),
  backend: z.object({ provider: text }),
})
const build = z.object({
  computer_id: uuid,
  cloned: z.boolean(),
  steps: z.array(z.object({ step: text, exit_code: z.int(), stdout: text, stderr: text })),
  success: z.boolean(),
})
const agent = z.object({
  port: z.int().min(10_000),
  pid: z.int().nullable(),
  state: z.enum(['running', 'frozen', 'checkpointed', 'failed']),
  sandboxed: z.boolean(),
  code_version: text.nullable(),
})
const deployed = z.object({
  computer_id: uuid,
  deployed: z.literal(1),
  agents: z.array(z.object({ pid: count, port: z.int().min(10_000) })).length(1),
  port: z.int().min(10_000),
  pid: count,
})
const replica = z.object({ id: uuid, replica_index: count, status: text, subdomain: text })
const job = z.object({
  name: text,
  schedule: text,
  command: text,
  env: z.record(text, text),
  working_dir: text.nullable(),
  timeout_secs: count,
  enabled: z.boolean(),
  skip_if_running: z.boolean(),
  next_fire_at: time.nullable(),
  last_fired_at: time.nullable(),
})
const run = z.object({
  id: text,
  job_id: text,
  fired_at: time,
  started_at: time.nullable(),
  finished_at: time.nullable(),
  status: z.enum(['success', 'failure', 'timeout', 'skipped', 'error', 'running']),
  exit_code: z.int().nullable(),
  duration_ms: count.nullable(),
  stdout: text.nullable(),
  stderr: text.nullable(),
  error: text.nullable(),
})
const failure = z.object({ error: text.regex(/^[a-z_]+$/), message: text.min(1) })

let orb: Orb
let git: GitServer
let gitHost: string
let github: GitHubServer
let llm: LlmServer
let one: Computer
/** Path of the computer `one`. */
let C: string

beforeAll(async () => {
  github = await startGitHub()
  llm = startLlmServer({ firstByteMs: 0 })
  orb = await startOrb()
  git = await startGitServer('0.0.0.0')
  // Clones run inside a computer, which reaches this machine at its gateway.
  gitHost = `${orb.gateway}:${git.port}`
  Object.assign(orb.env, {
    ORB_GITHUB_API: github.url,
    ORB_GITHUB_HOST: gitHost,
    ORB_ALLOW_PRIVATE: `127.0.0.0/8,${gitHost}`,
    ORB_LISTEN: new URL(orb.url).host,
  })
  await orb.terminate()
  await orb.restart()
  one = await orb.computer({ name: 'my-agent', runtime_mb: 1024, disk_mb: 4096 })
  C = `/v1/computers/${one.id}`
})

afterAll(async () => {
  await orb?.stop()
  await llm?.stop()
  await git?.[Symbol.asyncDispose]()
  await github?.[Symbol.asyncDispose]()
})

/** Sends the request and returns the answer, whose status and fields are as the reference has them. */
async function ask<S extends z.ZodType>(
  status: number,
  fields: S,
  method: string,
  path: string,
  body?: Payload,
): Promise<z.output<S>> {
  const answer = await orb.call(method, path, body)
  expect([method, path, answer.status, answer.status === status ? '' : answer.text]).toEqual([method, path, status, ''])
  return fields.parse(answer.json)
}

const CONFIG = `
[agent]
name = "my-agent"
lang = "node"
entry = "main.mjs"

[agent.env]
LOG_LEVEL = "info"
GITHUB_TOKEN = "\${GITHUB_TOKEN}"

[source]
git = "<git>"
branch = "main"

[build]
steps = ["echo one", "echo two >&2"]

[llm]
base_url = "<llm>"

[ports]
expose = [8000]
`

const PROGRAM = `
import { createServer } from 'node:http'
createServer((request, response) => response.end(JSON.stringify({
  level: process.env.LOG_LEVEL, token: process.env.GITHUB_TOKEN, index: process.env.ORB_REPLICA_INDEX, count: process.env.ORB_REPLICA_COUNT,
}))).listen(8000)
`

describe('accounts', () => {
  test('register gives a tenant and a key that works at once, login a token', async () => {
    const { api_key } = await ask(
      201,
      z.object({ tenant_id: uuid, api_key: text.min(20) }),
      'POST',
      '/api/v1/auth/register',
      { email: 'you@example.com' },
    )
    const login = z.object({ token: text.regex(/^eyJ/), expires_in: z.literal(86_400) })
    const { token } = await ask(200, login, 'POST', '/api/v1/auth/login', { api_key })
    for (const credential of [api_key, token]) {
      const answer = await orb.call('GET', '/v1/computers', undefined, { authorization: `Bearer ${credential}` })
      expect([answer.status, answer.json]).toEqual([200, { computers: [], total: 0 }])
    }
  })

  test('everything else wants a key', async () => {
    for (const path of ['/v1/keys', '/v1/computers', C, `${C}/files`, '/v1/usage', '/v1/webhooks', '/v1/swarms']) {
      const answer = await orb.call('GET', path, undefined, { authorization: '' })
      expect([path, answer.status]).toEqual([path, 401])
      failure.parse(answer.json)
    }
  })

  test('keys are made, listed and revoked', async () => {
    const { key_id, name } = await ask(201, key, 'POST', '/v1/keys', { name: 'production' })
    expect(name).toBe('production')
    const list = z.object({ keys: z.array(z.object({ key_id: uuid, name: text.nullable() })) })
    const { keys } = await ask(200, list, 'GET', '/v1/keys')
    expect(keys.map((one) => one.key_id)).toContain(key_id)
    await ask(200, z.object({ key_id: z.literal(key_id), revoked: z.literal(true) }), 'DELETE', `/v1/keys/${key_id}`)
  })
})

describe('computers', () => {
  test('are made with defaults, listed, shown and deleted', async () => {
    const made = await ask(201, computer, 'POST', '/v1/computers', { name: 'plain' })
    expect(made).toMatchObject({ runtime_mb: 512, disk_mb: 1024, status: 'ready', agent_count: 0, port_mappings: [] })
    const { computers, total } = await ask(
      200,
      z.object({ computers: z.array(computer), total: count }),
      'GET',
      '/v1/computers',
    )
    expect(total).toBe(computers.length)
    expect(await ask(200, computer, 'GET', `/v1/computers/${made.id}`)).toMatchObject({ id: made.id, name: 'plain' })
    await ask(200, z.looseObject({}), 'DELETE', `/v1/computers/${made.id}`)
    await ask(404, failure, 'GET', `/v1/computers/${made.id}`)
  })
})

describe('from a repository to an agent', () => {
  test('the configuration is uploaded as TOML and shown', async () => {
    await git.create(REPOSITORY)
    await git.commit(REPOSITORY, { 'main.mjs': PROGRAM })
    const toml = CONFIG.replace('<git>', `http://${gitHost}/${REPOSITORY}.git`).replace(
      '<llm>',
      `http://${HOST}:${llm.port}`,
    )
    const answer = await orb.call('POST', `${C}/config`, toml, { 'content-type': 'application/toml' })
    expect([answer.status, answer.status === 200 ? '' : answer.text]).toEqual([200, ''])
    const uploaded = z.object({ computer_id: uuid, config_summary: summary, source: z.literal('uploaded') })
    expect(uploaded.parse(answer.json).config_summary.agent).toEqual({
      name: 'my-agent',
      lang: 'node',
      entry: 'main.mjs',
    })
    await ask(200, z.looseObject({ computer_id: uuid }), 'GET', `${C}/config`)
  })

  test('a build clones, runs the steps, and later brings the newest commit', async () => {
    const built = await ask(200, build, 'POST', `${C}/build`, { org_secrets: { GITHUB_TOKEN: 'ghp_abc123' } })
    expect(built).toMatchObject({ cloned: true, success: true })
    expect(built.steps).toMatchObject([
      { step: 'echo one', exit_code: 0, stdout: 'one\n', stderr: '' },
      { step: 'echo two >&2', exit_code: 0, stdout: '', stderr: 'two\n' },
    ])
    await git.commit(REPOSITORY, { 'main.mjs': PROGRAM, 'new.txt': 'new' })
    await ask(200, build, 'POST', `${C}/build`)
    expect(await one.get('agent/code/new.txt')).toBe('new')
  })

  test('a deploy starts it with literal values and secrets, and rotates those that are sent', async () => {
    const answer = await ask(201, deployed, 'POST', `${C}/agents`, {
      org_secrets: { GITHUB_TOKEN: 'ghp_first', LOG_LEVEL: 'ignored' },
    })
    expect(answer.agents[0]).toEqual({ pid: answer.pid, port: answer.port })
    const env = async () => {
      await until(async () => (await one.exec('curl -sf http://127.0.0.1:8000/')).exit_code === 0, WAIT_MS)
      return JSON.parse(await one.sh('curl -sf http://127.0.0.1:8000/'))
    }
    expect(await env()).toEqual({ level: 'info', token: 'ghp_first' })
    await ask(201, deployed, 'POST', `${C}/agents`, { org_secrets: { GITHUB_TOKEN: 'ghp_rotated' } })
    expect(await env()).toEqual({ level: 'info', token: 'ghp_rotated' })
    await ask(201, deployed, 'POST', `${C}/agents`, {})
    expect(await env()).toEqual({ level: 'info', token: 'ghp_rotated' })
    await ask(201, deployed, 'POST', `${C}/agents`)
  })

  test('agents are listed, put to sleep and woken', async () => {
    const list = z.object({ agents: z.array(agent).length(1) })
    const [running] = (await ask(200, list, 'GET', `${C}/agents`)).agents
    expect(running).toMatchObject({ state: 'running', code_version: expect.stringMatching(/^[0-9a-f]{7,}$/) })
    const { port } = running ?? {}
    const demoted = z.object({ status: z.literal('demoted'), port: z.literal(port ?? 0), checkpoint_dir: text })
    await ask(200, demoted, 'POST', `${C}/agents/demote`, { port })
    expect((await ask(200, list, 'GET', `${C}/agents`)).agents).toMatchObject([{ state: 'checkpointed', pid: null }])
    await ask(404, failure, 'POST', `${C}/agents/promote`, { port: 9 })
    await ask(200, z.object({ status: z.literal('promoted'), port: count }), 'POST', `${C}/agents/promote`, { port })
    expect((await ask(200, list, 'GET', `${C}/agents`)).agents).toMatchObject([{ state: 'running' }])
  })

  test('a public request wakes it under the short id', async () => {
    await ask(200, z.looseObject({}), 'POST', `${C}/agents/demote`)
    const answer = await orb.call('GET', '/', undefined, { host: `${one.id.slice(0, 8)}.orb.localhost` })
    expect([answer.status, JSON.parse(answer.text)]).toEqual([200, { level: 'info', token: 'ghp_rotated' }])
    const shown = await ask(200, computer, 'GET', C)
    expect(shown.port_mappings).toEqual([{ host_port: expect.any(Number), container_port: 8000 }])
    expect(shown.agent_count).toBe(1)
  })

  test('exec runs a command as root in /agent/data, files are listed, read and written, asleep too', async () => {
    const executed = z.object({ stdout: text, stderr: text, exit_code: z.int() })
    await ask(200, z.looseObject({}), 'POST', `${C}/agents/demote`)
    const said = await ask(200, executed, 'POST', `${C}/exec`, { command: 'id -u; pwd; echo no >&2; exit 3' })
    expect(said).toEqual({ stdout: '0\n/agent/data\n', stderr: 'no\n', exit_code: 3 })
    await ask(200, executed, 'POST', `${C}/exec`, { command: 'sleep 300 & disown' })
    const path = 'root/local-file.txt'
    const bytes = 'forty-two bytes, exactly: 0123456789abcdef.'.slice(0, 42)
    expect(await ask(200, z.object({ path: text, size: count }), 'PUT', `${C}/files/${path}`, bytes)).toEqual({
      path,
      size: 42,
    })
    const file = await orb.call('GET', `${C}/files/${path}`)
    expect([file.status, file.headers.get('content-type'), file.text]).toEqual([200, 'application/octet-stream', bytes])
    const listing = z.object({ files: z.array(z.object({ name: text, type: text })) })
    expect((await ask(200, listing, 'GET', `${C}/files/root`)).files.map(({ name }) => name)).toContain(
      'local-file.txt',
    )
    await ask(200, listing, 'GET', `${C}/files`)
    await ask(404, failure, 'GET', `${C}/files/root/missing`)
    await ask(400, failure, 'GET', `${C}/files/root/..%2fetc/passwd`)
    expect((await one.agent())?.state).toBe('checkpointed')
  })

  test('restart clears the agent and keeps the disk', async () => {
    const restarted = z.object({ computer_id: uuid, restarted: z.literal(true), killed_agents: z.literal(1) })
    await ask(200, restarted, 'POST', `${C}/restart`)
    await ask(200, z.object({ agents: z.array(agent).length(0) }), 'GET', `${C}/agents`)
    expect(await one.get('root/local-file.txt')).toContain('forty-two')
    expect(await ask(200, computer, 'GET', C)).toMatchObject({ status: 'ready', agent_count: 0 })
    await ask(201, deployed, 'POST', `${C}/agents`)
  })
})

describe('swarms', () => {
  const agentToml = { agent: { name: 'shard', lang: 'node', entry: '/agent/code/main.mjs' } }
  const steps = [`printf '%s' "$SOURCE" > /agent/code/main.mjs`]
  const shard = {
    ...agentToml,
    build: { steps: steps.map((step) => step.replace('"$SOURCE"', `'${PROGRAM.replaceAll("'", "'\\''")}'`)) },
    ports: { expose: [8000] },
  }
  const made = z.object({
    swarm_id: text.regex(/^swm_[a-z0-9]{10}$/),
    name: z.literal('clawsweeper'),
    replicas: z.literal(3),
    deployed: z.literal(3),
    failed: z.array(z.never()),
    computers: z.array(replica).length(3),
  })

  test('are made in one call, each replica with its index, listed by id and name, and deleted wholly', async () => {
    const request = { name: 'clawsweeper', replicas: 3, orb_config: shard, runtime_mb: 256, disk_mb: 256 }
    const swarm = await ask(201, made, 'POST', '/v1/swarms', request)
    for (const { id, replica_index, subdomain } of swarm.computers) {
      expect(subdomain).toBe(`${id.slice(0, 8)}.orb.localhost`)
      const answer = await orb.call('GET', '/', undefined, { host: subdomain })
      expect([answer.status, JSON.parse(answer.text)]).toEqual([200, { index: String(replica_index), count: '3' }])
    }
    await ask(409, failure, 'POST', '/v1/swarms', request)
    const members = made.omit({ deployed: true, failed: true })
    const shown = await ask(200, members, 'GET', `/v1/swarms/${swarm.swarm_id}`)
    expect(shown.computers.map(({ id }) => id)).toEqual(swarm.computers.map(({ id }) => id))
    await ask(200, members, 'GET', '/v1/swarms/clawsweeper')
    const gone = z.object({ swarm_id: z.literal(swarm.swarm_id), deleted: z.literal(3), failed: z.array(z.never()) })
    await ask(200, gone, 'DELETE', `/v1/swarms/${swarm.swarm_id}`)
    await ask(404, failure, 'GET', `/v1/swarms/${swarm.swarm_id}`)
    for (const { id } of swarm.computers) await ask(404, failure, 'GET', `/v1/computers/${id}`)
  })

  test('whose agents cannot be started are told of one by one, and stay', async () => {
    const partial = z.object({
      swarm_id: text,
      deployed: z.literal(0),
      failed: z.array(z.object({ replica_index: count, error: z.literal('deploy_failed'), message: text })).length(2),
      computers: z.array(replica.extend({ status: z.literal('failed') })).length(2),
    })
    const broken = { agent: { name: 'broken', lang: 'binary', entry: '/agent/code/missing' } }
    const swarm = await ask(207, partial, 'POST', '/v1/swarms', { name: 'broken', replicas: 2, orb_config: broken })
    await ask(200, z.object({ deleted: z.literal(2) }), 'DELETE', `/v1/swarms/${swarm.swarm_id}`)
  })
})

describe('terminal', () => {
  test('the page loads without a key', async () => {
    const page = await orb.call('GET', `/terminal/${one.id}`, undefined, { authorization: '' })
    expect(page.status).toBe(200)
    expect(page.headers.get('content-type')).toStartWith('text/html')
    expect(page.headers.get('content-security-policy')).toBeTruthy()
  })

  test('the WebSocket takes text as input and gives text, with the agent’s environment', async () => {
    const url = `${orb.url.replace('http', 'ws')}${C}/terminal?key=${orb.key}`
    const socket = new WebSocket(url)
    let said = ''
    socket.onmessage = ({ data }) => {
      said += data
    }
    const closed = new Promise<CloseEvent>((resolve) => {
      socket.onclose = resolve
    })
    await new Promise((resolve, reject) => {
      socket.onopen = resolve
      socket.onerror = reject
    })
    socket.send('echo "level=$LOG_LEVEL in $PWD"; exit 7\n')
    const { code, reason } = await closed
    expect(said).toContain('level=info in /root')
    expect([code, reason]).toEqual([1000, 'exit:7'])
    const refused = await orb.call('GET', `${C}/terminal?key=orb_wrong`, undefined, { authorization: '' })
    expect(refused.status).toBe(401)
  })
})

describe('usage', () => {
  const usage = z.object({ runtime_gb_hours: amount, disk_gb_hours: amount, checkpoint_cycles: count })

  test('is told for the organisation and for one computer', async () => {
    const range = 'start=2026-03-01T00:00:00Z&end=2026-03-15T23:59:59Z'
    const before = await ask(200, usage, 'GET', `/v1/usage?${range}`)
    expect(before).toEqual({ runtime_gb_hours: 0, disk_gb_hours: 0, checkpoint_cycles: 0 })
    const mine = await ask(200, usage.extend({ computer_id: z.literal(one.id) }), 'GET', `/v1/usage?computer=${one.id}`)
    expect(mine.checkpoint_cycles).toBeGreaterThanOrEqual(3)
    expect(mine.runtime_gb_hours).toBeGreaterThan(0)
    const all = await ask(200, usage, 'GET', '/v1/usage')
    expect(all.disk_gb_hours).toBeGreaterThanOrEqual(mine.disk_gb_hours)
    await ask(400, failure, 'GET', '/v1/usage?start=yesterday')
  })

  test('is told in detail by stats', async () => {
    const stats = z.object({
      window: z.enum(['30d', 'lifetime']),
      period_start: time,
      period_end: time,
      wall_secs: count,
      active_secs: count,
      sleep_secs: count,
      sleep_pct: amount,
      active_pct: amount,
      llm_calls: count,
      checkpoints: count,
      ckpt_full: count,
      ckpt_incremental: count,
      failures: count,
      runtime_gb_hours: amount,
      disk_gb_hours: amount,
      est_cost_usd: amount,
      last_active_ago_secs: count.nullable(),
      avg_restore_ms: count.nullable(),
    })
    const recent = await ask(200, stats, 'GET', `${C}/stats`)
    expect(recent).toMatchObject({ window: '30d', failures: 0 })
    expect(recent.checkpoints).toBe(recent.ckpt_full + recent.ckpt_incremental)
    expect(recent.checkpoints).toBeGreaterThanOrEqual(3)
    expect(await ask(200, stats, 'GET', `${C}/stats?window=lifetime`)).toMatchObject({ window: 'lifetime' })
    await ask(400, failure, 'GET', `${C}/stats?window=7d`)
  })
})

describe('webhooks', () => {
  test('are made, listed and deleted, and told what happens', async () => {
    const told: { type: string; computer: unknown }[] = []
    const receiver = Bun.serve({
      hostname: HOST,
      port: 0,
      async fetch(request) {
        const event = z
          .object({ type: text, data: z.looseObject({ computer_id: uuid }) })
          .parse(JSON.parse(await request.text()))
        told.push({ type: event.type, computer: event.data.computer_id })
        return new Response('ok')
      },
    })
    try {
      const hook = z.object({ id: text, url: text, events: z.array(text) })
      const url = `http://${HOST}:${receiver.port}/webhook`
      const every = ['agent.spawned', 'agent.checkpointed', 'agent.restored', 'agent.finished']
      const events = [...every, 'computer.created', 'computer.destroyed']
      const { id } = await ask(201, hook, 'POST', '/v1/webhooks', { url, events })
      const listed = await ask(200, z.object({ webhooks: z.array(hook) }), 'GET', '/v1/webhooks')
      expect(listed.webhooks).toMatchObject([{ id, url, events }])
      const computer = await orb.computer({ name: 'told' })
      expect((await computer.deployScript('node', PROGRAM)).status).toBe(201)
      await computer.call('POST', '/agents/demote')
      await computer.call('POST', '/agents/promote')
      await computer.call('POST', '/restart')
      await orb.call('DELETE', `/v1/computers/${computer.id}`)
      await until(() => events.every((type) => told.some((event) => event.type === type)), WAIT_MS)
      const types = told.filter((event) => event.computer === computer.id).map(({ type }) => type)
      expect([...new Set(types)].sort()).toEqual([...events].sort())
      await ask(200, z.looseObject({}), 'DELETE', `/v1/webhooks/${id}`)
      await ask(404, failure, 'DELETE', `/v1/webhooks/${id}`)
    } finally {
      await receiver.stop(true)
    }
  })
})

describe('cron', () => {
  const jobs = [
    { name: 'heartbeat', schedule: '*/5 * * * *', command: 'echo OK' },
    { name: 'broken', schedule: '0 0 1 1 *', command: 'exit 3', enabled: false },
    { name: 'endless', schedule: '@yearly', command: 'sleep 60', timeout_secs: 1 },
  ]

  test('jobs are declared in the computer and listed with their next time', async () => {
    await one.put('agent/.orb/cron.json', JSON.stringify({ version: 1, jobs }))
    const list = z.object({ jobs: z.array(job) })
    let shown: z.output<typeof list>['jobs'] = []
    await until(async () => {
      shown = (await ask(200, list, 'GET', `${C}/cron`)).jobs
      return shown.length === jobs.length
    }, WAIT_MS)
    expect(shown[0]).toEqual({
      name: 'heartbeat',
      schedule: '*/5 * * * *',
      command: 'echo OK',
      env: {},
      working_dir: null,
      timeout_secs: 30,
      enabled: true,
      skip_if_running: true,
      next_fire_at: expect.stringMatching(/:[0-5][05]:00Z$/),
      last_fired_at: null,
    })
    expect(shown[1]).toMatchObject({ name: 'broken', enabled: false, next_fire_at: null })
  })

  test('a trigger runs one at once and tells how it ended, and the runs are listed', async () => {
    const ran = z.object({
      run_id: text,
      status: z.enum(['success', 'failure', 'timeout', 'error']),
      exit_code: z.int().nullable(),
      stdout: text.nullable(),
      stderr: text.nullable(),
      duration_ms: count.nullable(),
      timed_out: z.boolean(),
    })
    const trigger = (name: string) => ask(200, ran, 'POST', `${C}/cron/${name}/trigger`, 'ignored')
    const success = await trigger('heartbeat')
    expect(success).toMatchObject({ status: 'success', exit_code: 0, stdout: 'OK\n', stderr: '', timed_out: false })
    expect(await trigger('broken')).toMatchObject({ status: 'failure', exit_code: 3, timed_out: false })
    expect(await trigger('endless')).toMatchObject({ status: 'timeout', exit_code: null, timed_out: true })
    await ask(404, failure, 'POST', `${C}/cron/unknown/trigger`)
    const list = z.object({ runs: z.array(run) })
    const { runs } = await ask(200, list, 'GET', `${C}/cron/runs`)
    expect(runs.map(({ status }) => status)).toEqual(['timeout', 'failure', 'success'])
    expect(runs.at(-1)).toMatchObject({ id: success.run_id, stdout: 'OK\n', stderr: null, error: null })
    expect((await ask(200, list, 'GET', `${C}/cron/runs?job=broken&limit=1`)).runs).toHaveLength(1)
    await ask(400, failure, 'GET', `${C}/cron/runs?limit=501`)
  })
})

describe('auto-deploy', () => {
  test('bootstrap puts workflow and secret into the repository and builds, disconnect takes both out', async () => {
    const repository = { branches: new Map([['main', new Map<string, string>()]]), secrets: new Map<string, string>() }
    github.repositories.set(REPOSITORY, repository)
    github.tokens.set(PAT, { scopes: 'repo, workflow' })
    const bootstrapped = z.object({
      workflow_path: z.literal(WORKFLOW),
      workflow_commit_sha: text.regex(/^[0-9a-f]{40}$/),
      secret_name: z.literal('ORB_API_KEY'),
      api_key_id: uuid,
      first_build_id: text.regex(/^build_/),
    })
    const { api_key_id } = await ask(200, bootstrapped, 'POST', `${C}/github/bootstrap`, { pat: PAT, branch: 'main' })
    expect(repository.branches.get('main')?.has(WORKFLOW)).toBe(true)
    expect(repository.secrets.get('ORB_API_KEY')).toStartWith('orb_')
    const gone = z.object({ disconnected: z.literal(true), workflow_deleted: z.boolean(), secret_deleted: z.boolean() })
    expect(await ask(200, gone, 'POST', `${C}/github/disconnect`, { pat: PAT })).toMatchObject({
      workflow_deleted: true,
      secret_deleted: true,
    })
    expect([repository.branches.get('main')?.has(WORKFLOW), repository.secrets.size]).toEqual([false, 0])
    const { keys } = await ask(200, z.object({ keys: z.array(z.object({ key_id: uuid })) }), 'GET', '/v1/keys')
    expect(keys.map((one) => one.key_id)).toContain(api_key_id)
    await ask(400, failure, 'POST', `${C}/github/bootstrap`, {})
  })
})
