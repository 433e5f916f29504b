import type { Database, SQLQueryBindings } from 'bun:sqlite'
import type { CronJobRow, CronRunRow } from './types.ts'

/** Runs of a computer that are kept (Orb Cloud contract §15.3). */
export const RUNS_KEPT = 1000

const JOB = 'computer_id AS computerId, name, spec, last_fired_at AS lastFiredAt'
const RUN = `id, computer_id AS computerId, job_name AS jobName, fired_at AS firedAt, started_at AS startedAt,
  finished_at AS finishedAt, status, exit_code AS exitCode, duration_ms AS durationMs, stdout, stderr, error`

/** What was read of one cron.json. */
export interface CronFileContent {
  jobs: { name: string; spec: string }[]
  error: string | null
}

export type CronRepository = ReturnType<typeof cronRepository>

/** How a run goes on does not wait for the disk (`quick`): a crash of orb loses nothing, a power cut may leave it unfinished. */
export function cronRepository(db: Database, quick: Database) {
  const jobs = db.query<CronJobRow, []>(`SELECT ${JOB} FROM cron_jobs ORDER BY computer_id, position`)
  const errors = db.query<{ computerId: string; error: string }, []>(
    'SELECT computer_id AS computerId, error FROM cron_errors',
  )
  // A job that comes back has the last run that is still known.
  const putJob = db.query<void, SQLQueryBindings>(
    `INSERT INTO cron_jobs (computer_id, name, position, spec, last_fired_at)
     VALUES ($computerId, $name, $position, $spec,
       (SELECT MAX(fired_at) FROM cron_runs WHERE computer_id = $computerId AND job_name = $name))
     ON CONFLICT (computer_id, name) DO UPDATE SET position = excluded.position, spec = excluded.spec`,
  )
  const removeOthers = db.query<void, { computerId: string; names: string }>(
    `DELETE FROM cron_jobs WHERE computer_id = $computerId AND name NOT IN (SELECT value FROM json_each($names))`,
  )
  const ofComputer = db.query<CronJobRow, { computerId: string }>(
    `SELECT ${JOB} FROM cron_jobs WHERE computer_id = $computerId ORDER BY position`,
  )
  const setError = db.query<void, { computerId: string; error: string }>(
    `INSERT INTO cron_errors (computer_id, error) VALUES ($computerId, $error)
     ON CONFLICT (computer_id) DO UPDATE SET error = excluded.error`,
  )
  const clearError = db.query<void, { computerId: string }>('DELETE FROM cron_errors WHERE computer_id = $computerId')

  const insertRun = db.query<void, SQLQueryBindings>(
    `INSERT INTO cron_runs (id, computer_id, job_name, fired_at, started_at, finished_at, status, exit_code, duration_ms,
       stdout, stderr, error)
     VALUES ($id, $computerId, $jobName, $firedAt, $startedAt, $finishedAt, $status, $exitCode, $durationMs,
       $stdout, $stderr, $error)`,
  )
  const fired = db.query<void, { computerId: string; jobName: string; firedAt: number }>(
    `UPDATE cron_jobs SET last_fired_at = $firedAt
     WHERE computer_id = $computerId AND name = $jobName AND ($firedAt > last_fired_at OR last_fired_at IS NULL)`,
  )
  const prune = db.query<void, { computerId: string }>(
    `DELETE FROM cron_runs WHERE computer_id = $computerId AND finished_at IS NOT NULL
     AND rowid IN (SELECT rowid FROM cron_runs WHERE computer_id = $computerId
                   ORDER BY fired_at DESC, rowid DESC LIMIT -1 OFFSET ${RUNS_KEPT})`,
  )
  const start = quick.query<void, { id: string; at: number }>('UPDATE cron_runs SET started_at = $at WHERE id = $id')
  const finish = quick.query<void, SQLQueryBindings>(
    `UPDATE cron_runs SET finished_at = $finishedAt, status = $status, exit_code = $exitCode, duration_ms = $durationMs,
       stdout = $stdout, stderr = $stderr, error = $error WHERE id = $id`,
  )
  const runs = db.query<CronRunRow, { computerId: string; job: string | null; limit: number }>(
    `SELECT ${RUN} FROM cron_runs WHERE computer_id = $computerId AND ($job IS NULL OR job_name = $job)
     ORDER BY fired_at DESC, rowid DESC LIMIT $limit`,
  )
  const unfinished = db.query<CronRunRow, []>(`SELECT ${RUN} FROM cron_runs WHERE finished_at IS NULL`)

  const put = db.transaction((computerId: string, content: CronFileContent): CronJobRow[] => {
    for (const [position, { name, spec }] of content.jobs.entries()) putJob.run({ computerId, position, name, spec })
    removeOthers.run({ computerId, names: JSON.stringify(content.jobs.map(({ name }) => name)) })
    if (content.error === null) clearError.run({ computerId })
    else setError.run({ computerId, error: content.error })
    return ofComputer.all({ computerId })
  })
  const add = db.transaction((rows: CronRunRow[]): void => {
    for (const row of rows) {
      insertRun.run({ ...row })
      fired.run({ computerId: row.computerId, jobName: row.jobName, firedAt: row.firedAt })
    }
    for (const computerId of new Set(rows.map((row) => row.computerId))) prune.run({ computerId })
  })
  return {
    /** Of all computers, those of one in the order of its file. */
    jobs: (): CronJobRow[] => jobs.all(),
    /** What is wrong with the cron.json of which computer. */
    errors: (): { computerId: string; error: string }[] => errors.all(),
    /** Replaces what is known of a computer's cron.json. Returns its jobs; those that were there have their last run. */
    put: (computerId: string, content: CronFileContent): CronJobRow[] => put.immediate(computerId, content),
    /** Stores new runs, all or none; of finished ones of a computer the last 1000 stay. */
    add: (rows: CronRunRow[]): void => add.immediate(rows),
    start: (id: string, at: number): void => void start.run({ id, at }),
    /** Stores how a run ended. One whose computer was deleted is gone already. */
    finish: (row: CronRunRow): void =>
      void finish.run({
        id: row.id,
        finishedAt: row.finishedAt,
        status: row.status,
        exitCode: row.exitCode,
        durationMs: row.durationMs,
        stdout: row.stdout,
        stderr: row.stderr,
        error: row.error,
      }),
    /** Newest first. @param job null: of every job */
    runs: (computerId: string, job: string | null, limit: number): CronRunRow[] => runs.all({ computerId, job, limit }),
    /** Of all computers; at start these are the ones that a crash cut off. */
    unfinished: (): CronRunRow[] => unfinished.all(),
  }
}
