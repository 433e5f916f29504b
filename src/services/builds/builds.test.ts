import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseAllowList } from '../../addresses.ts'
import { OrbError } from '../../errors.ts'
import type { ExecRequest, ExecResult } from '../../runtime/commands.ts'
import { openStore, type Store } from '../../store/store.ts'
import type { ComputerRow } from '../../store/types.ts'
import { buildFingerprint, type OrbConfig, parseInline, toJson } from '../orb-toml.ts'
import { createSecrets, type Secrets } from '../secrets.ts'
import type { BuildInput, Principal } from '../types.ts'
import { openVault } from '../vault.ts'
import { type Builds, createBuilds } from './builds.ts'

const WHO: Principal = { orgId: 'org', keyId: 'k', scope: 'full', role: 'admin' }
const ID = '11111111-0000-0000-0000-000000000000'
const COMMIT = '0123456789abcdef0123456789abcdef01234567'

interface Command extends ExecRequest {
  end(result?: Partial<ExecResult>): void
}

let dir: string
let store: Store
let secrets: Secrets
let computer: ComputerRow
let builds: Builds
let redeploy: () => Promise<void>
let prepare: () => Promise<void>
let events: string[]
/** Steps that were started and not ended by the test. */
let steps: Command[]
/** Environments that git was given. */
let gitEnvironments: Record<string, string>[]

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'builds-'))
  store = openStore(join(dir, 'orb.db'))
  secrets = createSecrets({ secrets: store.secrets, vault: openVault(dir) })
  store.orgs.insert({ id: 'org', email: 'a@example.com', createdAt: 0 })
  computer = store.computers.insert({
    id: ID,
    shortId: '11111111',
    orgId: 'org',
    name: 'n',
    runtimeMb: 64,
    diskMb: 64,
    userId: null,
    swarmId: null,
    replicaIndex: null,
    base: 'b',
    createdAt: 0,
    updatedAt: 0,
  })
  steps = []
  events = []
  gitEnvironments = []
  redeploy = async () => {}
  prepare = async () => {}
  builds = createBuilds({
    settings: { cloneTimeoutMs: 1000, buildStepTimeoutMs: 1000, buildTimeoutMs: 5000, sandboxAllow: [] },
    allowPrivate: parseAllowList(''),
    store,
    secrets,
    runtime: { exec, killAll: async () => {}, network: { permit: () => () => {} } },
    lookup: { computer: () => computer },
    environmentFacts: () => ({ computerId: ID, proxyUrl: 'http://p', apiUrl: 'http://a', ports: [], replica: null }),
    outbound: {
      duringBuild() {
        events.push('open')
        return () => void events.push('close')
      },
    },
    agents: {
      async prepareForBuild() {
        await prepare()
        events.push('hold')
        return () => void events.push('release')
      },
      async redeploy() {
        events.push('redeploy')
        await redeploy()
      },
    },
    resolve: async () => ['8.8.8.8'],
  })
})

afterEach(() => {
  store.close()
  rmSync(dir, { recursive: true })
})

/** A computer in which everything works at once, save steps, which end when the test says so. */
function exec(_: unknown, request: ExecRequest): Promise<ExecResult> {
  const result = { exitCode: 0, stdout: '', stderr: '', truncated: false, timedOut: false, durationMs: 1 }
  if (request.argv[0] === 'git') gitEnvironments.push(request.env)
  if (request.argv[0] !== 'bash')
    return Promise.resolve({ ...result, stdout: request.argv.includes('HEAD') ? COMMIT : '' })
  const { promise, resolve } = Promise.withResolvers<ExecResult>()
  steps.push({ ...request, end: (over = {}) => resolve({ ...result, ...over }) })
  return promise
}

const parsed = (...commands: string[]): OrbConfig =>
  parseInline(
    {
      agent: { name: 'a', lang: 'node', entry: 'a.js' },
      source: { git: 'https://git.test/x' },
      build: { steps: commands },
    },
    () => false,
  ).config

function configure(...commands: string[]): void {
  const json = toJson(parsed(...commands))
  store.configs.put({ computerId: ID, kind: 'stored', json, toml: null, source: 'uploaded', updatedAt: 0 })
}

async function started(count = 1): Promise<Command> {
  while (steps.length < count) await Bun.sleep(1)
  return steps[count - 1] ?? Promise.reject(new Error('no step'))
}

const putAgent = () =>
  store.agents.put({
    computerId: ID,
    phase: 'running',
    generation: 1,
    pid: 1,
    image: null,
    imageBytes: null,
    startedAt: 0,
    exitCode: null,
    stderrTail: null,
    failureReason: null,
    failureMessage: null,
    sleepReason: null,
    codeVersion: null,
    llmOutstanding: false,
    lastWakeMs: null,
  })

describe('the queue', () => {
  test('lets one build run and one wait, which later callers join and which takes the newest configuration', async () => {
    configure('one')
    const first = builds.run(WHO, ID, {})
    await started()
    const second = builds.run(WHO, ID, {})
    configure('two')
    const third = builds.run(WHO, ID, {})
    expect(builds.list(WHO, ID).builds.map(({ status }) => status)).toEqual(['queued', 'running'])
    steps[0]?.end()
    expect((await first).steps.map(({ step }) => step)).toEqual(['one'])
    ;(await started(2)).end()
    expect((await second).steps.map(({ step }) => step)).toEqual(['two'])
    expect(await third).toEqual(await second)
    expect((await third).build_id).not.toBe((await first).build_id)
    expect(steps).toHaveLength(2)
    expect(events).toEqual(['hold', 'open', 'close', 'release', 'hold', 'open', 'close', 'release'])
    expect(builds.isBuilding(ID)).toBe(false)
  })

  test('does not mix a deploy’s own configuration with the stored one', async () => {
    configure('stored')
    const first = builds.run(WHO, ID, {})
    await started()
    const own = builds.buildFor(computer, parsed('own'), {})
    const same = builds.buildFor(computer, parsed('own'), {})
    const stored = builds.run(WHO, ID, {})
    steps[0]?.end()
    ;(await started(2)).end()
    ;(await started(3)).end()
    await first
    expect((await own).steps.map(({ step }) => step)).toEqual(['own'])
    expect((await same).build_id).toBe((await own).build_id)
    expect((await stored).steps.map(({ step }) => step)).toEqual(['stored'])
    expect(builds.succeededFingerprint(ID)).toBe(buildFingerprint(parsed('stored')))
  })

  test('gives those that wait the token and the wish of whoever joined', async () => {
    putAgent()
    configure('one')
    const first = builds.run(WHO, ID, { git_token: 'first-token' })
    await started()
    void builds.run(WHO, ID, {})
    const joined = builds.run(WHO, ID, { git_token: 'later-token', redeploy: true })
    steps[0]?.end()
    await first
    gitEnvironments = []
    ;(await started(2)).end()
    expect(await joined).toMatchObject({ success: true, redeployed: true })
    expect(new Set(gitEnvironments.map((env) => env['ORB_GIT_TOKEN']))).toEqual(new Set(['later-token']))
  })
})

describe('the outcome', () => {
  test('is kept: steps, commit and status', async () => {
    configure('one', 'two', 'three')
    const running = builds.run(WHO, ID, {})
    ;(await started()).end({ stdout: 'out', stderr: 'err', durationMs: 7 })
    await started(2)
    const [live] = builds.list(WHO, ID).builds
    expect(live).toMatchObject({
      status: 'running',
      finished_at: null,
      commit: COMMIT,
      steps: [{ step: 'one', stdout: 'out' }],
    })
    expect(builds.isBuilding(ID)).toBe(true)
    steps[1]?.end({ exitCode: 2 })
    const view = await running
    expect(view).toEqual({
      computer_id: ID,
      build_id: expect.stringMatching(/^build_[a-z0-9]{16}$/),
      cloned: true,
      commit: COMMIT,
      code_version: '0123456',
      steps: [
        { step: 'one', exit_code: 0, stdout: 'out', stderr: 'err', duration_ms: 7, timed_out: false },
        { step: 'two', exit_code: 2, stdout: '', stderr: '', duration_ms: 1, timed_out: false },
      ],
      success: false,
      error: 'step_failed',
      message: 'step 2 failed with exit code 2',
      redeployed: false,
    })
    const record = builds.get(WHO, ID, view.build_id)
    expect(record).toMatchObject({ ...view, status: 'failure' })
    expect(record.started_at).not.toBeNull()
    expect(record.finished_at).not.toBeNull()
    expect(builds.succeededFingerprint(ID)).toBeNull()
  })

  test('without source and build is a success', async () => {
    const { config } = parseInline({ agent: { name: 'a', lang: 'node', entry: 'a.js' } }, () => false)
    expect(await builds.buildFor(computer, config, {})).toMatchObject({
      success: true,
      cloned: false,
      commit: null,
      steps: [],
    })
    expect(gitEnvironments).toEqual([])
  })

  test('is the reason when the agent cannot be woken', async () => {
    configure('one')
    prepare = () => Promise.reject(new OrbError('no_capacity', 'no room'))
    await expect(builds.run(WHO, ID, {})).rejects.toMatchObject({ code: 'no_capacity' })
    expect(builds.list(WHO, ID).builds).toMatchObject([{ status: 'failure', error: 'no_capacity', message: 'no room' }])
    expect(builds.isBuilding(ID)).toBe(false)
  })

  test.each([
    ['starts the agent anew when asked', true, true, {}, { success: true, redeployed: true }],
    ['leaves it alone when not asked', true, false, {}, { success: true, redeployed: false }],
    ['starts nothing where nothing was deployed', false, true, {}, { success: true, redeployed: false }],
    ['starts nothing after a failure', true, true, { exitCode: 1 }, { success: false, redeployed: false }],
  ])('%s', async (_, deployed, wanted, end, expected) => {
    if (deployed) putAgent()
    configure('one')
    const running = builds.run(WHO, ID, { redeploy: wanted })
    ;(await started()).end(end)
    expect(await running).toMatchObject(expected)
    expect(events).toEqual(['hold', 'open', 'close', 'release', ...(expected.redeployed ? ['redeploy'] : [])])
  })

  test('tells the agent that is started anew of the code that it brought', async () => {
    putAgent()
    configure('one')
    const told: unknown[] = []
    redeploy = async () => {
      told.push(...store.builds.list(ID).map((row) => JSON.parse(row.result).code_version))
    }
    const running = builds.run(WHO, ID, { redeploy: true })
    ;(await started()).end()
    expect((await running).code_version).toBe(COMMIT.slice(0, 7))
    expect(told).toEqual([COMMIT.slice(0, 7)])
  })

  test('brings the agent along by itself once auto-deploy is set up', async () => {
    putAgent()
    configure('one')
    store.githubDeploys.put({ computerId: ID, owner: 'o', repository: 'r', branch: 'main', madeKeyId: null })
    const builtWith = async (input: BuildInput, nth: number) => {
      const running = builds.run(WHO, ID, input)
      ;(await started(nth)).end()
      return (await running).redeployed
    }
    expect(await builtWith({}, 1)).toBe(true)
    expect(await builtWith({ redeploy: false }, 2)).toBe(false)
    const id = builds.begin(computer, { git_token: 'once' })
    ;(await started(3)).end()
    while (builds.isBuilding(ID)) await Bun.sleep(1)
    expect(builds.get(WHO, ID, id)).toMatchObject({ status: 'success', redeployed: true })
  })

  test('is a failure when the agent that was to be started anew does not start', async () => {
    putAgent()
    configure('one')
    redeploy = () => Promise.reject(new OrbError('spawn_failed', 'no such file'))
    const running = builds.run(WHO, ID, { redeploy: true })
    ;(await started()).end()
    const expected = { success: false, redeployed: false, error: 'redeploy_failed', message: 'no such file' }
    expect(await running).toMatchObject(expected)
  })

  test('of a build that a crash cut off is failure', () => {
    const row = { computerId: ID, fingerprint: '', createdAt: 1, startedAt: 2, finishedAt: null }
    const view = { computer_id: ID, cloned: true, commit: null, code_version: null, steps: [], success: false }
    const result = JSON.stringify({ ...view, build_id: 'build_x', error: null, message: null, redeployed: false })
    store.builds.put({ ...row, id: 'build_x', status: 'running', result })
    builds.recover()
    expect(builds.get(WHO, ID, 'build_x')).toMatchObject({ status: 'failure', error: 'interrupted', success: false })
    expect(store.builds.unfinished()).toEqual([])
  })
})

describe('secrets', () => {
  test('that are sent are stored, git_token is not', async () => {
    configure('one')
    const running = builds.run(WHO, ID, { org_secrets: { A: '1', GITHUB_TOKEN: 'stored' }, git_token: 'once' })
    ;(await started()).end()
    await running
    expect(secrets.all(ID)).toEqual({ A: '1', GITHUB_TOKEN: 'stored' })
    expect(gitEnvironments[0]?.['ORB_GIT_TOKEN']).toBe('once')
    const next = builds.run(WHO, ID, {})
    gitEnvironments = []
    ;(await started(2)).end()
    await next
    expect(gitEnvironments[0]?.['ORB_GIT_TOKEN']).toBe('stored')
    expect(steps[1]?.env['ORB_GIT_TOKEN']).toBe('stored')
  })

  test('are not stored without a configuration, nor by a deploy’s build', async () => {
    await expect(builds.run(WHO, ID, { org_secrets: { A: '1' } })).rejects.toMatchObject({ code: 'no_config' })
    const running = builds.buildFor(computer, parsed('own'), { org_secrets: { GITHUB_TOKEN: 'sent' } })
    ;(await started()).end()
    await running
    expect(gitEnvironments[0]?.['ORB_GIT_TOKEN']).toBe('sent')
    expect(secrets.all(ID)).toEqual({})
  })

  test('are at most 200 to a computer', () => {
    const many = (count: number) => Object.fromEntries(Array.from({ length: count }, (_, index) => [`S${index}`, 'x']))
    secrets.keep(ID, many(200))
    secrets.keep(ID, { S0: 'changed' })
    expect(() => secrets.keep(ID, { ONE_MORE: 'x' })).toThrow('at most 200')
    expect(Object.keys(secrets.all(ID))).toHaveLength(200)
    expect(secrets.all(ID)['S0']).toBe('changed')
  })
})

test('a record of very much output keeps the end of each stream', async () => {
  configure(...Array.from({ length: 10 }, (_, index) => `step ${index}`))
  const running = builds.run(WHO, ID, {})
  for (let index = 1; index <= 10; index++)
    (await started(index)).end({ stdout: `${'x'.repeat(200_000)}end`, stderr: 'short' })
  const view = await running
  expect(view.steps[0]?.stdout).toHaveLength(200_003)
  const record = builds.get(WHO, ID, view.build_id)
  expect(record.steps).toHaveLength(10)
  expect(JSON.stringify(record).length).toBeLessThan(1024 * 1024 + 10_000)
  expect(record.steps[9]).toMatchObject({ stdout: expect.stringMatching(/x{50000}end$/), stderr: 'short' })
})

test('a build that is shared counts for the other computer, without its output', async () => {
  const other = store.computers.insert({ ...computer, id: '22222222-0000-0000-0000-000000000000', shortId: '22222222' })
  configure('one')
  const running = builds.run(WHO, ID, {})
  ;(await started()).end({ stdout: 'output of the step' })
  const { build_id } = await running
  builds.share(computer, other)
  const row = store.builds.lastSuccess(other.id)
  expect(row?.result).not.toContain('output of the step')
  expect(JSON.parse(row?.result ?? '')).toMatchObject({
    computer_id: other.id,
    success: true,
    commit: COMMIT,
    steps: [{ step: 'one', exit_code: 0 }],
    message: `built once in computer 11111111: the output is in its build ${build_id}`,
  })
  expect(row?.id).not.toBe(build_id)
  expect(builds.succeededFingerprint(other.id)).toBe(builds.succeededFingerprint(ID))
})
