type Kind = 'restore' | 'dump'
/** `unasked`: a dump that nobody has asked for. */
type Lane = Kind | 'unasked'

const LANES = ['restore', 'dump', 'unasked'] as const

/** How long dumps that nobody has asked for are held up within any `HOLD_WINDOW_MS`: others need the memory. */
const LONGEST_HOLD_MS = 15_000
const HOLD_WINDOW_MS = 60_000

/**
 * Dumps and restores at once: one per core (Orb Cloud contract §20), restores first, dumps that nobody has asked for last.
 * Somebody waits for a restore, hardly anybody for a dump: where there are several places, dumps never take the last one.
 */
export class Slots {
  private free: number
  private freeForDumps: number
  private readonly waiting: Record<Lane, (() => void)[]> = { restore: [], dump: [], unasked: [] }
  private holders = 0
  private hold: { began: number; timer: NodeJS.Timeout } | null = null
  private pastHolds: { began: number; ended: number }[] = []

  constructor(cores: number) {
    this.free = Math.max(1, cores)
    this.freeForDumps = Math.max(1, cores - 1)
  }

  /** Runs `work` when it is its turn. Null: `unwanted`, of a dump that nobody has asked for, aborted before that, and it was not run. */
  async run<T>(kind: Kind, work: () => Promise<T>, unwanted?: AbortSignal): Promise<T | null> {
    const lane = unwanted ? 'unasked' : kind
    if (this.isFree(lane)) this.take(kind)
    else if (!(await this.turn(lane, unwanted))) return null
    try {
      return await work()
    } finally {
      this.free++
      if (kind === 'dump') this.freeForDumps++
      this.admitAll()
    }
  }

  /**
   * Dumps that nobody has asked for do not begin until the returned function is called, or 15 s of a minute are over:
   * somebody needs the processors.
   */
  holdUnasked(): () => void {
    this.holders++
    if (!this.hold) this.beginHold()
    let held = true
    return () => {
      if (!held) return
      held = false
      this.holders--
      if (this.holders === 0) this.endHold()
    }
  }

  private beginHold(): void {
    const began = performance.now()
    const since = began - HOLD_WINDOW_MS
    this.pastHolds = this.pastHolds.filter((past) => past.ended > since)
    const spent = this.pastHolds.reduce((sum, past) => sum + past.ended - Math.max(past.began, since), 0)
    if (spent >= LONGEST_HOLD_MS) return
    this.hold = { began, timer: setTimeout(() => this.endHold(), LONGEST_HOLD_MS - spent) }
  }

  private endHold(): void {
    if (!this.hold) return
    clearTimeout(this.hold.timer)
    this.pastHolds.push({ began: this.hold.began, ended: performance.now() })
    this.hold = null
    this.admitAll()
  }

  private isFree(lane: Lane): boolean {
    if (this.free === 0 || (lane !== 'restore' && this.freeForDumps === 0)) return false
    return lane !== 'unasked' || this.hold === null
  }

  private take(kind: Kind): void {
    this.free--
    if (kind === 'dump') this.freeForDumps--
  }

  private admitAll(): void {
    for (const lane of LANES) {
      while (this.isFree(lane)) {
        const next = this.waiting[lane].shift()
        if (!next) break
        this.take(lane === 'unasked' ? 'dump' : lane)
        next()
      }
    }
  }

  /** True: it is its turn, and a place is taken for it. False: it is unwanted. */
  private turn(lane: Lane, unwanted?: AbortSignal): Promise<boolean> {
    const queue = this.waiting[lane]
    return new Promise((resolve) => {
      const begin = () => {
        unwanted?.removeEventListener('abort', leave)
        resolve(true)
      }
      const leave = () => {
        queue.splice(queue.indexOf(begin), 1)
        resolve(false)
      }
      unwanted?.addEventListener('abort', leave, { once: true })
      queue.push(begin)
    })
  }
}
