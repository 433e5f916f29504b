import type { Database } from 'bun:sqlite'
import type { ComputerRow, ReplicaFailureRow, SwarmRow } from './types.ts'

const SWARM = 'id, org_id AS orgId, name, replicas, made, created_at AS createdAt'
const FAILURE = 'computer_id AS computerId, error, message'

type StoredSwarm = Omit<SwarmRow, 'made'> & { made: number }

export type SwarmRepository = ReturnType<typeof swarmRepository>

export function swarmRepository(db: Database) {
  const insert = db.query<void, { [field in keyof StoredSwarm]: StoredSwarm[field] }>(
    `INSERT INTO swarms (id, org_id, name, replicas, made, created_at)
     VALUES ($id, $orgId, $name, $replicas, $made, $createdAt)`,
  )
  const get = db.query<StoredSwarm, { id: string }>(`SELECT ${SWARM} FROM swarms WHERE id = $id`)
  const byName = db.query<StoredSwarm, { orgId: string; name: string }>(
    `SELECT ${SWARM} FROM swarms WHERE org_id = $orgId AND name = $name`,
  )
  const list = db.query<StoredSwarm, { orgId: string }>(
    `SELECT ${SWARM} FROM swarms WHERE org_id = $orgId ORDER BY created_at, rowid`,
  )
  const unmade = db.query<StoredSwarm, []>(`SELECT ${SWARM} FROM swarms WHERE made = 0`)
  const setMade = db.query<void, { id: string }>('UPDATE swarms SET made = 1 WHERE id = $id')
  const remove = db.query<void, { id: string }>('DELETE FROM swarms WHERE id = $id')
  const fail = db.query<void, { [field in keyof ReplicaFailureRow]: ReplicaFailureRow[field] }>(
    `INSERT OR REPLACE INTO replica_failures (computer_id, error, message) VALUES ($computerId, $error, $message)`,
  )
  const failure = db.query<ReplicaFailureRow, { computerId: string }>(
    `SELECT ${FAILURE} FROM replica_failures WHERE computer_id = $computerId`,
  )
  const failed = db.query<{ id: string }, { orgId: string }>(
    `SELECT computer_id AS id FROM replica_failures JOIN computers ON computers.id = computer_id WHERE org_id = $orgId`,
  )
  const forgive = db.query<void, { computerId: string }>('DELETE FROM replica_failures WHERE computer_id = $computerId')
  return {
    /** Throws when the organisation has one of that name. */
    insert: (row: SwarmRow): void => void insert.run({ ...row, made: Number(row.made) }),
    /** Whatever organisation it belongs to. */
    get: (id: string): SwarmRow | null => fromStored(get.get({ id })),
    byName: (orgId: string, name: string): SwarmRow | null => fromStored(byName.get({ orgId, name })),
    /** Oldest first. */
    list: (orgId: string): SwarmRow[] => list.all({ orgId }).flatMap((row) => fromStored(row) ?? []),
    /** Of all organisations those that were being made; at start these are the ones that a crash cut off. */
    unmade: (): SwarmRow[] => unmade.all().flatMap((row) => fromStored(row) ?? []),
    setMade: (id: string): void => void setMade.run({ id }),
    /** The row alone; its computers have none by then. */
    remove: (id: string): void => void remove.run({ id }),
    /** Why a replica is not up; goes with its computer. */
    fail: (row: ReplicaFailureRow): void => void fail.run({ ...row }),
    failure: (computerId: string): ReplicaFailureRow | null => failure.get({ computerId }),
    /** Ids of the computers of an organisation that have a failure. */
    failedOf: (orgId: string): Set<string> => new Set(failed.all({ orgId }).map(({ id }) => id)),
    /** Its agent was started after all, or whoever has it wants it forgotten. */
    forgive: ({ id }: Pick<ComputerRow, 'id'>): void => void forgive.run({ computerId: id }),
  }
}

const fromStored = (row: StoredSwarm | null): SwarmRow | null => row && { ...row, made: row.made !== 0 }
