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
  return {
    /** Replaces the one of the same computer and kind. */
    put: (row: ConfigRow): void => void put.run({ ...row }),
    get: (computerId: string, kind: ConfigRow['kind']): ConfigRow | null => get.get({ computerId, kind }),
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
