type Kind = 'restore' | 'dump'

/**
 * Dumps and restores at once: one per core (Orb Cloud contract §20), restores first. Somebody waits for a restore;
 * nobody waits for a dump.
 */
export class Slots {
  private free: number
  private readonly waiting: Record<Kind, (() => void)[]> = { restore: [], dump: [] }

  constructor(cores: number) {
    this.free = Math.max(1, cores)
  }

  /** Runs `work` when it is its turn. */
  async run<T>(kind: Kind, work: () => Promise<T>): Promise<T> {
    if (this.free > 0) this.free--
    else await new Promise<void>((resolve) => this.waiting[kind].push(resolve))
    try {
      return await work()
    } finally {
      const next = this.waiting.restore.shift() ?? this.waiting.dump.shift()
      if (next) next()
      else this.free++
    }
  }
}
