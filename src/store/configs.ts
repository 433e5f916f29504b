import type { Database } from 'bun:sqlite'
import type { ConfigRow, SecretRow } from './types.ts'

export type ConfigRepository = ReturnType<typeof configRepository>
export type SecretRepository = ReturnType<typeof secretRepository>

export function configRepository(db: Database) {
  const put = db.query<void, { [field in keyof ConfigRow]: ConfigRow[field] }>(
    `INSERT INTO configs (computer_id, kind, json, toml, source, updated_at)
     VALUES ($computerId, $kind, $json, $toml, $source, $updatedAt)
     ON CONFLICT (computer_id, kind) DO UPDATE SET json = excluded.json, toml = excluded.toml,
       source = excluded.source, updated_at = excluded.updated_at`,
  )
  const get = db.query<ConfigRow, { computerId: string; kind: string }>(
    `SELECT computer_id AS computerId, kind, json, toml, source, updated_at AS updatedAt
     FROM configs WHERE computer_id = $computerId AND kind = $kind`,
  )
  const mentioning = db.query<{ computerId: string }, { text: string }>(
    'SELECT computer_id AS computerId FROM configs WHERE instr(json, $text) > 0',
  )
  // Each LLM call needs one, and a query costs as much as all the rest that is done for it here.
  const known = new Map<string, ConfigRow>()
  const keyOf = (computerId: string, kind: ConfigRow['kind']): string => `${kind} ${computerId}`
  return {
    /** Replaces the one of the same computer and kind. */
    put(row: ConfigRow): void {
      known.delete(keyOf(row.computerId, row.kind))
      put.run({ ...row })
    },
    /** The same object until it is replaced. */
    get(computerId: string, kind: ConfigRow['kind']): ConfigRow | null {
      // What a transaction reads may never come true.
      if (db.inTransaction) return get.get({ computerId, kind })
      const key = keyOf(computerId, kind)
      const row = known.get(key) ?? get.get({ computerId, kind })
      if (row) known.set(key, row)
      return row
    },
    /** Ids of the computers that have a configuration with this text in it. */
    mentioning: (text: string): string[] => mentioning.all({ text }).map(({ computerId }) => computerId),
    /** The computer is deleted, and its rows with it. */
    forget(computerId: string): void {
      known.delete(keyOf(computerId, 'stored'))
      known.delete(keyOf(computerId, 'deployed'))
    },
  }
}

export function secretRepository(db: Database) {
  const put = db.query<void, { [field in keyof SecretRow]: SecretRow[field] }>(
    `INSERT INTO secrets (computer_id, name, sealed) VALUES ($computerId, $name, $sealed)
     ON CONFLICT (computer_id, name) DO UPDATE SET sealed = excluded.sealed`,
  )
  const list = db.query<SecretRow, { computerId: string }>(
    'SELECT computer_id AS computerId, name, sealed FROM secrets WHERE computer_id = $computerId ORDER BY name',
  )
  return {
    /** Replaces those of the same name, all or none; others stay. */
    put: db.transaction((rows: SecretRow[]): void => {
      for (const row of rows) put.run({ ...row })
    }).immediate,
    list: (computerId: string): SecretRow[] => list.all({ computerId }),
  }
}
