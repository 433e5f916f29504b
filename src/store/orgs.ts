import type { Database } from 'bun:sqlite'
import type { KeyRow, OrgRow } from './types.ts'

const ORG = 'id, email, created_at AS createdAt'
const KEY = 'id, org_id AS orgId, name, prefix, hash, scope, role, created_at AS createdAt, last_used_at AS lastUsedAt'

export type OrgRepository = ReturnType<typeof orgRepository>
export type KeyRepository = ReturnType<typeof keyRepository>

export function orgRepository(db: Database) {
  const insert = db.query<void, { id: string; email: string; createdAt: number }>(
    'INSERT INTO orgs (id, email, created_at) VALUES ($id, $email, $createdAt)',
  )
  const get = db.query<OrgRow, { id: string }>(`SELECT ${ORG} FROM orgs WHERE id = $id`)
  const any = db.query<{ id: string }, []>('SELECT id FROM orgs LIMIT 1')
  const byEmail = db.query<OrgRow, { email: string }>(`SELECT ${ORG} FROM orgs WHERE email = $email`)
  return {
    insert: (row: OrgRow): void => void insert.run({ ...row }),
    /** Whether there is none: nobody has used this database yet. */
    isEmpty: (): boolean => any.get() === null,
    get: (id: string): OrgRow | null => get.get({ id }),
    /** `email` in lower case, as it is stored. */
    byEmail: (email: string): OrgRow | null => byEmail.get({ email }),
  }
}

export function keyRepository(db: Database) {
  const insert = db.query<void, { [field in keyof KeyRow]: KeyRow[field] }>(
    `INSERT INTO keys (id, org_id, name, prefix, hash, scope, role, created_at, last_used_at)
     VALUES ($id, $orgId, $name, $prefix, $hash, $scope, $role, $createdAt, $lastUsedAt)`,
  )
  const get = db.query<KeyRow, { id: string }>(`SELECT ${KEY} FROM keys WHERE id = $id`)
  const byHash = db.query<KeyRow, { hash: Uint8Array }>(`SELECT ${KEY} FROM keys WHERE hash = $hash`)
  const list = db.query<KeyRow, { orgId: string }>(
    `SELECT ${KEY} FROM keys WHERE org_id = $orgId ORDER BY created_at, rowid`,
  )
  const remove = db.query<void, { orgId: string; id: string }>('DELETE FROM keys WHERE org_id = $orgId AND id = $id')
  const touch = db.query<void, { id: string; at: number }>('UPDATE keys SET last_used_at = $at WHERE id = $id')
  return {
    insert: (row: KeyRow): void => void insert.run({ ...row }),
    get: (id: string): KeyRow | null => get.get({ id }),
    byHash: (hash: Uint8Array): KeyRow | null => byHash.get({ hash }),
    /** Oldest first. */
    list: (orgId: string): KeyRow[] => list.all({ orgId }),
    /** False when the organisation has no such key. */
    remove: (orgId: string, id: string): boolean => remove.run({ orgId, id }).changes > 0,
    touch: (id: string, at: number): void => void touch.run({ id, at }),
  }
}
