import { Database } from 'bun:sqlite'
import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { RUNS_KEPT } from './cron.ts'
import { migrate } from './migrations.ts'
import { openStore, type Store } from './store.ts'
import type { AgentRow, BuildRow, ComputerRow, CronRunRow, KeyRow, LlmCallRow, SwarmRow } from './types.ts'

let dir: string
let store: Store

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'orb-store-'))
  store = openStore(join(dir, 'orb.db'))
  store.orgs.insert({ id: 'org-a', email: 'a@example.com', createdAt: 1 })
  store.orgs.insert({ id: 'org-b', email: 'b@example.com', createdAt: 2 })
})

afterEach(() => {
  store.close()
  rmSync(dir, { recursive: true })
})

const computer = (id: string, more: Partial<ComputerRow> = {}): Omit<ComputerRow, 'slot'> => ({
  id,
  shortId: id.slice(0, 8),
  orgId: 'org-a',
  name: 'c',
  runtimeMb: 512,
  diskMb: 1024,
  userId: null,
  swarmId: null,
  replicaIndex: null,
  base: 'host',
  createdAt: 10,
  updatedAt: 10,
  ...more,
})

const agent = (computerId: string): AgentRow => ({
  computerId,
  phase: 'running',
  generation: 1,
  pid: 4211,
  image: null,
  imageBytes: null,
  startedAt: 5,
  exitCode: null,
  stderrTail: null,
  failureReason: null,
  failureMessage: null,
  sleepReason: null,
  codeVersion: null,
  llmOutstanding: true,
  lastWakeMs: null,
})

const build = (n: number, status: BuildRow['status']): BuildRow => ({
  id: `build_${n}`,
  computerId: 'aaaaaaaa-1',
  status,
  result: '{}',
  fingerprint: `f${n}`,
  createdAt: n,
  startedAt: null,
  finishedAt: null,
})

describe('database', () => {
  test('checks foreign keys and can be written', () => {
    expect(() => store.computers.insert(computer('aaaaaaaa-1', { orgId: 'nobody' }))).toThrow('FOREIGN KEY')
    expect(() => store.probe()).not.toThrow()
  })

  test('keeps its content over a restart and lets a second process in', () => {
    const second = openStore(join(dir, 'orb.db'))
    second.orgs.insert({ id: 'org-c', email: 'c@example.com', createdAt: 3 })
    second.close()
    expect(store.orgs.byEmail('c@example.com')?.id).toBe('org-c')
  })

  test('of a newer orb is refused', () => {
    const path = join(dir, 'newer.db')
    const db = new Database(path)
    db.run('PRAGMA user_version = 99')
    db.close()
    expect(() => openStore(path)).toThrow('the database has version 99')
  })

  test('a migration that fails leaves the version before', () => {
    const db = new Database(':memory:')
    expect(() => migrate(db, ['CREATE TABLE t (x INTEGER) STRICT', 'CREATE NONSENSE'])).toThrow()
    expect(db.query('SELECT name FROM sqlite_master').all()).toEqual([])
    expect(db.query('PRAGMA user_version').get()).toEqual({ user_version: 0 })
    migrate(db, ['CREATE TABLE t (x INTEGER) STRICT'])
    migrate(db, ['CREATE TABLE t (x INTEGER) STRICT', 'CREATE TABLE u (x INTEGER) STRICT'])
    expect(db.query('SELECT name FROM sqlite_master ORDER BY name').all()).toEqual([{ name: 't' }, { name: 'u' }])
  })

  test('a transaction that throws leaves nothing', () => {
    expect(() =>
      store.transaction(() => {
        store.computers.insert(computer('aaaaaaaa-1'))
        throw new Error('no')
      }),
    ).toThrow('no')
    expect(store.computers.all()).toEqual([])
  })
})

describe('keys', () => {
  const key = (id: string, orgId: string): KeyRow => ({
    id,
    orgId,
    name: id,
    prefix: 'orb_12345678',
    hash: new Bun.CryptoHasher('sha256').update(id).digest(),
    scope: 'full',
    role: 'admin',
    createdAt: 1,
    lastUsedAt: null,
  })

  test('are found by hash, listed per organisation, removed by their own organisation only', () => {
    store.keys.insert(key('k1', 'org-a'))
    store.keys.insert(key('k2', 'org-b'))
    const found = store.keys.byHash(key('k1', 'org-a').hash)
    expect(found).toEqual(key('k1', 'org-a'))
    expect(store.keys.list('org-a').map((row) => row.id)).toEqual(['k1'])
    expect(store.keys.remove('org-b', 'k1')).toBe(false)
    expect(store.keys.remove('org-a', 'k1')).toBe(true)
    expect(store.keys.byHash(key('k1', 'org-a').hash)).toBeNull()
  })

  test('an email belongs to one organisation', () => {
    expect(() => store.orgs.insert({ id: 'org-c', email: 'a@example.com', createdAt: 1 })).toThrow('UNIQUE')
  })
})

describe('computers', () => {
  test('take the lowest free slot', () => {
    const slots = ['aaaaaaaa-1', 'bbbbbbbb-1', 'cccccccc-1'].map((id) => store.computers.insert(computer(id)).slot)
    expect(slots).toEqual([1, 2, 3])
    store.computers.remove('bbbbbbbb-1')
    expect(store.computers.insert(computer('dddddddd-1')).slot).toBe(2)
    store.computers.remove('aaaaaaaa-1')
    expect(store.computers.insert(computer('eeeeeeee-1')).slot).toBe(1)
    expect(store.computers.insert(computer('ffffffff-1')).slot).toBe(4)
  })

  test('are found by id and short id, counted and listed per organisation, oldest first', () => {
    store.computers.insert(computer('aaaaaaaa-1', { createdAt: 20 }))
    store.computers.insert(computer('bbbbbbbb-1', { createdAt: 10 }))
    store.computers.insert(computer('cccccccc-1', { orgId: 'org-b' }))
    expect(store.computers.get('aaaaaaaa')).toEqual({ ...computer('aaaaaaaa-1', { createdAt: 20 }), slot: 1 })
    expect(store.computers.get('aaaaaaaa-1')?.shortId).toBe('aaaaaaaa')
    expect(store.computers.get('aaaa')).toBeNull()
    expect(store.computers.list('org-a').map((row) => row.id)).toEqual(['bbbbbbbb-1', 'aaaaaaaa-1'])
    expect(store.computers.count('org-b')).toBe(1)
    expect(store.computers.total()).toBe(3)
  })

  test('a short id that is taken is refused', () => {
    store.computers.insert(computer('aaaaaaaa-1'))
    expect(() => store.computers.insert(computer('aaaaaaaa-2'))).toThrow('UNIQUE')
  })

  test('remove takes everything along', () => {
    store.computers.insert(computer('aaaaaaaa-1'))
    store.ports.reserve('aaaaaaaa-1', [8000])
    store.configs.put({
      computerId: 'aaaaaaaa-1',
      kind: 'stored',
      json: '{}',
      toml: null,
      source: 'inline',
      updatedAt: 1,
    })
    store.secrets.put([{ computerId: 'aaaaaaaa-1', name: 'A', sealed: new Uint8Array([1]) }])
    store.builds.put(build(1, 'success'))
    store.agents.put(agent('aaaaaaaa-1'))
    const key = { orgId: 'org-a', prefix: 'p', role: 'admin', createdAt: 1, lastUsedAt: null } as const
    for (const [id, scope] of [
      ['k1', 'deploy:aaaaaaaa-1'],
      ['k2', 'deploy:aaaaaaaa-2'],
      ['k3', 'full'],
    ] as const)
      store.keys.insert({ ...key, id, name: id, scope, hash: new TextEncoder().encode(id) })
    const deploys = { computerId: 'aaaaaaaa-1', owner: 'o', repository: 'r', branch: 'main', madeKeyId: 'k1' }
    store.githubDeploys.put(deploys)
    expect(store.githubDeploys.get('aaaaaaaa-1')).toEqual(deploys)
    expect(store.computers.remove('aaaaaaaa-1')).toBe(true)
    expect(store.githubDeploys.get('aaaaaaaa-1')).toBeNull()
    expect(store.keys.list('org-a').map(({ id }) => id)).toEqual(['k2', 'k3'])
    expect(store.computers.remove('aaaaaaaa-1')).toBe(false)
    expect(store.ports.list('aaaaaaaa-1')).toEqual([])
    expect(store.configs.get('aaaaaaaa-1', 'stored')).toBeNull()
    expect(store.secrets.list('aaaaaaaa-1')).toEqual([])
    expect(store.builds.list('aaaaaaaa-1')).toEqual([])
    expect(store.agents.get('aaaaaaaa-1')).toBeNull()
  })

  test('host ports start at 40000, stay with their port and are unique', () => {
    store.computers.insert(computer('aaaaaaaa-1'))
    store.computers.insert(computer('bbbbbbbb-1'))
    const reserve = (id: string, ports: number[]) =>
      store.ports.reserve(id, ports).map((row) => [row.containerPort, row.hostPort])
    expect(reserve('aaaaaaaa-1', [8000, 9000])).toEqual([
      [8000, 40000],
      [9000, 40001],
    ])
    expect(reserve('bbbbbbbb-1', [8000])).toEqual([[8000, 40002]])
    expect(reserve('aaaaaaaa-1', [7000, 9000])).toEqual([
      [7000, 40000],
      [9000, 40001],
    ])
    store.computers.insert(computer('cccccccc-1', { orgId: 'org-b' }))
    reserve('cccccccc-1', [8000])
    expect(store.ports.ofOrg('org-a').map((row) => [row.computerId, row.containerPort])).toEqual([
      ['aaaaaaaa-1', 7000],
      ['aaaaaaaa-1', 9000],
      ['bbbbbbbb-1', 8000],
    ])
    store.computers.remove('cccccccc-1')
    expect(reserve('aaaaaaaa-1', [9000])).toEqual([[9000, 40001]])
    expect(reserve('bbbbbbbb-1', [8000, 8001])).toEqual([
      [8000, 40002],
      [8001, 40000],
    ])
  })
})

describe('configs and secrets', () => {
  beforeEach(() => void store.computers.insert(computer('aaaaaaaa-1')))

  test('stored and deployed config are separate, each replaced whole', () => {
    const row = { computerId: 'aaaaaaaa-1', json: '{"a":1}', toml: 'a=1', source: 'uploaded', updatedAt: 1 } as const
    store.configs.put({ ...row, kind: 'stored' })
    expect(store.configs.get('aaaaaaaa-1', 'deployed')).toBeNull()
    store.configs.put({ ...row, kind: 'stored', toml: null, source: 'inline', updatedAt: 2 })
    expect(store.configs.get('aaaaaaaa-1', 'stored')).toEqual({
      ...row,
      kind: 'stored',
      toml: null,
      source: 'inline',
      updatedAt: 2,
    })
  })

  test('a config that was read is read no more until it is replaced; what was rolled back was never there', () => {
    const row = { computerId: 'aaaaaaaa-1', kind: 'stored', toml: null, source: 'inline', updatedAt: 1 } as const
    const json = () => store.configs.get('aaaaaaaa-1', 'stored')?.json
    store.configs.put({ ...row, json: '1' })
    expect(store.configs.get('aaaaaaaa-1', 'stored')).toBe(store.configs.get('aaaaaaaa-1', 'stored'))
    const replaceInVain = () =>
      store.transaction(() => {
        store.configs.put({ ...row, json: '2' })
        expect(json()).toBe('2')
        throw new Error('in vain')
      })
    expect(replaceInVain).toThrow('in vain')
    expect(json()).toBe('1')
    store.configs.put({ ...row, json: '3' })
    expect(json()).toBe('3')
    store.computers.remove('aaaaaaaa-1')
    store.configs.forget('aaaaaaaa-1')
    expect(json()).toBeUndefined()
  })

  test('only the secrets that are put change', () => {
    const secret = (name: string, byte: number) => ({ computerId: 'aaaaaaaa-1', name, sealed: new Uint8Array([byte]) })
    store.secrets.put([secret('A', 1), secret('B', 2)])
    store.secrets.put([secret('B', 3)])
    expect(store.secrets.list('aaaaaaaa-1')).toEqual([secret('A', 1), secret('B', 3)])
  })
})

describe('builds', () => {
  beforeEach(() => void store.computers.insert(computer('aaaaaaaa-1')))

  test('the last 50 stay, newest first, and the last success', () => {
    store.builds.put(build(0, 'success'))
    for (let n = 1; n <= 60; n++) store.builds.put(build(n, 'failure'))
    const listed = store.builds.list('aaaaaaaa-1').map((row) => row.id)
    expect(listed.length).toBe(50)
    expect(listed[0]).toBe('build_60')
    expect(store.builds.get('aaaaaaaa-1', 'build_5')).toBeNull()
    expect(store.builds.lastSuccess('aaaaaaaa-1')?.fingerprint).toBe('f0')
    expect(store.builds.get('bbbbbbbb-1', 'build_60')).toBeNull()
  })

  test('a build is updated in place; those cut off are found', () => {
    store.builds.put(build(1, 'queued'))
    store.builds.put(build(2, 'running'))
    store.builds.put({ ...build(1, 'success'), finishedAt: 9 })
    expect(store.builds.get('aaaaaaaa-1', 'build_1')).toEqual({ ...build(1, 'success'), finishedAt: 9 })
    expect(store.builds.unfinished().map((row) => row.id)).toEqual(['build_2'])
  })
})

describe('agents', () => {
  beforeEach(() => void store.computers.insert(computer('aaaaaaaa-1')))

  test('an update needs the generation that its caller holds', () => {
    store.agents.put(agent('aaaaaaaa-1'))
    expect(store.agents.update('aaaaaaaa-1', 1, { phase: 'checkpointing', generation: 2 })).toBe(true)
    expect(store.agents.update('aaaaaaaa-1', 1, { phase: 'failed' })).toBe(false)
    expect(store.agents.update('aaaaaaaa-1', 2, { phase: 'checkpointed', pid: null, llmOutstanding: false })).toBe(true)
    expect(store.agents.get('aaaaaaaa-1')).toEqual({
      ...agent('aaaaaaaa-1'),
      phase: 'checkpointed',
      generation: 2,
      pid: null,
      llmOutstanding: false,
    })
    expect(store.agents.update('aaaaaaaa-1', 2, {})).toBe(true)
    expect(store.agents.update('bbbbbbbb-1', 1, { phase: 'failed' })).toBe(false)
  })

  test('an update that need only survive a crash is seen by the next process, too', () => {
    store.agents.put(agent('aaaaaaaa-1'))
    expect(store.agents.update('aaaaaaaa-1', 1, { phase: 'restoring', generation: 2 }, 'crash')).toBe(true)
    expect(store.agents.update('aaaaaaaa-1', 1, { phase: 'failed' }, 'crash')).toBe(false)
    const next = openStore(join(dir, 'orb.db'))
    expect(next.agents.get('aaaaaaaa-1')).toEqual({ ...agent('aaaaaaaa-1'), phase: 'restoring', generation: 2 })
    next.close()
  })

  test('put replaces, remove says whether there was one', () => {
    store.agents.put(agent('aaaaaaaa-1'))
    store.agents.put({ ...agent('aaaaaaaa-1'), generation: 7 })
    expect(store.agents.all().map((row) => row.generation)).toEqual([7])
    expect(store.agents.remove('aaaaaaaa-1')).toBe(true)
    expect(store.agents.remove('aaaaaaaa-1')).toBe(false)
  })
})

describe('swarms', () => {
  const swarm = (id: string, more: Partial<SwarmRow> = {}): SwarmRow => ({
    id,
    orgId: 'org-a',
    name: id,
    replicas: 2,
    made: false,
    createdAt: 1,
    ...more,
  })

  test('are found by id and, in their organisation, by name, which is unique there', () => {
    store.swarms.insert(swarm('one'))
    store.swarms.insert(swarm('two', { name: 'same', made: true }))
    store.swarms.insert(swarm('three', { orgId: 'org-b', name: 'same' }))
    expect(() => store.swarms.insert(swarm('four', { name: 'same' }))).toThrow('UNIQUE')
    expect(store.swarms.get('two')).toEqual(swarm('two', { name: 'same', made: true }))
    expect(store.swarms.byName('org-b', 'same')?.id).toBe('three')
    expect(store.swarms.byName('org-b', 'one')).toBeNull()
    expect(store.swarms.list('org-a').map(({ id }) => id)).toEqual(['one', 'two'])
    expect(store.swarms.unmade().map(({ id }) => id)).toEqual(['one', 'three'])
    store.swarms.setMade('one')
    store.swarms.remove('three')
    expect(store.swarms.unmade()).toEqual([])
  })

  test('members by replica; a failure goes with its computer or when it is forgiven', () => {
    store.swarms.insert(swarm('one'))
    const member = (id: string, replicaIndex: number) =>
      store.computers.insert(computer(id, { swarmId: 'one', replicaIndex }))
    const [second, first] = [member('22222222-x', 1), member('11111111-x', 0)]
    store.computers.insert(computer('33333333-x'))
    expect(store.computers.ofSwarm('one')).toEqual([first, second])
    for (const { id } of [first, second]) {
      store.swarms.fail({ computerId: id, error: 'build_failed', message: 'first' })
      store.swarms.fail({ computerId: id, error: 'deploy_failed', message: 'why' })
    }
    expect(store.swarms.failure(first.id)).toEqual({ computerId: first.id, error: 'deploy_failed', message: 'why' })
    expect(store.swarms.failedOf('org-a')).toEqual(new Set([first.id, second.id]))
    expect(store.swarms.failedOf('org-b')).toEqual(new Set())
    store.swarms.forgive(first)
    store.computers.remove(second.id)
    expect(store.swarms.failedOf('org-a')).toEqual(new Set())
  })

  test('what computers stand on, each once', () => {
    store.computers.insert(computer('11111111-x'))
    store.computers.insert(computer('22222222-x'))
    store.computers.insert(computer('33333333-x'))
    store.computers.setBase('22222222-x', 'host+layer-1')
    expect(store.computers.bases().sort()).toEqual(['host', 'host+layer-1'])
    expect(store.computers.get('22222222')?.base).toBe('host+layer-1')
  })
})

describe('LLM calls', () => {
  const call = (id: number, computerId = 'aaaaaaaa-1'): LlmCallRow => ({
    id,
    computerId,
    state: 'sent',
    resent: false,
    sentAt: 5,
    expiresAt: null,
    answerHead: null,
    answerBytes: null,
    answerHash: null,
    request: new Uint8Array([1, 2]),
    bodyBytes: 1,
    bodyBlocks: null,
    body: new Uint8Array([3]),
  })
  const answer = { expiresAt: 9, answerHead: new Uint8Array([4]), answerBytes: 7, answerHash: 'ab' }

  beforeEach(() => {
    store.computers.insert(computer('aaaaaaaa-1'))
    store.computers.insert(computer('bbbbbbbb-1'))
  })

  test('come back as they were put, until they are removed', () => {
    store.llmCalls.insert(call(2))
    store.llmCalls.insert({ ...call(1, 'bbbbbbbb-1'), bodyBlocks: '[7]', body: null })
    store.llmCalls.setAnswer(2, { ...answer, state: 'complete' })
    store.llmCalls.markResent([1])
    expect(store.llmCalls.all()).toEqual([
      { ...call(1, 'bbbbbbbb-1'), bodyBlocks: '[7]', body: null, resent: true },
      { ...call(2), ...answer, state: 'complete' },
    ])
    store.llmCalls.remove(2)
    expect(store.llmCalls.all().map(({ id }) => id)).toEqual([1])
  })

  test('are seen by the next one who opens the database without a close before', () => {
    store.llmCalls.insert(call(1))
    const next = openStore(join(dir, 'orb.db'))
    expect(next.llmCalls.all()).toEqual([call(1)])
    next.close()
  })

  test('go with their computer, and there is none without one', () => {
    store.llmCalls.insert(call(1))
    store.llmCalls.insert(call(2, 'bbbbbbbb-1'))
    store.computers.remove('aaaaaaaa-1')
    expect(store.llmCalls.all().map(({ id }) => id)).toEqual([2])
    expect(() => store.llmCalls.insert(call(3))).toThrow()
  })
})

describe('cron', () => {
  const run = (n: number, more: Partial<CronRunRow> = {}): CronRunRow => ({
    id: `run_${n}`,
    computerId: 'aaaaaaaa-1',
    jobName: 'a',
    firedAt: n,
    startedAt: n,
    finishedAt: n,
    status: 'success',
    exitCode: 0,
    durationMs: 1,
    stdout: null,
    stderr: null,
    error: null,
    ...more,
  })
  const jobs = (...names: string[]) => names.map((name) => ({ name, spec: `{"name":"${name}"}` }))

  beforeEach(() => {
    store.computers.insert(computer('aaaaaaaa-1'))
    store.computers.insert(computer('bbbbbbbb-1'))
  })

  test('jobs are replaced, in the order of the file, and those that stay have their last run', () => {
    store.cron.put('aaaaaaaa-1', { jobs: jobs('a', 'b'), error: null })
    store.cron.put('bbbbbbbb-1', { jobs: jobs('a'), error: 'jobs[1] is bad' })
    store.cron.add([run(5), run(3), run(9, { jobName: 'b' })])
    const after = store.cron.put('aaaaaaaa-1', { jobs: jobs('c', 'a'), error: 'x' })
    expect(after.map(({ name, lastFiredAt }) => [name, lastFiredAt])).toEqual([
      ['c', null],
      ['a', 5],
    ])
    expect(store.cron.jobs().map(({ computerId, name }) => `${computerId} ${name}`)).toEqual([
      'aaaaaaaa-1 c',
      'aaaaaaaa-1 a',
      'bbbbbbbb-1 a',
    ])
    store.cron.put('aaaaaaaa-1', { jobs: [], error: null })
    expect(store.cron.errors()).toEqual([{ computerId: 'bbbbbbbb-1', error: 'jobs[1] is bad' }])
  })

  test('of finished runs the last 1000 of a computer are kept, unfinished ones all', () => {
    store.cron.add([run(1, { finishedAt: null, status: 'running' }), run(2)])
    store.cron.add([run(0, { id: 'other', computerId: 'bbbbbbbb-1' })])
    store.cron.add(Array.from({ length: RUNS_KEPT }, (_, n) => run(n + 3)))
    const kept = store.cron.runs('aaaaaaaa-1', null, 2 * RUNS_KEPT).map(({ firedAt }) => firedAt)
    expect(kept).toHaveLength(RUNS_KEPT + 1)
    expect([kept[0], kept.at(-2), kept.at(-1)]).toEqual([RUNS_KEPT + 2, 3, 1])
    expect(store.cron.unfinished().map(({ id }) => id)).toEqual(['run_1'])
    expect(store.cron.runs('bbbbbbbb-1', null, 10)).toHaveLength(1)
  })

  test('runs are listed newest first, of one job too, and come back as they ended', () => {
    store.cron.add([run(1), run(2, { jobName: 'b' }), run(3, { finishedAt: null, startedAt: null, status: 'running' })])
    const ended = run(3, {
      status: 'failure',
      exitCode: 1,
      stdout: 'a\0b \u{1f600}',
      stderr: 'e',
      finishedAt: 9,
      error: 'x',
    })
    store.cron.start('run_3', 3)
    store.cron.finish(ended)
    expect(store.cron.runs('aaaaaaaa-1', null, 2).map(({ id }) => id)).toEqual(['run_3', 'run_2'])
    expect(store.cron.runs('aaaaaaaa-1', 'a', 10)).toEqual([ended, run(1)])
    expect(store.cron.runs('aaaaaaaa-1', 'c', 10)).toEqual([])
  })

  test('goes with its computer', () => {
    store.cron.put('aaaaaaaa-1', { jobs: jobs('a'), error: 'x' })
    store.cron.add([run(1, { finishedAt: null, status: 'running' })])
    store.computers.remove('aaaaaaaa-1')
    expect([store.cron.jobs(), store.cron.errors(), store.cron.unfinished()]).toEqual([[], [], []])
    store.cron.finish(run(1))
    expect(store.cron.runs('aaaaaaaa-1', null, 1)).toEqual([])
  })
})
