import { log } from '../../log.ts'
import { type FileLook, lookAtFile } from '../../runtime/watched-file.ts'
import type { Store } from '../../store/store.ts'
import type { ComputerRow, CronJobRow } from '../../store/types.ts'
import type { CronJob } from '../types.ts'
import { MAX_FILE_BYTES, readCronFile, readStoredJob } from './file.ts'
import { nextTime } from './schedule.ts'

/** Orb Cloud contract §15.1. */
const CRON_FILE = 'agent/.orb/cron.json'

/** One that is later than this is a missed time, which is not caught up: the server stood still, or its clock was set. */
const MISSED_AFTER_MS = 30_000
/** Of a clock that is set back by less a job does not run a second time for the same time; by more, all is planned anew. */
const CLOCK_STEP_MS = 3_600_000

/** A job that counts. Times are ms since the epoch. */
export interface Entry {
  job: CronJob
  /** Null if disabled, or if there is no further time. */
  nextAt: number | null
  lastFiredAt: number | null
}

export interface Due {
  computer: ComputerRow
  entry: Entry
  plannedAt: number
}

interface Crontab {
  /** In the order of the file. */
  entries: Entry[]
  error: string | null
  /** What the file looked like when it was read last; null: not known. */
  stamp: string | null
}

const NOTHING: Crontab = { entries: [], error: null, stamp: null }

export interface CrontabDeps {
  store: Pick<Store, 'cron' | 'computers'>
  /** Looks at the computer's cron.json. @param last stamp of the look before */
  look(computer: ComputerRow, last: string | null): FileLook
}

/** @param rootfs the computer's root on the host */
export const lookAtCronFile = (rootfs: string, last: string | null): FileLook =>
  lookAtFile(rootfs, CRON_FILE, last, MAX_FILE_BYTES)

/**
 * The jobs of all computers: what is written in each one's cron.json, looked at without bringing anything up. The database
 * has the last good version, which counts while the file is broken or the computer's disk is not mounted.
 */
export class Crontabs {
  /** Of computers that have jobs or an error. */
  private readonly tabs = new Map<string, Crontab & { computer: ComputerRow }>()
  /** No job is due before. */
  private earliest = Number.POSITIVE_INFINITY
  private lastDue = 0

  constructor(
    private readonly deps: CrontabDeps,
    now: number,
  ) {
    const { cron, computers } = deps.store
    const jobs = Map.groupBy(cron.jobs(), ({ computerId }) => computerId)
    const errors = new Map(cron.errors().map(({ computerId, error }) => [computerId, error]))
    for (const computer of computers.all()) {
      const [rows, error] = [jobs.get(computer.id) ?? [], errors.get(computer.id) ?? null]
      this.set(computer, { entries: rows.flatMap((row) => entryOf(row, now) ?? []), error, stamp: null })
    }
  }

  /** Takes a look at the file, and takes over what is new. */
  look(computer: ComputerRow, now: number): void {
    const known = this.of(computer.id)
    const look = this.deps.look(computer, known.stamp)
    if (look.kind === 'away' || look.kind === 'same') return
    if (look.kind === 'none') {
      this.take(computer, { jobs: [], error: null, stamp: null }, now)
      return
    }
    // Of a file that is broken nothing counts: what was good last goes on.
    const good = known.entries.map(({ job }) => job)
    const { stamp } = look
    if (look.kind === 'refused') {
      this.take(computer, { jobs: good, error: `cron.json ${look.reason}`, stamp }, now)
      return
    }
    const file = readCronFile(look.bytes)
    this.take(computer, { jobs: file.kind === 'good' ? file.jobs : good, error: file.error, stamp }, now)
  }

  of(computerId: string): Readonly<Crontab> {
    return this.tabs.get(computerId) ?? NOTHING
  }

  forget(computerId: string): void {
    this.tabs.delete(computerId)
  }

  /** Jobs whose time has come, each at most once for any time; what was missed is left out. */
  due(now: number): Due[] {
    const clockWasSet = now < this.lastDue - CLOCK_STEP_MS
    this.lastDue = now
    if (now < this.earliest && !clockWasSet) return []
    const due: Due[] = []
    this.earliest = Number.POSITIVE_INFINITY
    for (const { computer, entries } of this.tabs.values()) {
      for (const entry of entries) {
        if (clockWasSet) entry.nextAt = nextAt(entry.job, now)
        if (entry.nextAt !== null && entry.nextAt <= now) {
          const plannedAt = notMissed(computer, entry.job, entry.nextAt, now)
          if (plannedAt !== null && plannedAt <= now) due.push({ computer, entry, plannedAt })
          entry.nextAt = nextAt(entry.job, now)
        }
        this.earliest = Math.min(this.earliest, entry.nextAt ?? Number.POSITIVE_INFINITY)
      }
    }
    return due
  }

  /** @param next what counts from now on */
  private take(computer: ComputerRow, next: Omit<Crontab, 'entries'> & { jobs: CronJob[] }, now: number): void {
    const { jobs, error, stamp } = next
    const known = this.of(computer.id)
    const specs = jobs.map((job) => ({ name: job.name, spec: JSON.stringify(job) }))
    const before = known.entries.map(({ job }) => JSON.stringify(job))
    const isSame =
      error === known.error &&
      before.length === specs.length &&
      specs.every(({ spec }, index) => spec === before[index])
    const rows = isSame ? null : this.deps.store.cron.put(computer.id, { jobs: specs, error })
    // What has not changed keeps its next time, which may be this very moment.
    const kept = new Map(known.entries.map((entry, index) => [before[index], entry]))
    const entries = rows?.flatMap((row) => kept.get(row.spec) ?? entryOf(row, now) ?? []) ?? known.entries
    this.set(computer, { entries, error, stamp })
  }

  private set(computer: ComputerRow, tab: Crontab): void {
    if (tab.entries.length === 0 && tab.error === null && tab.stamp === null) this.tabs.delete(computer.id)
    else this.tabs.set(computer.id, { computer, ...tab })
    for (const { nextAt } of tab.entries) this.earliest = Math.min(this.earliest, nextAt ?? Number.POSITIVE_INFINITY)
  }
}

function entryOf({ spec, lastFiredAt }: CronJobRow, now: number): Entry | null {
  const job = readStoredJob(spec)
  if (job === null) return null
  const clockWasSetBack = lastFiredAt !== null && lastFiredAt > now && lastFiredAt - now < CLOCK_STEP_MS
  return { job, nextAt: nextAt(job, clockWasSetBack ? lastFiredAt : now), lastFiredAt }
}

/** The time itself, or the first after it that was not missed. */
function notMissed(computer: ComputerRow, job: CronJob, plannedAt: number, now: number): number | null {
  if (now - plannedAt <= MISSED_AFTER_MS) return plannedAt
  log('warn', 'a time of cron was missed', { computer: computer.shortId, job: job.name })
  return nextAt(job, now - MISSED_AFTER_MS)
}

const nextAt = (job: CronJob, after: number): number | null => (job.enabled ? nextTime(job.schedule, after) : null)
