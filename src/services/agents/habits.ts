/** The answers whose times are remembered. */
const REMEMBERED_WAITS = 16
/** After a dump that failed, the next one by itself waits this long; each further failure doubles it. */
export const FIRST_BACKOFF_MS = 10_000
export const LONGEST_BACKOFF_MS = 30 * 60_000

/** What was learned of one agent: how long its answers take, what its dumps and restores cost, whether dumps fail. */
export class Habits {
  private readonly waits: number[] = []
  private lastDumpMs: number | null = null
  private lastRestoreMs: number | null = null
  private failures = 0
  private retryAt = 0

  /** @param now milliseconds of a clock that only goes forward */
  constructor(private readonly now: () => number = () => performance.now()) {}

  /** Times to the first byte, in ms, oldest first. */
  get history(): readonly number[] {
    return this.waits
  }

  get dumpMs(): number | null {
    return this.lastDumpMs
  }

  get restoreMs(): number | null {
    return this.lastRestoreMs
  }

  /** Time until a dump may be tried again by itself, in ms; 0: now. */
  get dumpBackoffMs(): number {
    return Math.max(0, this.retryAt - this.now())
  }

  /** An answer began after this wait. */
  answered(waitedMs: number): void {
    this.waits.push(waitedMs)
    if (this.waits.length > REMEMBERED_WAITS) this.waits.shift()
  }

  /** @param ms null when it says nothing of another dump */
  dumped(ms: number | null): void {
    if (ms !== null) this.lastDumpMs = ms
    this.failures = 0
    this.retryAt = 0
  }

  dumpFailed(): void {
    const backoff = Math.min(LONGEST_BACKOFF_MS, FIRST_BACKOFF_MS * 2 ** this.failures)
    this.failures++
    this.retryAt = this.now() + backoff
  }

  restored(ms: number): void {
    this.lastRestoreMs = ms
  }

  /** Another program may run now: nothing is known of it. */
  startedAnew(): void {
    this.waits.length = 0
    this.lastDumpMs = null
    this.lastRestoreMs = null
    this.failures = 0
    this.retryAt = 0
  }
}
