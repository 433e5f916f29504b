import { createHash, randomBytes, randomUUID, timingSafeEqual } from 'node:crypto'
import { jwtVerify, SignJWT } from 'jose'
import { OrbError } from '../errors.ts'
import type { Store } from '../store/store.ts'
import type { KeyRole, KeyRow } from '../store/types.ts'
import { isoTime, isoTimeOrNull } from '../time.ts'
import type { Principal, Services } from './types.ts'

/** Life of a login token (Orb Cloud contract §2). */
const TOKEN_SECONDS = 86_400
const TOKEN_ISSUER = 'orb'

const KEY_PREFIX = 'orb_'
const KEY_RANDOM_BYTES = 32
/** Base62 digits that hold 256 bits. */
const KEY_DIGITS = 43
const SHOWN_CHARACTERS = 12
const KEY_PATTERN = /^orb_[0-9A-Za-z]{43}$/
const BASE62 = '0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'

const MAX_KEYS_PER_ORG = 100
const FIRST_KEY_NAME = 'default'

/** A key in use is marked as used no more often than this: a request should not cost a write. */
const LAST_USED_PRECISION_MS = 60_000

/** One `@`, something on both sides, no space or control character; 3 to 254 characters (Orb Cloud contract §2). */
const EMAIL_PATTERN = /^(?=.{3,254}$)[^\s\p{Cc}@]+@[^\s\p{Cc}@]+$/u

export type Accounts = Services['accounts'] & {
  /** A new key for the account of an email, whatever its quota: the way back in. Throws `not_found`. */
  createKeyFor(email: string, name: string): string
  /**
   * A new key of a scope, worth nothing until `store` is called: what fails before leaves none. Throws `quota_exceeded`.
   */
  draftKey(who: Principal, name: string, scope: string): { key: string; id: string; store(): void }
}

export function createAccounts(deps: {
  store: Store
  jwtSecret: Uint8Array
  registration: 'open' | 'closed'
  now?: () => number
  /** A key has just been revoked. */
  onRevoked?: (keyId: string) => void
}): Accounts {
  const { store, jwtSecret } = deps
  const now = deps.now ?? Date.now
  const markedAt = new Map<string, number>()

  function draftKey(orgId: string, name: string, role: KeyRole, scope = 'full'): { key: string; row: KeyRow } {
    const key = newKey()
    const row: KeyRow = {
      id: randomUUID(),
      orgId,
      name,
      prefix: key.slice(0, SHOWN_CHARACTERS),
      hash: sha256(key),
      scope,
      role,
      createdAt: now(),
      lastUsedAt: null,
    }
    return { key, row }
  }

  function addKey(orgId: string, name: string, role: KeyRole): { key: string; row: KeyRow } {
    const made = draftKey(orgId, name, role)
    store.keys.insert(made.row)
    return made
  }

  function checkQuota(orgId: string): void {
    if (store.keys.list(orgId).length < MAX_KEYS_PER_ORG) return
    throw new OrbError('quota_exceeded', `an organisation has at most ${MAX_KEYS_PER_ORG} keys`)
  }

  function findKey(key: string): KeyRow {
    const hash = sha256(key)
    const row = KEY_PATTERN.test(key) ? store.keys.byHash(hash) : null
    if (!row || !timingSafeEqual(row.hash, hash)) throw invalidCredential()
    return row
  }

  async function keyOfToken(token: string): Promise<KeyRow> {
    const claims = await jwtVerify(token, jwtSecret, {
      algorithms: ['HS256'],
      issuer: TOKEN_ISSUER,
      requiredClaims: ['exp', 'sub'],
      currentDate: new Date(now()),
    }).catch(() => {
      throw invalidCredential()
    })
    const row = store.keys.get(claims.payload.sub ?? '')
    if (!row) throw invalidCredential()
    return row
  }

  function markUsed(row: KeyRow): void {
    const at = now()
    if (at - (markedAt.get(row.id) ?? row.lastUsedAt ?? 0) < LAST_USED_PRECISION_MS) return
    markedAt.set(row.id, at)
    store.keys.touch(row.id, at)
  }

  return {
    async register(rawEmail) {
      if (deps.registration === 'closed') {
        throw new OrbError('registration_closed', 'registration is closed on this server')
      }
      const email = rawEmail.toLowerCase()
      if (!EMAIL_PATTERN.test(email)) throw new OrbError('invalid_request', 'email must be an email address')
      const org = { id: randomUUID(), email, createdAt: now() }
      const { key, row } = store.transaction(() => {
        if (store.orgs.byEmail(email)) throw new OrbError('email_taken', 'this email is registered already')
        store.orgs.insert(org)
        return addKey(org.id, FIRST_KEY_NAME, 'admin')
      })
      return { tenant_id: org.id, org_id: org.id, api_key: key, key_id: row.id, email }
    },

    async login(key) {
      const row = findKey(key)
      const issued = Math.floor(now() / 1000)
      const token = await new SignJWT({})
        .setProtectedHeader({ alg: 'HS256', typ: 'JWT' })
        .setIssuer(TOKEN_ISSUER)
        .setSubject(row.id)
        .setIssuedAt(issued)
        .setExpirationTime(issued + TOKEN_SECONDS)
        .sign(jwtSecret)
      markUsed(row)
      return { token, expires_in: TOKEN_SECONDS }
    },

    async authenticate(credential): Promise<Principal> {
      const row = credential.startsWith(KEY_PREFIX) ? findKey(credential) : await keyOfToken(credential)
      markUsed(row)
      return { orgId: row.orgId, keyId: row.id, scope: row.scope, role: row.role }
    },

    async createKey(who, name) {
      const { key, row } = store.transaction(() => {
        checkQuota(who.orgId)
        return addKey(who.orgId, name, who.role)
      })
      return { key_id: row.id, api_key: key, name, prefix: row.prefix, created_at: isoTime(row.createdAt) }
    },

    listKeys(who) {
      const keys = store.keys.list(who.orgId).map((row) => ({
        key_id: row.id,
        name: row.name,
        prefix: row.prefix,
        scope: row.scope,
        created_at: isoTime(row.createdAt),
        last_used_at: isoTimeOrNull(row.lastUsedAt),
      }))
      return { keys, total: keys.length }
    },

    revokeKey(who, keyId) {
      if (!store.keys.remove(who.orgId, keyId)) throw new OrbError('not_found', 'no such key')
      markedAt.delete(keyId)
      deps.onRevoked?.(keyId)
      return { key_id: keyId, revoked: true }
    },

    createKeyFor(email, name) {
      const org = store.orgs.byEmail(email.toLowerCase())
      if (!org) throw new OrbError('not_found', `no account has the email ${email}`)
      return addKey(org.id, name, 'admin').key
    },

    draftKey(who, name, scope) {
      checkQuota(who.orgId)
      const { key, row } = draftKey(who.orgId, name, who.role, scope)
      return { key, id: row.id, store: () => store.keys.insert(row) }
    },
  }
}

const invalidCredential = () => new OrbError('unauthorized', 'the API key or token is unknown, revoked or expired')

const sha256 = (text: string): Uint8Array => createHash('sha256').update(text).digest()

/** `orb_` and 256 random bits in base62. */
function newKey(): string {
  let rest = BigInt(`0x${randomBytes(KEY_RANDOM_BYTES).toString('hex')}`)
  let digits = ''
  for (let place = 0; place < KEY_DIGITS; place++) {
    digits += BASE62[Number(rest % 62n)]
    rest /= 62n
  }
  return KEY_PREFIX + digits
}
