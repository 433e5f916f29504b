/** The executable that is handed out: dist/orb, which scripts/build makes, or what ORB_TEST_BINARY names. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import packageJson from '../../package.json'
import { Gates, timesAsked } from '../support/gates.ts'
import { type LlmServer, startLlmServer } from '../support/llm-server.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

const BINARY = process.env['ORB_TEST_BINARY'] ?? join(import.meta.dir, '../../dist/orb')
const COMMAND_TIMEOUT_MS = 30_000

/** Every route of the Orb Cloud contract that this version has (§2 to §9, §13 to §19). */
const ROUTES = [
  'POST /api/v1/auth/register',
  'POST /api/v1/auth/login',
  'POST /v1/keys',
  'GET /v1/keys',
  'DELETE /v1/keys/{key_id}',
  'POST /v1/computers',
  'GET /v1/computers',
  'GET /v1/computers/{id}',
  'DELETE /v1/computers/{id}',
  'POST /v1/computers/{id}/config',
  'GET /v1/computers/{id}/config',
  'POST /v1/computers/{id}/build',
  'GET /v1/computers/{id}/builds',
  'GET /v1/computers/{id}/builds/{build_id}',
  'POST /v1/computers/{id}/agents',
  'GET /v1/computers/{id}/agents',
  'POST /v1/computers/{id}/agents/demote',
  'POST /v1/computers/{id}/agents/promote',
  'POST /v1/computers/{id}/restart',
  'POST /v1/computers/{id}/exec',
  'POST /v1/computers/{id}/exec/{exec_id}/stdin',
  'GET /v1/computers/{id}/logs',
  'GET /v1/computers/{id}/files',
  'GET /v1/computers/{id}/files/{path}',
  'PUT /v1/computers/{id}/files/{path}',
  'GET /v1/computers/{id}/terminal',
  'GET /terminal/{id}',
  'GET /health',
  'GET /metrics',
  'GET /openapi.json',
  'GET /docs',
  'DELETE /v1/swarms/{id}',
  'DELETE /v1/webhooks/{id}',
  'GET /v1/computers/{id}/cron',
  'GET /v1/computers/{id}/cron/runs',
  'GET /v1/computers/{id}/stats',
  'GET /v1/swarms',
  'GET /v1/swarms/{id}',
  'GET /v1/usage',
  'GET /v1/webhooks',
  'GET /v1/webhooks/{id}/deliveries',
  'POST /v1/computers/{id}/cron/{name}/trigger',
  'POST /v1/computers/{id}/github/bootstrap',
  'POST /v1/computers/{id}/github/disconnect',
  'POST /v1/swarms',
  'POST /v1/webhooks',
]

const gates = new Gates()
let orb: Orb
let llm: LlmServer
let empty: string

beforeAll(async () => {
  if (!existsSync(BINARY)) throw new Error(`${BINARY} is missing: run scripts/build first`)
  empty = await mkdtemp(join(tmpdir(), 'orb-test-'))
  // Neither of these in the current directory may change what orb does.
  await writeFile(join(empty, '.env'), 'ORB_LISTEN=not-an-address\n')
  await writeFile(join(empty, 'bunfig.toml'), 'preload = ["./missing.ts"]\n')
  llm = startLlmServer({ answerWhen: gates.answerWhen })
  orb = await startOrb({ binary: BINARY })
})
afterAll(async () => {
  gates.openAll()
  await orb?.stop()
  await llm?.stop()
  await rm(empty, { recursive: true, force: true })
})

/** Runs orb in a directory that holds traps, with nothing of this repository in its environment. */
const run = (...args: string[]) => {
  const env = { PATH: process.env['PATH'] ?? '', HOME: '/root', ORB_DATA_DIR: empty }
  const result = Bun.spawnSync([BINARY, ...args], {
    cwd: empty,
    env,
    timeout: COMMAND_TIMEOUT_MS,
    stdout: 'pipe',
    stderr: 'pipe',
  })
  return { code: result.exitCode, stdout: result.stdout.toString(), stderr: result.stderr.toString() }
}

test('orb version says which it is', () => {
  const { code, stdout } = run('version')
  expect([code, stdout]).toEqual([0, expect.stringMatching(/^orb \S+\n$/)])
  expect(stdout).toContain(packageJson.version)
})

test('orb help names every command', () => {
  const { code, stdout } = run('help')
  expect(code).toBe(0)
  for (const command of ['serve', 'down', 'doctor', 'keys create', 'version'])
    expect(stdout).toContain(`orb ${command}`)
})

test('orb doctor finds nothing missing on this machine', () => {
  const { code, stdout } = run('doctor')
  expect([code, stdout]).toEqual([0, expect.not.stringMatching(/\bmissing\b/)])
  for (const name of ['root', 'kernel', 'cgroup', 'nft', 'ip', 'git', 'tar', 'swap']) expect(stdout).toContain(name)
})

test("orb doctor says where the server's firewall drops what computers send", () => {
  const drops = 'add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'
  const passes = 'add rule ip filter FORWARD ip saddr 10.42.0.0/16 accept'
  const text = (...rules: string[]) => ['add table ip filter', ...rules].join('\n')
  const doctor = (rules: string) => {
    // In a network of its own: no rule of this machine is touched.
    const command = ['unshare', '-n', 'sh', '-c', 'printf "%s\n" "$0" | nft -f - && exec "$1" doctor', rules, BINARY]
    const { stdout } = Bun.spawnSync(command, { env: { PATH: process.env['PATH'] }, timeout: COMMAND_TIMEOUT_MS })
    return stdout.toString()
  }
  expect(doctor(text(drops))).toMatch(
    /^note +firewall: filter FORWARD drops .* internet, unless it lets 10\.42\.0\.0\/16 pass/m,
  )
  expect(doctor(text(drops, passes))).toMatch(/^ok +firewall: /m)
})

test.each([
  [['serve', '--listen', 'nowhere'], 'ORB_LISTEN'],
  [['serve', '--data-dir', 'relative'], 'ORB_DATA_DIR'],
  [['serve', '--unknown'], '--unknown'],
  [['sevre'], 'sevre'],
])('orb %p ends with code 2 and one line that names the mistake', (args, named) => {
  const { code, stderr } = run(...args)
  expect([code, stderr]).toEqual([2, expect.stringContaining(named)])
  expect(stderr.trimEnd().split('\n')).toHaveLength(1)
})

test('orb keys create gives a key that works while orb serves', async () => {
  const { exitCode, stdout, stderr } = Bun.spawnSync([BINARY, 'keys', 'create', '--email', orb.email], {
    env: orb.env,
    stdout: 'pipe',
    stderr: 'pipe',
  })
  expect(stderr.toString()).toBe('')
  const key = stdout.toString().trim()
  expect([exitCode, key]).toEqual([0, expect.stringMatching(/^orb_[0-9A-Za-z]{43}$/)])
  expect((await orb.call('GET', '/v1/computers', undefined, { authorization: `Bearer ${key}` })).status).toBe(200)
})

test('an agent sleeps through its call and wakes', async () => {
  gates.shut('compiled')
  const computer = await orb.computer()
  await computer.deployAgent({ llmPort: llm.port, env: { DATA_MB: '20' } })
  const before = await computer.state()
  await computer.ask({ id: 'compiled', prompt: 'compiled', stream: true })
  await computer.waitForState('checkpointed')
  expect(computer.agentProcesses()).toEqual([])
  gates.open('compiled')
  const outcome = await computer.outcome('compiled')
  expect(outcome).toEqual({
    id: 'compiled',
    answer: 'echo: compiled',
    life: before.life,
    count: before.count + 1,
    intact: true,
  })
  expect(timesAsked(llm.requests, 'compiled')).toBe(1)
})

test('/health and /metrics say how it is', async () => {
  const health = await orb.call('GET', '/health', undefined, { authorization: '' })
  expect(health.json).toMatchObject({
    status: 'healthy',
    checkpoint: 'ok',
    version: expect.stringMatching(new RegExp(`^${packageJson.version}(\\+|$)`)),
  })
  const metrics = await orb.call('GET', '/metrics', undefined, { authorization: '' })
  expect(metrics.headers.get('content-type')).toContain('text/plain; version=0.0.4')
  for (const name of [
    'orb_build_info',
    'orb_agents',
    'orb_http_requests_total',
    'orb_checkpoints_total',
    'orb_restore_seconds_bucket',
  ]) {
    expect(metrics.text).toMatch(new RegExp(`^${name}(\\{| )`, 'm'))
  }
  expect(metrics.text).not.toContain(orb.orgId)
})

test('/openapi.json lists every route with its answers', async () => {
  const { json } = await orb.call('GET', '/openapi.json', undefined, { authorization: '' })
  const Operation = z.object({
    responses: z.record(z.string(), z.unknown()),
    security: z.array(z.unknown()).optional(),
  })
  const document = z
    .object({ openapi: z.string().startsWith('3.1.'), paths: z.record(z.string(), z.record(z.string(), Operation)) })
    .parse(json)
  const listed = Object.entries(document.paths).flatMap(([path, operations]) =>
    Object.entries(operations).map(([method, operation]) => ({ name: `${method.toUpperCase()} ${path}`, operation })),
  )
  expect(listed.map(({ name }) => name).toSorted()).toEqual(ROUTES.toSorted())
  for (const { name, operation } of listed) {
    const codes = Object.keys(operation.responses)
    expect([name, codes.some((code) => /^(2..|101)$/.test(code))]).toEqual([name, true])
    if (name.includes('/v1/computers')) expect([name, codes.includes('401')]).toEqual([name, true])
  }
})

test('/docs and its assets load from orb alone', async () => {
  const page = await orb.call('GET', '/docs', undefined, { authorization: '' })
  expect([page.status, page.headers.get('content-type')]).toEqual([200, expect.stringContaining('text/html')])
  const links = [...page.text.matchAll(/(?:src|href)="([^"]+)"/g)].map(([, link]) => link ?? '')
  expect(links.length).toBeGreaterThan(0)
  for (const link of links.filter((one) => !one.startsWith('data:'))) {
    const url = new URL(link, `${orb.url}/docs`)
    expect(url.origin).toBe(orb.url)
    const asset = await orb.call('GET', url.pathname, undefined, { authorization: '' })
    expect([link, asset.status, asset.text.length > 0]).toEqual([link, 200, true])
  }
  expect(page.text).not.toMatch(/(?:src|href|url\()\s*=?\s*["']?(?:https?:)?\/\//)
  expect(page.headers.get('content-security-policy')).toContain("default-src 'none'")
})
