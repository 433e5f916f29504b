/** Builds in real computers, from a real git server. Needs root. */
import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { parseAllowList } from '../../src/addresses.ts'
import { type Builds, createBuilds } from '../../src/services/builds/builds.ts'
import { createExec } from '../../src/services/exec.ts'
import { parseInline, toJson } from '../../src/services/orb-toml.ts'
import { createSecrets } from '../../src/services/secrets.ts'
import type { Principal } from '../../src/services/types.ts'
import { openVault } from '../../src/services/vault.ts'
import { openStore, type Store } from '../../src/store/store.ts'
import type { ComputerRow } from '../../src/store/types.ts'
import { type GitServer, startGitServer } from '../support/git-server.ts'
import { startRuntime, type TestRuntime } from '../support/runtime.ts'

const TOKEN = 'ghp_thisIsTheTokenThatMustNotBeSeen0123456789'
const WHO: Principal = { orgId: 'org', keyId: 'key', scope: 'full', role: 'admin' }
const TEST_TIMEOUT_MS = 60_000

let host: TestRuntime
let server: GitServer
let store: Store
let builds: Builds
let exec: ReturnType<typeof createExec>
const woken: string[] = []
const settings = { cloneTimeoutMs: 30_000, buildStepTimeoutMs: 30_000, buildTimeoutMs: 60_000, sandboxAllow: [] }

beforeAll(async () => {
  host = await startRuntime()
  server = await startGitServer(host.runtime.network.gateway)
  store = openStore(join(host.dataDir, 'orb.db'))
  store.orgs.insert({ id: 'org', email: 'a@example.com', createdAt: 0 })
  const lookup = {
    computer: (_: Principal, id: string): ComputerRow => {
      const row = store.computers.get(id)
      if (!row) throw new Error('no such computer')
      return row
    },
  }
  const environmentFacts = (computer: ComputerRow) => ({
    computerId: computer.id,
    proxyUrl: 'http://proxy.test',
    apiUrl: 'http://api.test',
    ports: [8000],
    replica: null,
  })
  builds = createBuilds({
    settings,
    allowPrivate: parseAllowList(`git.test:${server.port},${host.runtime.network.gateway}:${server.port}`),
    store,
    secrets: createSecrets({ secrets: store.secrets, vault: openVault(host.dataDir) }),
    runtime: host.runtime,
    lookup,
    environmentFacts,
    outbound: { duringBuild: () => () => undefined },
    agents: {
      async prepareForBuild(id) {
        woken.push(id)
        return () => woken.push(`released ${id}`)
      },
      redeploy: async () => {},
    },
    resolve: async () => [host.runtime.network.gateway],
  })
  exec = createExec({ runtime: host.runtime, lookup, environmentFacts, lease: () => () => undefined })
}, TEST_TIMEOUT_MS)

afterAll(async () => {
  store?.close()
  await server?.[Symbol.asyncDispose]()
  await host?.[Symbol.asyncDispose]()
}, TEST_TIMEOUT_MS)

async function computer(): Promise<ComputerRow> {
  const row = await host.computer()
  store.computers.insert(row)
  return row
}

function configure(
  { id }: ComputerRow,
  parts: { repository?: string; branch?: string; steps?: string[]; dir?: string },
): void {
  const { config } = parseInline(
    {
      agent: { name: 'a', lang: 'node', entry: 'a.js' },
      source: parts.repository && { git: parts.repository, branch: parts.branch ?? null },
      build: parts.steps && { steps: parts.steps, working_dir: parts.dir ?? null },
    },
    () => true,
  )
  store.configs.put({
    computerId: id,
    kind: 'stored',
    json: toJson(config),
    toml: null,
    source: 'inline',
    updatedAt: 0,
  })
}

const repository = (name: string) => `http://git.test:${server.port}/${name}`
const inside = async ({ id }: ComputerRow, command: string) => exec.run(WHO, id, { command, timeout_secs: 30 })
const pathOf = (row: ComputerRow, path: string) => join(host.runtime.paths(row).rootfs, path)

describe('source', () => {
  test(
    'is cloned first and updated to the newest commit later, untracked files stay',
    async () => {
      const one = await computer()
      await server.create('plain')
      const first = await server.commit('plain', { 'a.txt': 'one', 'gone.txt': 'x' })
      configure(one, { repository: repository('plain') })
      const cloned = await builds.run(WHO, one.id, {})
      expect(cloned).toMatchObject({
        message: null,
        cloned: true,
        commit: first,
        code_version: first.slice(0, 7),
        success: true,
      })
      expect(woken.slice(-2)).toEqual([one.id, `released ${one.id}`])
      await inside(one, 'cd /agent/code && echo changed > a.txt && echo mine > mine.txt')

      const second = await server.commit('plain', { 'a.txt': 'two' })
      expect(await builds.run(WHO, one.id, {})).toMatchObject({ commit: second, success: true })
      const { stdout } = await inside(
        one,
        'cd /agent/code && ls && cat a.txt mine.txt && git status --porcelain && git log --oneline | wc -l',
      )
      expect(stdout).toBe('a.txt\nmine.txt\ntwomine\n?? mine.txt\n1\n')
    },
    TEST_TIMEOUT_MS,
  )

  test(
    'takes the place of another repository, but is laid over files of none',
    async () => {
      const one = await computer()
      await server.create('old')
      await server.create('new')
      await server.commit('old', { 'old.txt': 'x' })
      await server.commit('new', { 'new.txt': 'x', 'both.txt': 'new' })
      await inside(one, 'cd /agent/code && echo mine > mine.txt && echo mine > both.txt')
      configure(one, { repository: repository('old') })
      await builds.run(WHO, one.id, {})
      expect((await inside(one, 'ls /agent/code')).stdout).toBe('both.txt\nmine.txt\nold.txt\n')
      configure(one, { repository: repository('missing') })
      expect(await builds.run(WHO, one.id, {})).toMatchObject({
        cloned: false,
        steps: [],
        success: false,
        error: 'clone_failed',
      })
      expect((await inside(one, 'ls /agent/code')).stdout).toBe('both.txt\nmine.txt\nold.txt\n')
      configure(one, { repository: repository('new') })
      expect(await builds.run(WHO, one.id, {})).toMatchObject({ message: null, success: true })
      expect((await inside(one, 'ls /agent/code; cat /agent/code/both.txt; ls /agent/.orb')).stdout).toBe(
        'both.txt\nnew.txt\nnew',
      )
    },
    TEST_TIMEOUT_MS,
  )

  test(
    'may be another branch, and steps may fetch it themselves',
    async () => {
      const one = await computer()
      await server.create('branches')
      await server.commit('branches', { 'a.txt': 'main' })
      const next = await server.commit('branches', { 'a.txt': 'next' }, 'feature/next')
      configure(one, { repository: repository('branches') })
      await builds.run(WHO, one.id, {})
      const steps = [
        'git branch --show-current; cat a.txt',
        'git fetch origin main && git reset --hard origin/main && cat a.txt',
      ]
      configure(one, { repository: repository('branches'), branch: 'feature/next', steps })
      const view = await builds.run(WHO, one.id, {})
      expect(view).toMatchObject({ commit: next, success: true })
      expect(view.steps[0]?.stdout).toBe('feature/next\nnext')
      expect(view.steps[1]?.stdout).toEndWith('main')
    },
    TEST_TIMEOUT_MS,
  )

  test(
    'that is private needs the token, which is nowhere on the disk and in no answer',
    async () => {
      const one = await computer()
      await server.create('secret', TOKEN)
      await server.commit('secret', { 'a.txt': 'one' })
      // A helper that would write the token down.
      await inside(one, 'git config --global credential.helper store && git config --global core.hooksPath /agent/data')
      const steps = ['git fetch origin main', 'env; git config --list --show-origin; echo $ORB_GIT_TOKEN >&2']
      configure(one, { repository: repository('secret'), steps })

      const refused = await builds.run(WHO, one.id, {})
      expect(refused).toMatchObject({ cloned: false, error: 'clone_failed', success: false })
      expect(refused.message).toContain('GITHUB_TOKEN')
      expect(await builds.run(WHO, one.id, { git_token: TOKEN })).toMatchObject({ message: null, success: true })
      expect(await builds.run(WHO, one.id, {})).toMatchObject({ success: false })
      expect(await builds.run(WHO, one.id, { org_secrets: { GITHUB_TOKEN: TOKEN } })).toMatchObject({ success: true })
      await server.commit('secret', { 'a.txt': 'two' })
      const last = await builds.run(WHO, one.id, {})
      expect(last).toMatchObject({ success: true })
      expect(last.steps[1]?.stderr).toBe('***\n')

      const encoded = Buffer.from(`x-access-token:${TOKEN}`).toString('base64')
      const said = JSON.stringify(builds.list(WHO, one.id))
      for (const form of [TOKEN, encoded]) {
        expect(said).not.toContain(form)
        await host.runtime.exec(one, {
          argv: ['sync'],
          env: {},
          purpose: 'exec',
          cwd: '/',
          timeoutMs: 10_000,
          maxBytes: 100,
        })
        expect(readFileSync(host.runtime.paths(one).disk).includes(form)).toBe(false)
        expect(readFileSync(join(host.dataDir, 'orb.db')).includes(form)).toBe(false)
        expect(readFileSync(join(host.dataDir, 'orb.db-wal')).includes(form)).toBe(false)
      }
    },
    TEST_TIMEOUT_MS,
  )

  test(
    'cannot be reached by a redirect, by other hosts, or once the build is over',
    async () => {
      const one = await computer()
      await server.create('target', TOKEN)
      await server.create('open')
      await server.commit('open', { 'a.txt': 'one' })
      await server.commit('target', { 'a.txt': 'one' })
      server.redirects.set('/moved', `http://${host.runtime.network.gateway}:${server.port}/target.git`)
      configure(one, { repository: repository('moved') })
      server.requests.length = 0
      expect(await builds.run(WHO, one.id, { git_token: TOKEN })).toMatchObject({
        success: false,
        error: 'clone_failed',
      })
      expect(server.requests.every(({ path }) => path.startsWith('/moved'))).toBe(true)
      expect(server.requests.length).toBeGreaterThan(0)

      const direct = await inside(one, `git ls-remote http://${host.runtime.network.gateway}:${server.port}/open.git`)
      expect(direct.exit_code).not.toBe(0)
      for (const [address, message] of [
        ['http://127.0.0.1:1/x', 'not allowed'],
        ['https://127.0.0.1:1/x', 'loopback'],
        ['http://elsewhere.test/x', 'not allowed'],
        ['https://10.1.2.3/x', 'private network'],
      ] as const) {
        configure(one, { repository: address })
        const view = await builds.run(WHO, one.id, {})
        expect(view).toMatchObject({ cloned: false, error: 'clone_failed' })
        expect(view.message).toContain(message)
      }
    },
    TEST_TIMEOUT_MS,
  )

  test(
    'that cannot be had in time fails, and the next update works',
    async () => {
      const one = await computer()
      await server.create('slow')
      await server.commit('slow', { 'a.txt': 'one' })
      configure(one, { repository: repository('slow') })
      await builds.run(WHO, one.id, {})
      await inside(one, 'touch /agent/code/.git/index.lock')
      settings.cloneTimeoutMs = 1
      const view = await builds.run(WHO, one.id, {})
      settings.cloneTimeoutMs = 30_000
      expect(view).toMatchObject({ cloned: false, error: 'clone_failed' })
      expect(await builds.run(WHO, one.id, {})).toMatchObject({ message: null, success: true })
    },
    TEST_TIMEOUT_MS,
  )
})

describe('steps', () => {
  test(
    'run in order in the working directory until one fails',
    async () => {
      const one = await computer()
      const steps = [
        'pwd; echo $DEBIAN_FRONTEND $ANTHROPIC_BASE_URL\nid -un',
        'echo out; echo err >&2; exit 3',
        'touch /agent/data/later',
      ]
      configure(one, { steps, dir: '/agent/new dir' })
      const view = await builds.run(WHO, one.id, {})
      expect(view).toMatchObject({ cloned: false, commit: null, success: false, error: 'step_failed' })
      expect(view.steps).toMatchObject([
        {
          step: steps[0],
          exit_code: 0,
          stdout: '/agent/new dir\nnoninteractive http://proxy.test\nroot\n',
          timed_out: false,
        },
        { step: steps[1], exit_code: 3, stdout: 'out\n', stderr: 'err\n' },
      ])
      expect(await Bun.file(pathOf(one, 'agent/data/later')).exists()).toBe(false)
    },
    TEST_TIMEOUT_MS,
  )

  test(
    'that take too long are killed with all their children',
    async () => {
      const one = await computer()
      configure(one, { steps: ['sleep 1234 & setsid sleep 1235 & sleep 1236', 'echo later'] })
      settings.buildStepTimeoutMs = 500
      const view = await builds.run(WHO, one.id, {})
      settings.buildStepTimeoutMs = 30_000
      expect(view.steps).toMatchObject([{ exit_code: 124, timed_out: true }])
      expect(view).toMatchObject({ success: false, error: 'step_failed' })
      expect((await inside(one, 'ps ax -o args | grep "^sleep 123"')).stdout).toBe('')
    },
    TEST_TIMEOUT_MS,
  )

  test(
    'show the last 256 KiB of each stream',
    async () => {
      const one = await computer()
      configure(one, { steps: ['head -c 300000 /dev/zero | tr "\\0" x; echo end'] })
      const view = await builds.run(WHO, one.id, {})
      expect(Buffer.byteLength(view.steps[0]?.stdout ?? '')).toBe(256 * 1024)
      expect(view.steps[0]?.stdout).toEndWith('xend\n')
    },
    TEST_TIMEOUT_MS,
  )

  test(
    'end when their computer is deleted, those that wait too',
    async () => {
      const one = await computer()
      configure(one, { steps: ['touch /agent/data/begun; sleep 1000'] })
      const running = builds.run(WHO, one.id, {})
      const waiting = builds.run(WHO, one.id, {})
      while (!(await Bun.file(pathOf(one, 'agent/data/begun')).exists())) await Bun.sleep(20)
      expect(builds.isBuilding(one.id)).toBe(true)
      expect(builds.list(WHO, one.id).builds.map(({ status }) => status)).toEqual(['queued', 'running'])
      await builds.cancel(one.id)
      expect(await running).toMatchObject({ success: false, error: 'cancelled' })
      expect(await waiting).toMatchObject({ success: false, error: 'cancelled', steps: [] })
      expect(builds.isBuilding(one.id)).toBe(false)
    },
    TEST_TIMEOUT_MS,
  )
})

describe('exec', () => {
  test(
    'runs as root in /agent/data, with the base environment',
    async () => {
      const one = await computer()
      const view = await inside(one, 'id -u; pwd; echo $ORB_PROXY_URL; echo oops >&2; exit 7')
      expect(view).toMatchObject({
        stdout: '0\n/agent/data\nhttp://proxy.test\n',
        stderr: 'oops\n',
        exit_code: 7,
        timed_out: false,
      })
    },
    TEST_TIMEOUT_MS,
  )

  test(
    'returns when the shell ends though a child holds the output; a timeout kills the tree',
    async () => {
      const one = await computer()
      const left = await inside(one, 'sleep 1237 & disown; echo done')
      expect(left).toMatchObject({ stdout: 'done\n', exit_code: 0 })
      expect((await inside(one, 'ps ax -o args | grep "^sleep 1237"')).stdout).toBe('sleep 1237\n')
      const late = await exec.run(WHO, one.id, { command: 'sleep 1238 & sleep 1239', timeout_secs: 1 })
      expect(late).toMatchObject({ exit_code: 124, timed_out: true })
      expect((await inside(one, 'ps ax -o args | grep "^sleep 123[89]"')).stdout).toBe('')
    },
    TEST_TIMEOUT_MS,
  )

  test(
    'takes a command of exactly 128 KiB and not a byte more',
    async () => {
      const one = await computer()
      const command = `echo $#é "$0"; #${'é'.repeat(1024 * 64 - 10)}`
      const padded = command + 'x'.repeat(128 * 1024 - Buffer.byteLength(command))
      expect(await inside(one, padded)).toMatchObject({ stdout: '0é bash\n', exit_code: 0 })
      await expect(inside(one, `${padded}x`)).rejects.toMatchObject({ code: 'invalid_request' })
    },
    TEST_TIMEOUT_MS,
  )
})
