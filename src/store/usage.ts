import type { Database } from 'bun:sqlite'
import type { AgentPhase, ComputerRow, UsageEvent, UsageRow, UsageState } from './types.ts'

/** Steps of the wall clock up to this many ms are those of a clock that is being set right. */
export const CLOCK_STEP_MS = 2000
const HOUR_MS = 3_600_000

/** What an agent takes from a phase on; a phase that is not here changes nothing until it is over. */
const STATE_IN: Partial<Record<AgentPhase, UsageState>> = {
  starting: 'none',
  running: 'ram',
  frozen: 'ram',
  checkpointed: 'nvme',
  failed: 'none',
  stopping: 'none',
}

export interface Clock {
  /** Ms since the epoch, as the machine's clock says: it may be set at any time. */
  now(): number
  /** Ms of a clock that only goes forward. */
  steady(): number
}

/** Counts as events what comes at or after `from` and before `to`, in ms since the epoch. */
export interface UsageWindow {
  from: number
  to: number
}

/** From `at` on the agent is in the state; the rest are sums up to then. */
interface Mark {
  at: number
  state: UsageState
  ramMs: number
  nvmeMs: number
  checkpoints: number
  restores: number
  restoreMs: number
  failures: number
  activeAt: number | null
}

interface Place {
  number: number
  createdAt: number
}

const NO_MARK: Mark = {
  at: 0,
  state: 'none',
  ramMs: 0,
  nvmeMs: 0,
  checkpoints: 0,
  restores: 0,
  restoreMs: 0,
  failures: 0,
  activeAt: null,
}

export type UsageRepository = ReturnType<typeof usageRepository>

/**
 * What computers took of the server. Of each computer there is a row of marks, each with the state from there on and the
 * sums up to there: states cannot overlap, and any window, to the ms, is the difference of two look-ups however many
 * marks lie between. A mark never comes before the one that it follows, whatever the clock says.
 *
 * Where the clock jumps ahead, the time that it leaves out is nobody's (`none`); where it is set back, what was marked
 * ahead of it is taken back, and the state before that lasts until now. Events stay counted.
 */
export function usageRepository(
  db: Database,
  quick: Database,
  clock: Clock = { now: Date.now, steady: () => performance.now() },
) {
  const created = db.query<void, Pick<ComputerRow, 'id' | 'orgId' | 'runtimeMb' | 'diskMb' | 'createdAt'>>(
    `INSERT INTO usage_computers (id, org_id, runtime_mb, disk_mb, created_at)
     VALUES ($id, $orgId, $runtimeMb, $diskMb, $createdAt)`,
  )
  const deleted = db.query<void, { id: string; at: number }>(
    `UPDATE usage_computers SET deleted_at = MAX($at, created_at,
       IFNULL((SELECT MAX(at) FROM usage_marks WHERE computer = number), 0)) WHERE id = $id AND deleted_at IS NULL`,
  )
  const lastMark = db.query<(Place & Mark) | (Place & { at: null }), { id: string }>(
    `SELECT number, created_at AS createdAt, at, state, ram_ms AS ramMs, nvme_ms AS nvmeMs, checkpoints, restores,
       restore_ms AS restoreMs, failures, active_at AS activeAt
     FROM usage_computers LEFT JOIN usage_marks
       ON computer = number AND at = (SELECT MAX(at) FROM usage_marks WHERE computer = number)
     WHERE id = $id`,
  )
  const insert = db.query<void, { [field in keyof Mark]: Mark[field] } & { number: number }>(
    `INSERT OR REPLACE INTO usage_marks VALUES
       ($number, $at, $state, $ramMs, $nvmeMs, $checkpoints, $restores, $restoreMs, $failures, $activeAt)`,
  )
  const open = db.query<{ id: string; state: UsageState }, []>(
    `SELECT id, state FROM usage_computers JOIN usage_marks
       ON computer = number AND at = (SELECT MAX(at) FROM usage_marks WHERE computer = number)
     WHERE deleted_at IS NULL AND state <> 'none'`,
  )
  const ahead = db.query<{ computer: number; at: number; to: number }, { now: number }>(
    `SELECT computer, at, MAX($now, created_at) AS "to" FROM usage_computers JOIN usage_marks
       ON computer = number AND at = (SELECT MAX(at) FROM usage_marks WHERE computer = number)
     WHERE deleted_at IS NULL AND at > MAX($now, created_at)`,
  )
  // The last mark, brought back to now: with its counts, and with the durations of the marks that stay.
  const bringBack = db.query<void, { computer: number; at: number; to: number }>(
    `INSERT INTO usage_marks
     SELECT last.computer, $to, last.state,
       IFNULL(stays.ram_ms + IIF(stays.state = 'ram', $to - stays.at, 0), 0),
       IFNULL(stays.nvme_ms + IIF(stays.state = 'nvme', $to - stays.at, 0), 0),
       last.checkpoints, last.restores, last.restore_ms, last.failures, MIN(last.active_at, $to)
     FROM usage_marks last LEFT JOIN usage_marks stays ON stays.computer = last.computer
       AND stays.at = (SELECT MAX(at) FROM usage_marks WHERE computer = $computer AND at < $to)
     WHERE last.computer = $computer AND last.at = $at
     ON CONFLICT (computer, at) DO UPDATE SET state = excluded.state, checkpoints = excluded.checkpoints,
       restores = excluded.restores, restore_ms = excluded.restore_ms, failures = excluded.failures,
       active_at = excluded.active_at`,
  )
  const removeAhead = db.query<void, { computer: number; to: number }>(
    'DELETE FROM usage_marks WHERE computer = $computer AND at > $to',
  )
  // The time in a state that goes on beyond the last mark ends with the computer, and now.
  const since = (name: string, state: UsageState, until: string) =>
    `IFNULL(${name}.${state}_ms + IIF(${name}.state = '${state}', MAX(0, ${until} - ${name}.at), 0), 0)`
  const lastBefore = (bound: string) => `(SELECT MAX(at) FROM usage_marks WHERE computer = number AND at < ${bound})`
  const difference = (column: string) => `IFNULL(late.${column}, 0) - IFNULL(early.${column}, 0)`
  const within = (which: string) =>
    `SELECT runtime_mb AS runtimeMb, disk_mb AS diskMb,
       created_at >= $from AS created, IFNULL(deleted_at < $to, FALSE) AS deleted,
       MAX(0, MIN(IFNULL(deleted_at, $until), $until) - MAX(created_at, $from)) AS existsMs,
       ${since('late', 'ram', '$until')} - ${since('early', 'ram', '$from')} AS ramMs,
       ${since('late', 'nvme', '$until')} - ${since('early', 'nvme', '$from')} AS nvmeMs,
       ${['checkpoints', 'restores', 'failures'].map((column) => `${difference(column)} AS ${column}`).join(', ')},
       ${difference('restore_ms')} AS restoreMs
     FROM usage_computers
       LEFT JOIN usage_marks late ON late.computer = number AND late.at = ${lastBefore('$to')}
       LEFT JOIN usage_marks early ON early.computer = number AND early.at = ${lastBefore('$from')}
     WHERE ${which} AND created_at < $to AND IFNULL(deleted_at >= $from, TRUE)`
  type Bounds = { from: number; to: number; until: number }
  const ofOrg = db.query<UsageRow, Bounds & { orgId: string }>(within('org_id = $orgId'))
  const ofComputer = db.query<UsageRow, Bounds & { id: string }>(within('id = $id'))
  const find = db.query<{ id: string }, { orgId: string; id: string }>(
    `SELECT id FROM usage_computers
     WHERE org_id = $orgId AND (id = $id OR (LENGTH($id) = 8 AND id BETWEEN $id || '-' AND $id || '.'))
     ORDER BY deleted_at IS NULL DESC, created_at DESC LIMIT 1`,
  )
  const activeAt = db.query<{ at: number | null }, { id: string }>(
    `SELECT active_at AS at FROM usage_computers JOIN usage_marks ON computer = number
     WHERE id = $id ORDER BY usage_marks.at DESC LIMIT 1`,
  )
  const seen = db.query<void, { at: number }>(
    'INSERT INTO usage_seen (id, at) VALUES (1, $at) ON CONFLICT (id) DO UPDATE SET at = excluded.at',
  )
  const lastSeen = db.query<{ at: number }, []>('SELECT at FROM usage_seen')
  const countCall = quick.query<void, { computerId: string; hour: number }>(
    `INSERT INTO usage_llm_calls (computer_id, hour, calls) VALUES ($computerId, $hour, 1)
     ON CONFLICT (computer_id, hour) DO UPDATE SET calls = calls + 1`,
  )
  const calls = db.query<{ calls: number }, { computerId: string; hour: number }>(
    'SELECT IFNULL(SUM(calls), 0) AS calls FROM usage_llm_calls WHERE computer_id = $computerId AND hour >= $hour',
  )

  /** One that does not come after the last mark takes its place. @param wakes false where a state only goes on */
  function put(id: string, state: UsageState, event: UsageEvent, at: number, wakes: boolean): void {
    const last = lastMark.get({ id })
    if (!last) return
    const before = last.at === null ? { ...NO_MARK, at: last.createdAt } : last
    const isEvent = event.checkpoint || event.failed || event.restoreMs !== undefined
    if (before.state === state && !isEvent) return
    const now = Math.max(Math.floor(at), before.at)
    insert.run({
      number: last.number,
      at: now,
      state,
      ramMs: before.ramMs + (before.state === 'ram' ? now - before.at : 0),
      nvmeMs: before.nvmeMs + (before.state === 'nvme' ? now - before.at : 0),
      checkpoints: before.checkpoints + Number(event.checkpoint ?? false),
      restores: before.restores + Number(event.restoreMs !== undefined),
      restoreMs: before.restoreMs + (event.restoreMs ?? 0),
      failures: before.failures + Number(event.failed ?? false),
      activeAt: wakes && state === 'ram' && before.state !== 'ram' ? now : before.activeAt,
    })
  }

  /** The clock went from one time to another, and nobody knows what it left out. */
  const leaveOut = db.transaction((from: number, to: number): void => {
    for (const { id, state } of open.all()) {
      put(id, 'none', {}, from, false)
      put(id, state, {}, to, false)
    }
  })

  const takeBack = db.transaction((now: number): void => {
    for (const { computer, at, to } of ahead.all({ now })) {
      bringBack.run({ computer, at, to })
      removeAhead.run({ computer, to })
    }
  })

  let known = { now: clock.now(), steady: clock.steady() }

  /** Now. To be called before whatever is written in the light of it: a jump of the clock is written down first. */
  function now(): number {
    const next = { now: clock.now(), steady: clock.steady() }
    const expected = Math.floor(known.now + next.steady - known.steady)
    if (next.now - expected > CLOCK_STEP_MS) leaveOut.immediate(expected, next.now)
    if (expected - next.now > CLOCK_STEP_MS) takeBack.immediate(next.now)
    known = next
    return next.now
  }

  const boundsOf = ({ from, to }: UsageWindow): Bounds => {
    const present = now()
    const until = Math.max(from, Math.min(to, present))
    // What was marked within this very ms has happened.
    return { from, to: to > present ? until + 1 : until, until }
  }

  return {
    now,
    /** A computer is made; within the transaction that makes it. */
    created: (row: ComputerRow): void => void created.run(row),
    /** It is deleted; within the transaction that deletes it. What it took stays known. */
    deleted(id: string, at: number): void {
      put(id, 'none', {}, at, false)
      deleted.run({ id, at })
    },
    /** The agent has this phase, now (`at`) or since the event; within the transaction that says so. */
    entered(computerId: string, phase: AgentPhase, event: UsageEvent, at: number): void {
      const state = STATE_IN[phase]
      if (state) put(computerId, state, event, Math.min(event.at ?? at, at), true)
    },
    /** What ran in the computer was ended, and its agent's row does not say so. */
    ended: (id: string): void => put(id, 'none', {}, now(), false),
    /** An LLM call, at the time `at`. A crash of orb does not lose it, a power cut may. Never within a transaction. */
    countCall: (computerId: string, at: number): void =>
      void countCall.run({ computerId, hour: Math.floor(at / HOUR_MS) }),
    /** Since then, from the beginning of that hour on. */
    calls: (computerId: string, from: number): number =>
      calls.get({ computerId, hour: Math.floor(from / HOUR_MS) })?.calls ?? 0,
    /** Orb is there and looks after the agents. */
    seen: (): void => void seen.run({ at: now() }),
    /** When `seen` was called last; null: never. To be called at the start: the clock may have been set back meanwhile. */
    resume(): number | null {
      takeBack.immediate(now())
      return lastSeen.get()?.at ?? null
    },
    /** Of each computer of the organisation that was there at some time within the window, deleted ones too. */
    ofOrg: (orgId: string, window: UsageWindow): UsageRow[] => ofOrg.all({ ...boundsOf(window), orgId }),
    /** Null when it was not there within the window. @param id the full id */
    ofComputer: (id: string, window: UsageWindow): UsageRow | null => ofComputer.get({ ...boundsOf(window), id }),
    /** Full id of a computer by id or short id, the one that exists before deleted ones. */
    find: (orgId: string, id: string): string | null => find.get({ orgId, id })?.id ?? null,
    /** When its agent was last started or restored. */
    activeAt: (id: string): number | null => activeAt.get({ id })?.at ?? null,
  }
}
