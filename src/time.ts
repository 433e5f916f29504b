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
