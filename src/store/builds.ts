import type { Database } from 'bun:sqlite'
import type { BuildRow } from './types.ts'

/** Builds of a computer that are kept (Orb Cloud contract §6). */
export const BUILDS_KEPT = 50

const BUILD = `id, computer_id AS computerId, status, result, fingerprint,
  created_at AS createdAt, started_at AS startedAt, finished_at AS finishedAt`

export type BuildRepository = ReturnType<typeof buildRepository>

export function buildRepository(db: Database) {
  const put = db.query<void, { [field in keyof BuildRow]: BuildRow[field] }>(
    `INSERT INTO builds (id, computer_id, status, result, fingerprint, created_at, started_at, finished_at)
     VALUES ($id, $computerId, $status, $result, $fingerprint, $createdAt, $startedAt, $finishedAt)
     ON CONFLICT (id) DO UPDATE SET status = excluded.status, result = excluded.result,
       fingerprint = excluded.fingerprint, started_at = excluded.started_at, finished_at = excluded.finished_at`,
  )
  // The last success stays however old it is: whether a deploy must build first depends on it.
  const prune = db.query<void, { computerId: string }>(
    `DELETE FROM builds WHERE computer_id = $computerId
     AND id NOT IN (SELECT id FROM builds WHERE computer_id = $computerId
                    ORDER BY created_at DESC, rowid DESC LIMIT ${BUILDS_KEPT})
     AND id NOT IN (SELECT id FROM builds WHERE computer_id = $computerId AND status = 'success'
                    ORDER BY created_at DESC, rowid DESC LIMIT 1)`,
  )
  const get = db.query<BuildRow, { computerId: string; id: string }>(
    `SELECT ${BUILD} FROM builds WHERE computer_id = $computerId AND id = $id`,
  )
  const list = db.query<BuildRow, { computerId: string }>(
    `SELECT ${BUILD} FROM builds WHERE computer_id = $computerId
     ORDER BY created_at DESC, rowid DESC LIMIT ${BUILDS_KEPT}`,
  )
  const lastSuccess = db.query<BuildRow, { computerId: string }>(
    `SELECT ${BUILD} FROM builds WHERE computer_id = $computerId AND status = 'success'
     ORDER BY created_at DESC, rowid DESC LIMIT 1`,
  )
  const unfinished = db.query<BuildRow, []>(`SELECT ${BUILD} FROM builds WHERE status IN ('queued', 'running')`)
  const store = db.transaction((row: BuildRow): void => {
    put.run({ ...row })
    prune.run({ computerId: row.computerId })
  })
  return {
    /** Stores it, or replaces the one of the same id; of older ones the last 50 stay. */
    put: (row: BuildRow): void => store.immediate(row),
    get: (computerId: string, id: string): BuildRow | null => get.get({ computerId, id }),
    /** Newest first, at most 50. */
    list: (computerId: string): BuildRow[] => list.all({ computerId }),
    lastSuccess: (computerId: string): BuildRow | null => lastSuccess.get({ computerId }),
    /** Builds of all computers that wait or run; at start these are the ones that a crash cut off. */
    unfinished: (): BuildRow[] => unfinished.all(),
  }
}
