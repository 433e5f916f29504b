import type { Database } from 'bun:sqlite'
import type { ComputerRow, PortRow } from './types.ts'
import type { UsageRepository } from './usage.ts'

/** Host ports of exposed ports are given out from here up (Orb Cloud contract §3). */
export const FIRST_HOST_PORT = 40_000
const LAST_HOST_PORT = 65_535

const COMPUTER = `id, short_id AS shortId, org_id AS orgId, name, runtime_mb AS runtimeMb, disk_mb AS diskMb,
  user_id AS userId, swarm_id AS swarmId, replica_index AS replicaIndex, slot, base,
  created_at AS createdAt, updated_at AS updatedAt`

const PORT = 'computer_id AS computerId, container_port AS containerPort, host_port AS hostPort'

export type ComputerRepository = ReturnType<typeof computerRepository>
export type PortRepository = ReturnType<typeof portRepository>

export function computerRepository(db: Database, usage: UsageRepository) {
  const insert = db.query<void, { [field in keyof ComputerRow]: ComputerRow[field] }>(
    `INSERT INTO computers (id, short_id, org_id, name, runtime_mb, disk_mb, user_id, swarm_id, replica_index, slot, base,
       created_at, updated_at)
     VALUES ($id, $shortId, $orgId, $name, $runtimeMb, $diskMb, $userId, $swarmId, $replicaIndex, $slot, $base,
       $createdAt, $updatedAt)`,
  )
  // One below a gap, or below the end: 0 stands for "slot 1 is free".
  const freeSlot = db.query<{ slot: number }, []>(
    `SELECT 1 + MIN(below) AS slot FROM (SELECT 0 AS below UNION ALL SELECT slot FROM computers)
     WHERE below + 1 NOT IN (SELECT slot FROM computers)`,
  )
  const get = db.query<ComputerRow, { id: string }>(
    `SELECT ${COMPUTER} FROM computers WHERE id = $id OR short_id = $id`,
  )
  const list = db.query<ComputerRow, { orgId: string }>(
    `SELECT ${COMPUTER} FROM computers WHERE org_id = $orgId ORDER BY created_at, rowid`,
  )
  const all = db.query<ComputerRow, []>(`SELECT ${COMPUTER} FROM computers ORDER BY created_at, rowid`)
  const ofSwarm = db.query<ComputerRow, { swarmId: string }>(
    `SELECT ${COMPUTER} FROM computers WHERE swarm_id = $swarmId ORDER BY replica_index`,
  )
  const setBase = db.query<void, { id: string; base: string }>('UPDATE computers SET base = $base WHERE id = $id')
  const diskMade = db.query<{ made: number }, { id: string }>('SELECT disk_made AS made FROM computers WHERE id = $id')
  const setDiskMade = db.query<void, { id: string }>(
    'UPDATE computers SET disk_made = 1 WHERE id = $id AND disk_made = 0',
  )
  const bases = db.query<{ base: string }, []>('SELECT DISTINCT base FROM computers')
  const count = db.query<{ n: number }, { orgId: string }>('SELECT COUNT(*) AS n FROM computers WHERE org_id = $orgId')
  const total = db.query<{ n: number }, []>('SELECT COUNT(*) AS n FROM computers')
  const touch = db.query<void, { id: string; at: number }>('UPDATE computers SET updated_at = $at WHERE id = $id')
  const remove = db.query<void, { id: string }>('DELETE FROM computers WHERE id = $id')
  const removeKeys = db.query<void, { scope: string }>('DELETE FROM keys WHERE scope = $scope')
  const insertInFreeSlot = db.transaction((row: Omit<ComputerRow, 'slot'>): ComputerRow => {
    const placed = { ...row, slot: freeSlot.get()?.slot ?? 1 }
    insert.run(placed)
    usage.created(placed)
    return placed
  })
  const removeAt = db.transaction((id: string, at: number): boolean => {
    usage.deleted(id, at)
    removeKeys.run({ scope: `deploy:${id}` })
    return remove.run({ id }).changes > 0
  })
  return {
    /** Stores it in the lowest free slot, from 1 up. Throws when the id or short id is taken. */
    insert: (row: Omit<ComputerRow, 'slot'>): ComputerRow => insertInFreeSlot.immediate(row),
    /** By id or short id, whatever organisation it belongs to. */
    get: (id: string): ComputerRow | null => get.get({ id }),
    /** Oldest first. */
    list: (orgId: string): ComputerRow[] => list.all({ orgId }),
    all: (): ComputerRow[] => all.all(),
    count: (orgId: string): number => count.get({ orgId })?.n ?? 0,
    /** Of all organisations. */
    total: (): number => total.get()?.n ?? 0,
    /** By replica. */
    ofSwarm: (swarmId: string): ComputerRow[] => ofSwarm.all({ swarmId }),
    /** Before it is first brought up. */
    setBase: (id: string, base: string): void => void setBase.run({ id, base }),
    /** Whether its disk was made: should it be missing, then it is lost, not still to come. */
    isDiskMade: (id: string): boolean => diskMade.get({ id })?.made === 1,
    setDiskMade: (id: string): void => void setDiskMade.run({ id }),
    /** What computers stand on, each name once. */
    bases: (): string[] => bases.all().map(({ base }) => base),
    /** Sets `updatedAt`. */
    touch: (id: string, at: number): void => void touch.run({ id, at }),
    /**
     * Removes it with its ports, configs, secrets, builds, agent, auto-deploy and the keys that are for it alone. False when
     * there is none. `id` is the full id.
     */
    remove: (id: string): boolean => removeAt.immediate(id, usage.now()),
  }
}

export function portRepository(db: Database) {
  const list = db.query<PortRow, { computerId: string }>(
    `SELECT ${PORT} FROM ports WHERE computer_id = $computerId ORDER BY host_port`,
  )
  const ofOrg = db.query<PortRow, { orgId: string }>(
    `SELECT ${PORT} FROM ports WHERE computer_id IN (SELECT id FROM computers WHERE org_id = $orgId)
     ORDER BY computer_id, host_port`,
  )
  const freePort = db.query<{ port: number }, []>(
    `SELECT 1 + MIN(below) AS port FROM (SELECT ${FIRST_HOST_PORT - 1} AS below UNION ALL SELECT host_port FROM ports)
     WHERE below + 1 NOT IN (SELECT host_port FROM ports)`,
  )
  const insert = db.query<void, { computerId: string; containerPort: number; hostPort: number }>(
    'INSERT INTO ports (computer_id, container_port, host_port) VALUES ($computerId, $containerPort, $hostPort)',
  )
  const remove = db.query<void, { computerId: string; containerPort: number }>(
    'DELETE FROM ports WHERE computer_id = $computerId AND container_port = $containerPort',
  )
  const reserve = db.transaction((computerId: string, wanted: number[]): PortRow[] => {
    const present = new Map(list.all({ computerId }).map((row) => [row.containerPort, row]))
    for (const containerPort of present.keys()) {
      if (!wanted.includes(containerPort)) remove.run({ computerId, containerPort })
    }
    return [...new Set(wanted)].map((containerPort) => {
      const kept = present.get(containerPort)
      if (kept) return kept
      const hostPort = freePort.get()?.port ?? FIRST_HOST_PORT
      if (hostPort > LAST_HOST_PORT) throw new Error('no host port is free')
      insert.run({ computerId, containerPort, hostPort })
      return { computerId, containerPort, hostPort }
    })
  })
  return {
    list: (computerId: string): PortRow[] => list.all({ computerId }),
    /** Of all computers of an organisation; those of one computer in the order of `list`. */
    ofOrg: (orgId: string): PortRow[] => ofOrg.all({ orgId }),
    /**
     * Makes these the computer's container ports: those that it has keep their host port, new ones get the lowest free,
     * others are given back. Answers in the order asked for.
     */
    reserve: (computerId: string, containerPorts: number[]): PortRow[] => reserve.immediate(computerId, containerPorts),
  }
}
