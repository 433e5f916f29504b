import { Database } from 'bun:sqlite'
import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openStore, type Store } from '../../store/store.ts'
import type { ComputerRow } from '../../store/types.ts'
import { createOrbMetrics } from '../system.ts'
import type { Principal } from '../types.ts'
import { openVault } from '../vault.ts'
import { computerNews } from './outbox.ts'
import { createWebhooks, type Webhooks } from './webhooks.ts'

const NOW = Date.UTC(2026, 3, 19, 4, 5)
const URL = 'https://hooks.invalid/x'
const SECRET = 'a secret of some length'

let dir: string
let store: Store
let webhooks: Webhooks

const open = (): Webhooks =>
  createWebhooks({ store, vault: openVault(dir), metrics: createOrbMetrics(), allowPrivate: [], now: () => NOW })

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'orb-webhooks-'))
  store = openStore(join(dir, 'orb.db'))
  for (const id of ['org-a', 'org-b']) store.orgs.insert({ id, email: `${id}@example.com`, createdAt: 1 })
  webhooks = open()
})
afterEach(async () => {
  await webhooks.stop()
  store.close()
  rmSync(dir, { recursive: true })
})

const who = (orgId: string): Principal => ({ orgId, keyId: 'k', scope: 'full', role: 'admin' })
const A = who('org-a')
const B = who('org-b')

const computer = (more: Partial<ComputerRow> = {}): ComputerRow => ({
  id: 'computer-1',
  shortId: 'computer',
  orgId: 'org-a',
  name: 'c',
  runtimeMb: 512,
  diskMb: 1024,
  userId: null,
  swarmId: null,
  replicaIndex: null,
  slot: 1,
  base: 'host',
  createdAt: 10,
  updatedAt: 10,
  ...more,
})

const bodies = (id: string) => store.webhooks.deliveries(id, 100).map(({ body }) => JSON.parse(body))

describe('a webhook', () => {
  test('is made, listed and deleted; its secret is shown once and stored sealed', () => {
    const made = webhooks.create(A, { url: URL, events: ['agent.spawned', 'agent.spawned', '*'], secret: SECRET })
    const shown = { url: URL, events: ['agent.spawned', '*'], active: true, created_at: '2026-04-19T04:05:00Z' }
    expect(made).toEqual({ id: expect.stringMatching(/^whk_[a-z0-9]{16}$/), ...shown, secret: SECRET })
    expect(webhooks.list(A)).toEqual({ webhooks: [{ id: made.id, ...shown, disabled_reason: null }], total: 1 })
    const files = ['orb.db', 'orb.db-wal'].map((name) => readFileSync(join(dir, name), 'latin1')).join('')
    expect(files).toContain(URL)
    expect(files).not.toContain(SECRET)
    expect(webhooks.remove(A, made.id)).toEqual({ id: made.id, deleted: true })
    expect(webhooks.list(A).total).toBe(0)
    expect(() => webhooks.remove(A, made.id)).toThrow('no such webhook')
  })

  test('without a secret gets one of its own', () => {
    const [one, two] = [1, 2].map(() => webhooks.create(A, { url: URL, events: ['*'] }).secret)
    expect(one).toMatch(/^whsec_[\w-]{43}$/)
    expect(two).not.toBe(one)
  })

  test('of another organisation is unknown', () => {
    const { id } = webhooks.create(A, { url: URL, events: ['*'] })
    expect(webhooks.list(B).total).toBe(0)
    expect(() => webhooks.remove(B, id)).toThrow('no such webhook')
    expect(() => webhooks.deliveries(B, id, 10)).toThrow('no such webhook')
    expect(webhooks.deliveries(A, id, 10)).toEqual({ webhook_id: id, deliveries: [] })
  })

  test('to a private address is refused', () => {
    expect(() => webhooks.create(A, { url: 'https://10.0.0.1', events: ['*'] })).toThrow('private address')
  })

  test('is one of twenty at most', () => {
    for (let n = 0; n < 20; n++) webhooks.create(A, { url: URL, events: ['*'] })
    expect(() => webhooks.create(A, { url: URL, events: ['*'] })).toThrow('at most 20')
    webhooks.create(B, { url: URL, events: ['*'] })
  })
})

describe('an event', () => {
  const tell = (type: 'computer.created' | 'computer.destroyed', of = computer()) =>
    store.transaction(() => webhooks.outbox.tell(of, computerNews(type, of)))

  test('is kept for each webhook that wants it, under one id', () => {
    const all = webhooks.create(A, { url: URL, events: ['*'] }).id
    const some = webhooks.create(A, { url: URL, events: ['computer.created', 'agent.spawned'] }).id
    const none = webhooks.create(A, { url: URL, events: ['agent.spawned'] }).id
    const others = webhooks.create(B, { url: URL, events: ['*'] }).id
    tell('computer.created', computer({ swarmId: 'swm_1' }))
    tell('computer.destroyed')
    const [destroyed, created] = bodies(all)
    expect(created).toEqual({
      id: expect.stringMatching(/^evt_[a-z0-9]{16}$/),
      type: 'computer.created',
      created_at: '2026-04-19T04:05:00Z',
      org_id: 'org-a',
      data: {
        computer_id: 'computer-1',
        computer_name: 'c',
        swarm_id: 'swm_1',
        port: null,
        pid: null,
        runtime_mb: 512,
        disk_mb: 1024,
      },
    })
    expect(destroyed).toMatchObject({ type: 'computer.destroyed', data: { swarm_id: null } })
    expect(bodies(some)).toEqual([created])
    expect([bodies(none), bodies(others)]).toEqual([[], []])
  })

  test('is told only if what it tells of was stored', () => {
    const { id } = webhooks.create(A, { url: URL, events: ['*'] })
    const failing = () =>
      store.transaction(() => {
        webhooks.outbox.tell(computer(), computerNews('computer.created', computer()))
        throw new Error('no')
      })
    expect(failing).toThrow('no')
    expect(bodies(id)).toEqual([])
  })

  test('is told to webhooks that an orb before has made, and to none that is deleted', async () => {
    const [kept, deleted] = [1, 2].map(() => webhooks.create(A, { url: URL, events: ['*'] }).id)
    tell('computer.created')
    await webhooks.stop()
    webhooks = open()
    expect(webhooks.outbox.isWatched('org-a')).toBe(true)
    expect(webhooks.outbox.isWatched('org-b')).toBe(false)
    webhooks.remove(A, deleted ?? '')
    tell('computer.destroyed')
    expect(bodies(kept ?? '').map(({ type }) => type)).toEqual(['computer.destroyed', 'computer.created'])
    const db = new Database(join(dir, 'orb.db'), { readonly: true })
    const left = db.query('SELECT DISTINCT webhook_id AS id FROM webhook_deliveries').all()
    db.close()
    expect(left).toEqual([{ id: kept }])
    webhooks.remove(A, kept ?? '')
    expect(webhooks.outbox.isWatched('org-a')).toBe(false)
  })
})
