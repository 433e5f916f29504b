/** Places that several share: a free one goes to whoever of those that wait has the fewest, and among equals round about. */
export class Places {
  private readonly taken = new Map<string, number>()
  /** By owner, who was admitted last comes last. */
  private readonly waiting = new Map<string, (() => void)[]>()

  constructor(private free: number) {}

  /** Runs `work` when there is a place for it. */
  async run<T>(owner: string, work: () => Promise<T>): Promise<T> {
    await new Promise<void>((begin) => {
      this.waiting.set(owner, [...(this.waiting.get(owner) ?? []), begin])
      this.admitNext()
    })
    try {
      return await work()
    } finally {
      this.free++
      this.count(owner, -1)
      this.admitNext()
    }
  }

  private admitNext(): void {
    if (this.free === 0) return
    const owners = [...this.waiting.keys()]
    const fewest = Math.min(...owners.map(this.takenBy))
    const owner = owners.find((one) => this.takenBy(one) === fewest)
    if (owner === undefined) return
    const [begin, ...rest] = this.waiting.get(owner) ?? []
    this.waiting.delete(owner)
    if (rest.length > 0) this.waiting.set(owner, rest)
    this.free--
    this.count(owner, 1)
    begin?.()
  }

  private takenBy = (owner: string): number => this.taken.get(owner) ?? 0

  private count(owner: string, change: number): void {
    const now = this.takenBy(owner) + change
    if (now === 0) this.taken.delete(owner)
    else this.taken.set(owner, now)
  }
}
