type Kind = 'restore' | 'dump'

/**
 * Dumps and restores at once: one per core (Orb Cloud contract §20), restores first. Somebody waits for a restore,
 * nobody waits for a dump: where there are several places, dumps never take the last one.
 */
export class Slots {
  private free: number
  private freeForDumps: number
  private readonly waiting: Record<Kind, (() => void)[]> = { restore: [], dump: [] }

  constructor(cores: number) {
    this.free = Math.max(1, cores)
    this.freeForDumps = Math.max(1, cores - 1)
  }

  /** Runs `work` when it is its turn. Null: `unwanted` aborted before that, and it was not run. */
  async run<T>(kind: Kind, work: () => Promise<T>, unwanted?: AbortSignal): Promise<T | null> {
    if (this.isFree(kind)) this.take(kind)
    else if (!(await this.turn(kind, unwanted))) return null
    try {
      return await work()
    } finally {
      this.free++
      if (kind === 'dump') this.freeForDumps++
      for (const next of ['restore', 'dump'] as const) this.admit(next)
    }
  }

  private isFree(kind: Kind): boolean {
    return this.free > 0 && (kind === 'restore' || this.freeForDumps > 0)
  }

  private take(kind: Kind): void {
    this.free--
    if (kind === 'dump') this.freeForDumps--
  }

  private admit(kind: Kind): void {
    while (this.isFree(kind)) {
      const next = this.waiting[kind].shift()
      if (!next) return
      this.take(kind)
      next()
    }
  }

  /** True: it is its turn, and a place is taken for it. False: it is unwanted. */
  private turn(kind: Kind, unwanted?: AbortSignal): Promise<boolean> {
    const queue = this.waiting[kind]
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
