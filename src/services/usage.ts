import type { Settings } from '../config.ts'
import { OrbError } from '../errors.ts'
import { log } from '../log.ts'
import type { UsageRow } from '../store/types.ts'
import type { UsageRepository } from '../store/usage.ts'
import { isoTime, parseTime } from '../time.ts'
import type { FindComputer } from './lookup.ts'
import type { Services } from './types.ts'

/** Units of the Orb Cloud contract §18: a GB is 1024 MB, a month 720 hours. */
const MB_PER_GB = 1024
const HOUR_MS = 3_600_000
const HOURS_PER_MONTH = 720
const WINDOW_MS = 30 * 24 * HOUR_MS

/** Decimals of what goes out. */
const AMOUNT_DECIMALS = 6
const PERCENT_DECIMALS = 2
/** A rate counts to 12 decimals of a dollar. */
const RATE_UNITS = 1e12

/** How often orb writes down that it looks after the agents: a power cut costs that much of the time in RAM at most. */
const SEEN_EVERY_MS = 60_000

const MB_MS_PER_GB_HOUR = BigInt(MB_PER_GB * HOUR_MS)

/** Of a computer that by the clock is not made yet. */
const NOTHING = { existsMs: 0, ramMs: 0, nvmeMs: 0, checkpoints: 0, failures: 0, restores: 0, restoreMs: 0 }

export interface UsageDeps {
  settings: Pick<Settings, 'rateRuntime' | 'rateDisk'>
  usage: UsageRepository
  findComputer: FindComputer
}

/** Orb Cloud contract §18. */
export function createUsage({ settings, usage, findComputer }: UsageDeps): Services['usage'] {
  return {
    read(who, { computer, ...times }) {
      const { from, to } = periodOf(times, usage.now())
      const id = computer === undefined ? null : usage.find(who.orgId, computer)
      if (computer !== undefined && id === null) throw new OrbError('not_found', 'no such computer')
      const rows = id === null ? usage.ofOrg(who.orgId, { from, to }) : rowsOf(usage.ofComputer(id, { from, to }))
      const sum = (read: (row: UsageRow) => number) => rows.reduce((total, row) => total + read(row), 0)
      return {
        period_start: isoTime(from),
        period_end: isoTime(to),
        runtime_gb_hours: gbHours(runtimeOf(rows)),
        disk_gb_hours: gbHours(diskOf(rows)),
        checkpoint_cycles: sum((row) => row.checkpoints),
        computers_created: sum((row) => row.created),
        computers_destroyed: sum((row) => row.deleted),
        ...(id === null ? {} : { computer_id: id }),
      }
    },

    stats(who, id, window) {
      const computer = findComputer(who, id)
      const now = usage.now()
      const from = window === 'lifetime' ? computer.createdAt : now - WINDOW_MS
      const row = usage.ofComputer(computer.id, { from, to: Number.MAX_SAFE_INTEGER })
      const rows = rowsOf(row)
      const { existsMs, ramMs, nvmeMs, checkpoints, failures, restores, restoreMs } = row ?? NOTHING
      const activeAt = usage.activeAt(computer.id)
      const wallSecs = seconds(existsMs)
      const percent = (ms: number) =>
        wallSecs === 0 ? 0 : rounded(BigInt(ms) * 100n, BigInt(existsMs), PERCENT_DECIMALS)
      return {
        computer_id: computer.id,
        window,
        period_start: isoTime(from),
        period_end: isoTime(now),
        wall_secs: wallSecs,
        active_secs: seconds(ramMs),
        sleep_secs: seconds(nvmeMs),
        sleep_pct: percent(nvmeMs),
        active_pct: percent(ramMs),
        llm_calls: usage.calls(computer.id, from),
        checkpoints,
        // Orb writes whole images only.
        ckpt_full: checkpoints,
        ckpt_incremental: 0,
        failures,
        runtime_gb_hours: gbHours(runtimeOf(rows)),
        disk_gb_hours: gbHours(diskOf(rows)),
        est_cost_usd: costOf(rows, settings),
        last_active_ago_secs: activeAt === null ? null : seconds(Math.max(0, now - activeAt)),
        avg_restore_ms: restores > 0 ? rounded(BigInt(restoreMs), BigInt(restores), 0) : null,
      }
    },
  }
}

/** Writes down now and again that orb looks after the agents, until the returned function is called. */
export function keepSeen(usage: UsageRepository): () => void {
  const seen = () => {
    try {
      usage.seen()
    } catch (error) {
      log('warn', 'that orb is there could not be written down', { error })
    }
  }
  seen()
  const timer = setInterval(seen, SEEN_EVERY_MS)
  return () => {
    clearInterval(timer)
    seen()
  }
}

/** @throws OrbError invalid_request */
function periodOf(times: { start?: string; end?: string }, now: number): { from: number; to: number } {
  const to = times.end === undefined ? now : (parseTime(times.end) ?? Number.NaN)
  const from = times.start === undefined ? to - WINDOW_MS : (parseTime(times.start) ?? Number.NaN)
  if (!(from < to)) {
    const end = times.end === undefined ? 'now, which is the end of the period' : 'end'
    throw new OrbError('invalid_request', `start must be before ${end}`)
  }
  return { from, to }
}

const rowsOf = (row: UsageRow | null): UsageRow[] => (row ? [row] : [])

/** Both in MB times ms. */
const runtimeOf = (rows: UsageRow[]): bigint =>
  rows.reduce((total, row) => total + BigInt(row.runtimeMb) * BigInt(row.ramMs), 0n)
const diskOf = (rows: UsageRow[]): bigint =>
  rows.reduce((total, row) => total + BigInt(row.diskMb) * BigInt(row.existsMs), 0n)

const gbHours = (mbMs: bigint): number => rounded(mbMs, MB_MS_PER_GB_HOUR, AMOUNT_DECIMALS)

/** In dollars, by rates in dollars per GB-hour in RAM and per GB-month on disk. */
function costOf(rows: UsageRow[], { rateRuntime, rateDisk }: UsageDeps['settings']): number {
  const units = (rate: number) => BigInt(Math.round(rate * RATE_UNITS))
  const runtime = runtimeOf(rows) * units(rateRuntime) * BigInt(HOURS_PER_MONTH)
  const disk = diskOf(rows) * units(rateDisk)
  return rounded(runtime + disk, MB_MS_PER_GB_HOUR * BigInt(HOURS_PER_MONTH) * BigInt(RATE_UNITS), AMOUNT_DECIMALS)
}

/** `numerator / denominator`, not negative, rounded half up. */
function rounded(numerator: bigint, denominator: bigint, decimals: number): number {
  const scale = 10 ** decimals
  return Number((2n * numerator * BigInt(scale) + denominator) / (2n * denominator)) / scale
}

const seconds = (ms: number): number => rounded(BigInt(ms), 1000n, 0)
