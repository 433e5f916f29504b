import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { SignJWT, UnsecuredJWT } from 'jose'
import { openStore, type Store } from '../store/store.ts'
import { type Accounts, createAccounts } from './accounts.ts'

const SECRET = new Uint8Array(32).fill(7)
const START = Date.UTC(2026, 3, 19, 4, 5)
const HOUR_MS = 3_600_000

let dir: string
let store: Store
let accounts: Accounts
let clock: number
let revoked: string[]

beforeEach(() => {
  clock = START
  dir = mkdtempSync(join(tmpdir(), 'orb-accounts-'))
  store = openStore(join(dir, 'orb.db'))
  revoked = []
  accounts = createAccounts({
    store,
    jwtSecret: SECRET,
    registration: 'open',
    now: () => clock,
    onRevoked: (keyId) => void revoked.push(keyId),
  })
})
afterEach(() => {
  store.close()
  rmSync(dir, { recursive: true })
})

const UNAUTHORIZED = expect.objectContaining({ code: 'unauthorized' })

describe('register', () => {
  test('gives a key that works and is nowhere stored', async () => {
    const made = await accounts.register('You@Example.COM')
    expect(made.api_key).toMatch(/^orb_[0-9A-Za-z]{43}$/)
    expect(made).toMatchObject({ email: 'you@example.com', org_id: made.tenant_id })
    expect(await accounts.authenticate(made.api_key)).toEqual({
      orgId: made.org_id,
      keyId: made.key_id,
      scope: 'full',
      role: 'admin',
    })
    const [row] = store.keys.list(made.org_id)
    expect(row?.prefix).toBe(made.api_key.slice(0, 12))
    expect(Buffer.from(row?.hash ?? []).toString('latin1')).not.toContain(made.api_key.slice(12))
    expect(row?.hash.length).toBe(32)
  })

  const bad = ['', 'a', 'no-at', 'a@', '@b', 'a@b@c', 'a b@c', 'a@b\n', `${'x'.repeat(250)}@b.cd`]
  test.each(bad)('refuses %j', async (email) => {
    await expect(accounts.register(email)).rejects.toMatchObject({ code: 'invalid_request' })
    expect(store.orgs.byEmail(email)).toBeNull()
  })

  test('takes an email once, whatever its case', async () => {
    await accounts.register('a@b')
    await expect(accounts.register('A@B')).rejects.toMatchObject({ code: 'email_taken' })
  })

  test('can be closed', async () => {
    const closed = createAccounts({ store, jwtSecret: SECRET, registration: 'closed' })
    await expect(closed.register('a@b')).rejects.toMatchObject({ code: 'registration_closed' })
  })
})

describe('credentials', () => {
  test.each(['', 'x', 'orb_', `orb_${'A'.repeat(43)}`, 'a.b.c', "orb_' OR 1=1 --"])(
    '%j is refused',
    async (credential) => {
      await expect(accounts.authenticate(credential)).rejects.toEqual(UNAUTHORIZED)
    },
  )

  test('a token works as its key does, for 24 hours', async () => {
    const { api_key, key_id } = await accounts.register('a@b')
    const { token, expires_in } = await accounts.login(api_key)
    expect(expires_in).toBe(86_400)
    clock += 24 * HOUR_MS - 1000
    expect(await accounts.authenticate(token)).toMatchObject({ keyId: key_id, role: 'admin' })
    clock += 2000
    await expect(accounts.authenticate(token)).rejects.toEqual(UNAUTHORIZED)
  })

  test('a revoked key and its tokens are dead at once, others live', async () => {
    const first = await accounts.register('a@b')
    const who = await accounts.authenticate(first.api_key)
    const second = await accounts.createKey(who, 'second')
    const { token } = await accounts.login(second.api_key)
    expect(accounts.revokeKey(who, second.key_id)).toEqual({ key_id: second.key_id, revoked: true })
    await expect(accounts.authenticate(second.api_key)).rejects.toEqual(UNAUTHORIZED)
    await expect(accounts.authenticate(token)).rejects.toEqual(UNAUTHORIZED)
    await expect(accounts.login(second.api_key)).rejects.toEqual(UNAUTHORIZED)
    expect(await accounts.authenticate(first.api_key)).toEqual(who)
    expect(() => accounts.revokeKey(who, second.key_id)).toThrow('no such key')
    expect(revoked).toEqual([second.key_id])
  })

  test('forged tokens are refused', async () => {
    const { api_key, key_id } = await accounts.register('a@b')
    const claims = () =>
      new SignJWT({})
        .setSubject(key_id)
        .setIssuer('orb')
        .setExpirationTime(START / 1000 + 60)
    const forged = [
      await claims().setProtectedHeader({ alg: 'HS256' }).sign(new Uint8Array(32)),
      await claims().setProtectedHeader({ alg: 'HS512' }).sign(new Uint8Array(64).fill(7)),
      await new SignJWT({}).setSubject(key_id).setIssuer('orb').setProtectedHeader({ alg: 'HS256' }).sign(SECRET),
      await claims().setIssuer('else').setProtectedHeader({ alg: 'HS256' }).sign(SECRET),
      new UnsecuredJWT({})
        .setSubject(key_id)
        .setIssuer('orb')
        .setExpirationTime(START / 1000 + 60)
        .encode(),
    ]
    for (const token of forged) await expect(accounts.authenticate(token)).rejects.toEqual(UNAUTHORIZED)
    expect(await accounts.authenticate((await accounts.login(api_key)).token)).toMatchObject({ keyId: key_id })
  })
})

describe('keys', () => {
  test('are listed without the key, with when they were last used', async () => {
    const { api_key, org_id } = await accounts.register('a@b')
    const who = await accounts.authenticate(api_key)
    clock += 30_000
    await accounts.authenticate(api_key)
    expect(accounts.listKeys(who)).toEqual({
      keys: [
        {
          key_id: who.keyId,
          name: 'default',
          prefix: api_key.slice(0, 12),
          scope: 'full',
          created_at: '2026-04-19T04:05:00Z',
          last_used_at: '2026-04-19T04:05:00Z',
        },
      ],
      total: 1,
    })
    clock += 31_000
    await accounts.authenticate(api_key)
    expect(store.keys.list(org_id)[0]?.lastUsedAt).toBe(START + 61_000)
  })

  test('of another organisation do not exist', async () => {
    const mine = await accounts.authenticate((await accounts.register('a@b')).api_key)
    const other = await accounts.authenticate((await accounts.register('c@d')).api_key)
    expect(() => accounts.revokeKey(mine, other.keyId)).toThrow('no such key')
    expect(accounts.listKeys(mine).keys.map((key) => key.key_id)).toEqual([mine.keyId])
  })

  test('number at most 100, and inherit the role of who makes them', async () => {
    const { api_key, org_id } = await accounts.register('a@b')
    const who = await accounts.authenticate(api_key)
    const { api_key: second } = await accounts.createKey({ ...who, role: 'operator' }, 'ops')
    expect(await accounts.authenticate(second)).toMatchObject({ role: 'operator' })
    for (let n = 2; n < 100; n++) await accounts.createKey(who, `key ${n}`)
    await expect(accounts.createKey(who, 'one more')).rejects.toMatchObject({ code: 'quota_exceeded' })
    expect(store.keys.list(org_id).length).toBe(100)
    expect(await accounts.authenticate(accounts.createKeyFor('A@B', 'recovery'))).toMatchObject({ orgId: org_id })
  })

  test('that are drafts are worth nothing until they are stored, and count then', async () => {
    const who = await accounts.authenticate((await accounts.register('a@b')).api_key)
    const draft = accounts.draftKey(who, 'github o/r', 'deploy:c1')
    await expect(accounts.authenticate(draft.key)).rejects.toEqual(UNAUTHORIZED)
    expect(accounts.listKeys(who).total).toBe(1)
    draft.store()
    expect(await accounts.authenticate(draft.key)).toEqual({ ...who, keyId: draft.id, scope: 'deploy:c1' })
    const { token } = await accounts.login(draft.key)
    expect(await accounts.authenticate(token)).toMatchObject({ scope: 'deploy:c1' })
    for (let n = 2; n < 100; n++) await accounts.createKey(who, `key ${n}`)
    expect(() => accounts.draftKey(who, 'one more', 'deploy:c1')).toThrow('at most 100 keys')
  })

  test('no way back into an account that does not exist', () => {
    expect(() => accounts.createKeyFor('no@body', 'x')).toThrow('no account')
  })
})
