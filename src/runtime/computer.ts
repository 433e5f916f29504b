import type { Cgroups, Leaf, Limits } from './cgroup.ts'

/** What the runtime has to know of a computer. */
export interface ComputerSpec {
  id: string
  shortId: string
  /** 1 and up; says its address. */
  slot: number
  runtimeMb: number
  diskMb: number
  /** Name of its base image. */
  base: string
}

const MB = 1024 * 1024
/** Processes and threads of one computer (Orb Cloud contract §10). */
const MAX_PROCESSES = 4096
const CPU_PERIOD_US = 100_000
/** What is left of the last core for orb itself, in each period: one computer must not be able to stop the server. */
const CPU_RESERVE_US = 10_000

export const limitsOf = (spec: ComputerSpec, memoryMultiplier: number, cores: number): Limits => ({
  softBytes: spec.runtimeMb * MB,
  hardBytes: spec.runtimeMb * memoryMultiplier * MB,
  pids: MAX_PROCESSES,
  cpuQuotaUs: cores * CPU_PERIOD_US - CPU_RESERVE_US,
})

/** /dev/shm holds half of the memory budget (Orb Cloud contract §10). */
export const shmBytes = (spec: ComputerSpec): number => (spec.runtimeMb * MB) / 2

const POLL_MS = 2

/** Waits until `done`, looking every few milliseconds; false when `timeoutMs` passed first. */
export async function until(done: () => boolean, timeoutMs: number): Promise<boolean> {
  const deadline = performance.now() + timeoutMs
  while (!done()) {
    if (performance.now() > deadline) return false
    await Bun.sleep(POLL_MS)
  }
  return true
}

const KILL_TIMEOUT_MS = 10_000

/** Kills all of a leaf and waits until it is empty. @throws Error when something survives, as in uninterruptible I/O */
export async function killLeaf(cgroups: Cgroups, name: string, leaf: Leaf): Promise<void> {
  if (!cgroups.isPopulated(name, leaf)) return
  if (leaf === 'agent') cgroups.setFrozen(name, false)
  cgroups.kill(name, leaf)
  if (await until(() => !cgroups.isPopulated(name, leaf), KILL_TIMEOUT_MS)) return
  throw new Error(`processes of ${name} do not end`)
}
