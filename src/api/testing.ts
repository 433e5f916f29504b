import { loadSettings, type Settings } from '../config.ts'
import { OrbError } from '../errors.ts'
import { createOrbMetrics } from '../services/system.ts'
import type {
  ComputerView,
  LogLine,
  Principal,
  Services,
  SwarmView,
  TerminalClient,
  TerminalVisit,
} from '../services/types.ts'
import { type RunningApi, startApi } from './server.ts'

/** The computer that the fake services know, and the keys that they take. */
export const COMPUTER_ID = 'abc12345-0000-4000-8000-000000000000'
export const KEY = 'orb_admin'
export const VIEWER_KEY = 'orb_viewer'
export const DEPLOY_KEY = 'orb_deploy'

const FILE = 'hello world'

/** The holder of `KEY`. */
export const ADMIN: Principal = { orgId: 'org', keyId: 'k1', scope: 'full', role: 'admin' }

const PRINCIPALS: Record<string, Principal> = {
  [KEY]: ADMIN,
  [VIEWER_KEY]: { orgId: 'org', keyId: 'k2', scope: 'full', role: 'viewer' },
  [DEPLOY_KEY]: { orgId: 'org', keyId: 'k3', scope: `deploy:${COMPUTER_ID}`, role: 'admin' },
}

const TIME = '2026-04-19T04:05:00Z'

export const computerView = (more: Partial<ComputerView> = {}): ComputerView => ({
  id: COMPUTER_ID,
  computer_id: COMPUTER_ID,
  short_id: 'abc12345',
  org_id: 'org',
  name: 'c',
  runtime_mb: 512,
  disk_mb: 1024,
  status: 'ready',
  agent_count: 0,
  agent_state: null,
  port_mappings: [],
  url: 'http://abc12345.orb.localhost',
  subdomain: 'abc12345.orb.localhost',
  user_id: null,
  swarm_id: null,
  replica_index: null,
  created_at: TIME,
  updated_at: TIME,
  ...more,
})

export const SWARM_ID = 'swm_abc123xyz0'

export const swarmView = (replicas = 2): SwarmView => {
  const { id, short_id, status, subdomain, url } = computerView()
  const computers = [{ id, short_id, replica_index: 0, status, subdomain, url }]
  return { swarm_id: SWARM_ID, name: 'workers', replicas, computers, created_at: TIME }
}

export interface FakeCall {
  name: string
  args: unknown[]
}

export interface TestApi {
  running: RunningApi
  /** What the services were asked, the credential check left out. */
  calls: FakeCall[]
  /** Whether whoever followed the logs has left. */
  followed: { aborted: boolean }
}

/** The whole HTTP layer on a port of its own, over services that record what they are asked. */
export function startTestApi(env: Record<string, string> = {}, overrides: Partial<Services> = {}): TestApi {
  const calls: FakeCall[] = []
  const followed = { aborted: false }
  const settings: Settings = loadSettings({
    flags: {},
    env: { ORB_LISTEN: '127.0.0.1:0', ...env },
    file: '/nonexistent/orb.toml',
  })
  const services = { ...fakeServices(calls, followed), ...overrides }
  const running = startApi({
    services,
    settings,
    metrics: createOrbMetrics(),
    version: '1.2.3',
    publicDirectory: { find: () => null, mayReach: () => true },
  })
  return { running, calls, followed }
}

/** A terminal that shows what is typed, and closes with the words that follow `close`, throws at `fail`. */
function echo(note: (name: string, ...args: unknown[]) => void): TerminalVisit {
  let client: TerminalClient | null = null
  return {
    attach(attached) {
      client = attached
      client.show('hello ü')
    },
    type(bytes) {
      const text = Buffer.from(bytes).toString()
      if (text === 'fail') throw new Error('as it was told')
      const [, code, reason = ''] = /^close (\d+) (.*)$/.exec(text) ?? []
      if (code) client?.close(Number(code), reason)
      else client?.show(text)
    },
    resize: (size) => note('resize', size),
    drained: () => undefined,
    leave: () => note('leave'),
  }
}

export function fakeServices(calls: FakeCall[], followed: { aborted: boolean }): Services {
  const note = (name: string, ...args: unknown[]) => void calls.push({ name, args })
  const known = (id: string) => {
    if (id !== COMPUTER_ID && id !== 'abc12345') throw new OrbError('not_found', 'no such computer')
  }
  const summary = {
    agent: { name: 'a', lang: 'node', entry: 'a.js' },
    backend: { provider: 'multi' },
    llm: { base_url: null },
    ports: { expose: [] },
  }
  const build = {
    computer_id: COMPUTER_ID,
    build_id: 'build_1',
    cloned: false,
    commit: null,
    code_version: null,
    steps: [],
    success: true,
    error: null,
    message: null,
    redeployed: false,
  }
  const record = { ...build, status: 'success', started_at: TIME, finished_at: TIME } as const
  const agent = { pid: 1, port: 10_000, state: 'running', sandboxed: true, code_version: null } as const
  const webhook = {
    id: 'whk_1',
    url: 'https://example.com/hook',
    events: ['*'],
    active: true,
    disabled_reason: null,
    created_at: TIME,
  }
  return {
    accounts: {
      async register(email) {
        note('register', email)
        if (email === 'taken@example.com') throw new OrbError('email_taken', 'taken')
        return { tenant_id: 'org', org_id: 'org', api_key: KEY, key_id: 'k1', email }
      },
      async login(key) {
        if (!PRINCIPALS[key]) throw new OrbError('unauthorized', 'unknown')
        return { token: 'a.b.c', expires_in: 86_400 }
      },
      async authenticate(credential) {
        const who = PRINCIPALS[credential]
        if (!who) throw new OrbError('unauthorized', 'unknown')
        return who
      },
      async createKey(_, name) {
        note('createKey', name)
        return { key_id: 'k9', api_key: 'orb_new', name, prefix: 'orb_new', created_at: TIME }
      },
      listKeys: () => ({ keys: [], total: 0 }),
      revokeKey(_, keyId) {
        if (keyId !== 'k9') throw new OrbError('not_found', 'no such key')
        return { key_id: keyId, revoked: true }
      },
    },
    computers: {
      async create(_, input) {
        note('create', input)
        if (input.name === 'full') throw new OrbError('disk_full', 'the disk is full')
        if (input.name === 'busy') throw new OrbError('no_capacity', 'no room')
        if (input.name === 'bug') throw new Error('secret detail in /var/lib/orb')
        return computerView({ ...input })
      },
      list: () => ({ computers: [computerView()], total: 1 }),
      get(_, id) {
        known(id)
        return computerView({ name: 'lone \ud800 surrogate \u0001' })
      },
      async remove(_, id) {
        known(id)
        return { id: COMPUTER_ID, computer_id: COMPUTER_ID, deleted: true }
      },
    },
    configs: {
      upload(_, id, raw, kind) {
        known(id)
        note('upload', new TextDecoder().decode(raw).slice(0, 100), kind)
        return { computer_id: COMPUTER_ID, config_summary: summary, source: 'uploaded', warnings: [] }
      },
      get() {
        throw new OrbError('config_not_found', 'no configuration')
      },
    },
    builds: {
      async run(_, id, input) {
        known(id)
        note('build', input)
        return build
      },
      list: () => ({ builds: [record] }),
      get(_, __, buildId) {
        if (buildId !== 'build_1') throw new OrbError('not_found', 'no such build')
        return record
      },
    },
    agents: {
      async deploy(_, id, input) {
        known(id)
        note('deploy', input)
        const { pid, port, state } = agent
        return { computer_id: id, deployed: 1, agents: [agent], port, pid, state, url: 'u', warnings: [] }
      },
      async list(_, id) {
        known(id)
        return { agents: [], total: 0 }
      },
      async demote(_, id, port) {
        known(id)
        note('demote', port)
        if (port === 9) throw new OrbError('port_not_found', 'no such port')
        return {
          computer_id: id,
          status: 'demoted',
          port: 10_000,
          state: 'checkpointed',
          checkpoint_dir: 'x',
          kind: 'full',
          size_bytes: 1,
          duration_ms: 1,
        }
      },
      async promote(_, id, port) {
        note('promote', port)
        return { computer_id: id, status: 'promoted', port: 10_000, pid: 1, state: 'running', restore_ms: 1 }
      },
      restart: async (_, id) => ({ computer_id: id, restarted: true, killed_agents: 1 }),
    },
    swarms: {
      create(_, input, watch) {
        note('createSwarm', input)
        if (input.name === 'taken') throw new OrbError('name_taken', 'taken')
        if (input.name === 'broken') return Promise.reject(new Error('secret detail in /var/lib/orb'))
        const failed = { replica_index: 1, error: 'deploy_failed', message: 'no', computer_id: COMPUTER_ID } as const
        const deployed = input.name === 'partly' ? 1 : input.replicas
        const counts = { deployed, failed: 0, replicas: input.replicas }
        watch?.({ swarm_id: SWARM_ID, phase: 'created', replica_index: null, message: 'begun', ...counts })
        return Bun.sleep(0).then(() => {
          watch?.({ swarm_id: SWARM_ID, phase: 'deployed', replica_index: 0, message: 'deployed', ...counts })
          return { ...swarmView(input.replicas), deployed, failed: deployed < input.replicas ? [failed] : [] }
        })
      },
      list: () => ({ swarms: [swarmView()], total: 1 }),
      get(_, id) {
        if (id !== SWARM_ID && id !== 'workers') throw new OrbError('not_found', 'no such swarm')
        return swarmView()
      },
      async remove(_, id) {
        note('removeSwarm', id)
        const left = { replica_index: 1, error: 'internal', message: 'no', computer_id: COMPUTER_ID }
        return { swarm_id: SWARM_ID, deleted: 1, failed: id === 'stuck' ? [left] : [] }
      },
    },
    exec: {
      async run(_, __, input) {
        note('exec', input)
        return { stdout: '', stderr: '', exit_code: 0, timed_out: false, truncated: false, duration_ms: 1 }
      },
      async stream(_, id, input) {
        known(id)
        note('execStream', input)
        return {
          id: 'exec_1',
          events: (async function* () {
            yield { event: 'stdout' as const, data: { text: 'one\n' } }
            if (input.command === 'sleep') await new Promise((resolve) => setTimeout(resolve, 3_600_000).unref())
            yield { event: 'exit' as const, data: { exit_code: 0, timed_out: false, duration_ms: 1 } }
          })(),
          stop: () => note('execStop'),
        }
      },
      async write(_, id, execId, body, last) {
        known(id)
        if (execId !== 'exec_1') throw new OrbError('not_found', 'no such command')
        const text = body ? await new Response(body).text() : ''
        note('execWrite', text, last)
        return { written: text.length, closed: last }
      },
    },
    cron: {
      list(_, id) {
        known(id)
        return { jobs: [], error: 'cron.json is not valid JSON' }
      },
      runs(_, id, query) {
        known(id)
        note('runs', query)
        return { runs: [] }
      },
      async trigger(_, id, name) {
        known(id)
        note('trigger', name)
        if (name === 'missing') throw new OrbError('job_not_found', 'no such job')
        const status = name === 'broken' ? 'error' : 'success'
        const output = status === 'error' ? null : ''
        const [exit_code, duration_ms] = status === 'error' ? [null, null] : [0, 1]
        return { run_id: 'run_1', status, exit_code, stdout: output, stderr: output, duration_ms, timed_out: false }
      },
    },
    terminals: {
      check: (_, id, session) => {
        known(id)
        if (session === 'one_too_many') throw new OrbError('too_many_sessions', 'too many')
      },
      async open(_, __, options) {
        note('terminal', options)
        return echo((name, ...args) => note(name, ...args))
      },
    },
    logs: {
      async read(_, id, query) {
        known(id)
        note('logs', query)
        return { computer_id: id, lines: [logLine('one'), logLine('two')], truncated: false }
      },
      async *follow(_, __, query, signal) {
        note('follow', query)
        yield logLine('one')
        yield logLine('two\nsplit')
        await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve()))
        followed.aborted = true
      },
    },
    files: {
      async read(_, id, path) {
        known(id)
        note('read', path)
        if (path === 'missing') throw new OrbError('not_found', 'no such file')
        if (path !== 'file') return { path, files: [] }
        return {
          size: FILE.length,
          content: async (start, end) => new Blob([FILE.slice(start, end)]),
          close: () => note('close'),
        }
      },
      async write(_, id, path, body, contentLength) {
        known(id)
        let size = 0
        for await (const chunk of body ?? []) {
          size += chunk.byteLength
          if (path === 'small' && size > 1000) throw new OrbError('payload_too_large', 'too large')
        }
        note('write', path, size, contentLength)
        return { path, size }
      },
    },
    github: {
      async bootstrap(_, id, input) {
        known(id)
        note('bootstrap', input)
        return {
          workflow_path: 'w.yml',
          workflow_commit_sha: 'c',
          secret_name: 'ORB_API_KEY',
          api_key_id: 'k9',
          first_build_id: 'build_1',
        }
      },
      async disconnect(_, id, pat) {
        known(id)
        note('disconnect', pat)
        return { disconnected: true, workflow_deleted: true, secret_deleted: false }
      },
    },
    usage: {
      read(_, query) {
        note('usage', query)
        if (query.computer !== undefined) known(query.computer)
        return {
          period_start: TIME,
          period_end: TIME,
          runtime_gb_hours: 0.4,
          disk_gb_hours: 2,
          checkpoint_cycles: 1,
          computers_created: 1,
          computers_destroyed: 0,
        }
      },
      stats(_, id, window) {
        known(id)
        note('stats', window)
        return {
          computer_id: COMPUTER_ID,
          window,
          period_start: TIME,
          period_end: TIME,
          wall_secs: 10,
          active_secs: 1,
          sleep_secs: 9,
          sleep_pct: 90,
          active_pct: 10,
          llm_calls: 1,
          checkpoints: 1,
          ckpt_full: 1,
          ckpt_incremental: 0,
          failures: 0,
          runtime_gb_hours: 0.4,
          disk_gb_hours: 2,
          est_cost_usd: 0.1,
          last_active_ago_secs: null,
          avg_restore_ms: null,
        }
      },
    },
    webhooks: {
      create(_, { secret = 'made-by-the-server', ...input }) {
        note('createWebhook', input)
        if (input.url.includes('private'))
          throw new OrbError('invalid_request', 'url must not lead to a private address')
        return { id: 'whk_1', ...input, secret, active: true, created_at: TIME }
      },
      list: () => ({ webhooks: [webhook], total: 1 }),
      remove(_, id) {
        if (id !== webhook.id) throw new OrbError('not_found', 'no such webhook')
        return { id, deleted: true }
      },
      deliveries(_, id, limit) {
        note('deliveries', limit)
        if (id !== webhook.id) throw new OrbError('not_found', 'no such webhook')
        return { webhook_id: id, deliveries: [] }
      },
    },
    system: {
      health: () => ({ httpStatus: 200, body: { status: 'healthy' } }),
      metrics: () => 'orb_build_info 1\n',
    },
  }
}

const logLine = (line: string): LogLine => ({ ts: TIME, stream: 'stdout', line })
