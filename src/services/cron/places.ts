import type { ComputerRow } from '../../store/types.ts'
import type { CronJob } from '../types.ts'

/** Runs at once of the server: Orb Cloud contract §15.2. The others leave room for everybody else beside runs of hours. */
const RUNS_AT_ONCE = 16
const RUNS_OF_ORG = 8
const RUNS_OF_COMPUTER = 4

interface Placed {
  computer: ComputerRow
  job: CronJob
}

/** Who has a place to run, and who waits for one. */
export class Places<Run extends Placed> {
  private readonly running = new Set<Run>()
  /** By computer id, which take turns: the one that was served last is last. Those of one computer in their order. */
  private readonly waiting = new Map<string, Run[]>()
  /** How many wait, by computer id and job name. */
  private readonly waitingOfJob = new Map<string, number>()

  /** Those that have a place. */
  all(): Run[] {
    return [...this.running]
  }

  isWaiting(computerId: string, jobName: string): boolean {
    return this.waitingOfJob.has(keyOf(computerId, jobName))
  }

  /** Whether a run of this job has a place or waits for one. */
  isBusy(computerId: string, jobName: string): boolean {
    if (this.isWaiting(computerId, jobName)) return true
    return this.all().some(({ computer, job }) => computer.id === computerId && job.name === jobName)
  }

  add(run: Run): void {
    const { id } = run.computer
    const others = this.waiting.get(id)
    if (others) others.push(run)
    else this.waiting.set(id, [run])
    this.count(run, 1)
  }

  /** Gives the free places away: each to the organisation with the fewest, and of its computers to the one with the fewest. */
  fill(): Run[] {
    const begun: Run[] = []
    for (let run = this.next(); run !== null; run = this.next()) {
      this.drop(run)
      const { id } = run.computer
      const others = this.waiting.get(id)
      if (others) {
        this.waiting.delete(id)
        this.waiting.set(id, others)
      }
      this.running.add(run)
      begun.push(run)
    }
    return begun
  }

  /** It runs no more. */
  leave(run: Run): void {
    this.running.delete(run)
  }

  /** It waits no more. Returns false if it did not wait. */
  drop(run: Run): boolean {
    const { id } = run.computer
    const before = this.waiting.get(id) ?? []
    const index = before.indexOf(run)
    if (index < 0) return false
    before.splice(index, 1)
    if (before.length === 0) this.waiting.delete(id)
    this.count(run, -1)
    return true
  }

  /** Nobody waits any more. Returns those that did. */
  dropAll(): Run[] {
    const dropped = [...this.waiting.values()].flat()
    this.waiting.clear()
    this.waitingOfJob.clear()
    return dropped
  }

  private next(): Run | null {
    if (this.running.size >= RUNS_AT_ONCE) return null
    const computers = countBy(this.running, ({ computer }) => computer.id)
    const orgs = countBy(this.running, ({ computer }) => computer.orgId)
    let least: { run: Run; org: number; own: number } | null = null
    for (const [computerId, [run]] of this.waiting) {
      if (!run) continue
      const [org, own] = [orgs.get(run.computer.orgId) ?? 0, computers.get(computerId) ?? 0]
      if (org >= RUNS_OF_ORG || own >= RUNS_OF_COMPUTER) continue
      if (least === null || org < least.org || (org === least.org && own < least.own)) least = { run, org, own }
    }
    return least?.run ?? null
  }

  private count({ computer, job }: Run, change: 1 | -1): void {
    const key = keyOf(computer.id, job.name)
    const count = (this.waitingOfJob.get(key) ?? 0) + change
    if (count === 0) this.waitingOfJob.delete(key)
    else this.waitingOfJob.set(key, count)
  }
}

const keyOf = (computerId: string, jobName: string): string => `${computerId}/${jobName}`

function countBy<Item>(items: Iterable<Item>, keyOfItem: (item: Item) => string): Map<string, number> {
  const counts = new Map<string, number>()
  for (const item of items) counts.set(keyOfItem(item), (counts.get(keyOfItem(item)) ?? 0) + 1)
  return counts
}
