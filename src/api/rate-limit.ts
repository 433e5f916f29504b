import { OrbError } from '../errors.ts'

const WINDOW_MS = 60_000

/** What a client may still do: answers carry it as `RateLimit-Limit`, `-Remaining` and `-Reset` (seconds). */
export interface Allowance {
  limit: number
  remaining: number
  resetSecs: number
}

/**
 * Counts calls per address in windows of a minute, this one included. Above `limit` the error of the answer is `rate_limited`.
 */
export function createRateLimit(
  limit: number,
  now: () => number = () => performance.now(),
): (address: string) => { allowance: Allowance; refusal: OrbError | null } {
  let windowStart = Number.NEGATIVE_INFINITY
  let counts = new Map<string, number>()
  return (address) => {
    const at = now()
    if (at - windowStart >= WINDOW_MS) {
      windowStart = at
      counts = new Map()
    }
    const count = (counts.get(address) ?? 0) + 1
    counts.set(address, count)
    const resetSecs = Math.ceil((windowStart + WINDOW_MS - at) / 1000)
    const allowance = { limit, remaining: Math.max(0, limit - count), resetSecs }
    if (count <= limit) return { allowance, refusal: null }
    const message = `more than ${limit} requests in a minute`
    return { allowance, refusal: new OrbError('rate_limited', message, { retry_after_secs: resetSecs }) }
  }
}
