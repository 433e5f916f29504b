import type { Database, SQLQueryBindings } from 'bun:sqlite'
import type { AgentRow, UsageEvent } from './types.ts'
import type { UsageRepository } from './usage.ts'

const COLUMNS: { [field in keyof AgentRow]: string } = {
  computerId: 'computer_id',
  phase: 'phase',
  generation: 'generation',
  pid: 'pid',
  image: 'image',
  imageBytes: 'image_bytes',
  startedAt: 'started_at',
  exitCode: 'exit_code',
  stderrTail: 'stderr_tail',
  failureReason: 'failure_reason',
  failureMessage: 'failure_message',
  sleepReason: 'sleep_reason',
  codeVersion: 'code_version',
  llmOutstanding: 'llm_outstanding',
  lastWakeMs: 'last_wake_ms',
}

type StoredAgent = Omit<AgentRow, 'llmOutstanding'> & { llmOutstanding: number }

/** What an update may set; `generation` among it is the new number. */
export type AgentChanges = Partial<Omit<AgentRow, 'computerId'>>

export type AgentRepository = ReturnType<typeof agentRepository>

/** With each phase that is written, what the agent takes from then on is written too, in the same transaction. */
export function agentRepository(db: Database, usage: UsageRepository) {
  const selected = Object.entries(COLUMNS).map(([field, column]) => `${column} AS ${field}`)
  const columns = Object.values(COLUMNS)
  const get = db.query<StoredAgent, { computerId: string }>(
    `SELECT ${selected.join(', ')} FROM agents WHERE computer_id = $computerId`,
  )
  const all = db.query<StoredAgent, []>(`SELECT ${selected.join(', ')} FROM agents ORDER BY computer_id`)
  const put = db.query<void, SQLQueryBindings>(
    `INSERT OR REPLACE INTO agents (${columns.join(', ')})
     VALUES (${Object.keys(COLUMNS).map((field) => `$${field}`)})`,
  )
  const remove = db.query<void, { computerId: string }>('DELETE FROM agents WHERE computer_id = $computerId')
  const putAt = db.transaction((row: AgentRow, event: UsageEvent, at: number): void => {
    put.run({ ...row })
    usage.entered(row.computerId, row.phase, event, at)
  })
  const removeAt = db.transaction((computerId: string, at: number): boolean => {
    usage.entered(computerId, 'stopping', {}, at)
    return remove.run({ computerId }).changes > 0
  })
  return {
    get(computerId: string): AgentRow | null {
      const row = get.get({ computerId })
      return row && fromStored(row)
    },
    all: (): AgentRow[] => all.all().map(fromStored),
    /** Stores it in place of the one that the computer had. */
    put: (row: AgentRow, event: UsageEvent = {}): void => putAt.immediate(row, event, usage.now()),
    /**
     * Sets the named fields if the agent still has this generation. False when it has another or is gone: whoever asked has
     * been overtaken and must stop.
     * @param survives `power cut`: on disk when this returns; `crash`: another process sees it from now on, a power cut may
     *   take it, with whatever was written after it. That waits for no disk.
     * @param alongside stores in the same transaction what belongs to the change; called only if that is made
     */
    update(
      computerId: string,
      generation: number,
      changes: AgentChanges,
      survives: 'power cut' | 'crash' = 'power cut',
      event: UsageEvent = {},
      alongside?: () => void,
    ): boolean {
      const changed = Object.entries(COLUMNS).filter(([field]) => field !== 'computerId' && field in changes)
      if (changed.length === 0) return get.get({ computerId })?.generation === generation
      const assignments = changed.map(([field, column]) => `${column} = $${field}`)
      const statement = db.query<void, SQLQueryBindings>(
        `UPDATE agents SET ${assignments.join(', ')} WHERE computer_id = $computerId AND generation = $heldGeneration`,
      )
      const change = () => statement.run({ ...changes, computerId, heldGeneration: generation }).changes > 0
      const { phase } = changes
      const now = usage.now()
      const together = db.transaction(() => {
        if (!change()) return false
        if (phase !== undefined) usage.entered(computerId, phase, event, now)
        alongside?.()
        return true
      })
      const run = phase !== undefined || alongside ? together.immediate : change
      return survives === 'crash' ? unsynced(db, run) : run()
    },
    /** False when there was none. */
    remove: (computerId: string): boolean => removeAt.immediate(computerId, usage.now()),
  }
}

function unsynced<T>(db: Database, work: () => T): T {
  db.run('PRAGMA synchronous = NORMAL')
  try {
    return work()
  } finally {
    db.run('PRAGMA synchronous = FULL')
  }
}

const fromStored = (row: StoredAgent): AgentRow => ({ ...row, llmOutstanding: row.llmOutstanding !== 0 })
