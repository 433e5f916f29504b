import { OrbError } from '../errors.ts'

const WINDOW_MS = 60_000

/** Counts calls per address in windows of a minute. The function throws `rate_limited` above `limit`. */
export function createRateLimit(limit: number, now: () => number = () => performance.now()): (address: string) => void {
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
    if (count <= limit) return
    const retryAfter = Math.ceil((windowStart + WINDOW_MS - at) / 1000)
    throw new OrbError('rate_limited', `more than ${limit} requests in a minute`, { retry_after_secs: retryAfter })
  }
}
