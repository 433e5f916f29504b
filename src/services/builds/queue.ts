export interface Queued<T> {
  /** Later callers with the same kind join it while it waits. */
  kind: string
  run(): Promise<T>
}

interface Entry<J, T> {
  job: J
  done: Promise<T>
  start(): void
}

/**
 * Runs jobs of one key one at a time, in order. While one waits, whoever asks for the same kind joins it and shares its
 * answer.
 */
export class Queue<J extends Queued<T>, T> {
  /** The first of each lane runs, the others wait. */
  private readonly lanes = new Map<string, Entry<J, T>[]>()

  /** The job of that kind that waits for its turn. */
  waiting(key: string, kind: string): { job: J; done: Promise<T> } | undefined {
    return this.lanes
      .get(key)
      ?.slice(1)
      .find(({ job }) => job.kind === kind)
  }

  /** All that run or wait. */
  jobs = (key: string): J[] => (this.lanes.get(key) ?? []).map(({ job }) => job)

  /** Appends a job; the answer is that of its run. */
  add(key: string, job: J): Promise<T> {
    const { promise, resolve, reject } = Promise.withResolvers<T>()
    // Nobody may be listening any more; whoever is has the promise itself.
    promise.catch(() => {})
    // The turn is passed on first: whoever has his answer finds the job gone.
    const start = () =>
      void job.run().then(
        (answer) => {
          this.next(key)
          resolve(answer)
        },
        (thrown: unknown) => {
          this.next(key)
          reject(thrown)
        },
      )
    const lane = this.lanes.get(key) ?? []
    this.lanes.set(key, lane)
    lane.push({ job, done: promise, start })
    if (lane.length === 1) start()
    return promise
  }

  /** After everything that runs or waits now. */
  async idle(key: string): Promise<void> {
    await Promise.allSettled((this.lanes.get(key) ?? []).map(({ done }) => done))
  }

  private next(key: string): void {
    const lane = this.lanes.get(key)
    lane?.shift()
    if (lane?.[0]) lane[0].start()
    else this.lanes.delete(key)
  }
}
