const UNIT_MS = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 } as const

const isUnit = (text: string): text is keyof typeof UNIT_MS => text in UNIT_MS

/**
 * Milliseconds of `500ms`, `30s`, `10m`, `1h`, `1.5h`, or of a bare number, which counts seconds (Orb Cloud contract §1.1).
 * Null for anything else.
 */
export function parseDuration(text: string): number | null {
  const match = /^(\d+(?:\.\d+)?)(ms|s|m|h)?$/.exec(text.trim())
  if (!match) return null
  const unit = match[2] ?? 's'
  if (!isUnit(unit)) return null
  const ms = Math.round(Number(match[1]) * UNIT_MS[unit])
  return Number.isSafeInteger(ms) ? ms : null
}

/** `2026-04-19T04:05:00Z`: UTC in whole seconds, the form of every timestamp that goes out (Orb Cloud contract §1.2). */
export const isoTime = (ms: number): string => `${new Date(ms).toISOString().slice(0, 19)}Z`

export const isoTimeOrNull = (ms: number | null): string | null => (ms === null ? null : isoTime(ms))

const DATE = /^(\d{4})-(\d{2})-(\d{2})$/
const HOURS_PER_DAY = 24
const MINUTES_PER_HOUR = 60
const SECONDS_PER_MINUTE = 60

/**
 * Milliseconds since the epoch of `2026-04-19T04:05:00Z` with any fraction and offset (RFC 3339), or of `2026-04-19`, which
 * is its midnight UTC (Orb Cloud contract §1.2). Null for anything else.
 */
export function parseTime(text: string): number | null {
  // In a query string an unescaped + arrives as a space.
  const match = /^([\d-]{10})(?:[Tt ](\d{2}):(\d{2}):(\d{2})(\.\d+)?(?:[Zz]|([+ -])(\d{2}):(\d{2})))?$/.exec(text)
  const [, year = '', month = '', day = ''] = DATE.exec(match?.[1] ?? '') ?? []
  const midnight = Date.parse(`${year}-${month}-${day}T00:00:00Z`)
  // A day that the month does not have becomes one of the next.
  if (!match || Number.isNaN(midnight) || new Date(midnight).getUTCDate() !== Number(day)) return null
  const part = (at: number) => Number(match[at] ?? 0)
  const [hours, minutes, seconds, offsetHours, offsetMinutes] = [part(2), part(3), part(4), part(7), part(8)]
  // Second 60 is a leap second.
  if (hours >= HOURS_PER_DAY || minutes >= MINUTES_PER_HOUR || seconds > SECONDS_PER_MINUTE) return null
  if (offsetHours >= HOURS_PER_DAY || offsetMinutes >= MINUTES_PER_HOUR) return null
  const offset = (offsetHours * MINUTES_PER_HOUR + offsetMinutes) * (match[6] === '-' ? -1 : 1)
  const fraction = Math.floor(part(5) * 1000)
  return midnight + ((hours * MINUTES_PER_HOUR + minutes - offset) * SECONDS_PER_MINUTE + seconds) * 1000 + fraction
}
