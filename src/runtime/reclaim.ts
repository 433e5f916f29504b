import type { Cgroups } from './cgroup.ts'
import { type PageRanges, prefetch, workingSet } from './working-set.ts'

export interface Reclaimed {
  /** Bytes that the agent is still charged for. */
  residentBytes: number
  /** Bytes of it that are in swap. */
  swappedBytes: number
  durationMs: number
}

/** The second way to sleep: the frozen tree stays, its memory goes to swap and comes back as it is touched. */
export class Reclaims {
  /** By name of the computer, what each process had in memory when it was pushed out. */
  private readonly workingSets = new Map<string, Map<number, PageRanges>>()

  constructor(private readonly cgroups: Cgroups) {}

  /**
   * Pushes the memory of the frozen agent to swap, as far as there is room, and gives its page cache back.
   * @param signal ends it at once: what is out by then stays out
   */
  async reclaim(name: string, signal: AbortSignal): Promise<Reclaimed> {
    const started = performance.now()
    const pids = this.cgroups.processes(name, 'agent')
    const sets = new Map<number, PageRanges>()
    for (const pid of pids) {
      if (!signal.aborted) sets.set(pid, await workingSet(pid))
    }
    this.workingSets.set(name, sets)
    await this.cgroups.reclaimAgent(name, signal)
    return {
      residentBytes: this.cgroups.agentMemory(name),
      swappedBytes: this.cgroups.agentSwap(name),
      durationMs: performance.now() - started,
    }
  }

  forget(name: string): void {
    this.workingSets.delete(name)
  }

  /** The agent is about to run on: what it used last is read ahead. Returns at once. */
  readAhead(name: string): void {
    const sets = this.workingSets.get(name)
    if (!sets) return
    this.workingSets.delete(name)
    for (const pid of this.cgroups.processes(name, 'agent')) {
      const ranges = sets.get(pid)
      if (ranges) prefetch(pid, ranges)
    }
  }
}
