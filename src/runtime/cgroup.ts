import {
  existsSync,
  type FSWatcher,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  statSync,
  watch,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { log } from '../log.ts'
import { HOST_ENVIRONMENT, run } from './command.ts'
import { errnoCode } from './libc.ts'

/** What a command beside the agent is for. */
export const PURPOSES = ['exec', 'build', 'cron', 'terminal'] as const
export type Purpose = (typeof PURPOSES)[number]

/** Parts of a computer: its pid 1, its agent's tree, and everything beside the agent, one cgroup a command. */
export type Leaf = 'init' | 'agent' | `${Purpose}-${string}`

export interface Limits {
  /** Guaranteed: reclaimed last. */
  softBytes: number
  /** Beyond this the kernel kills. */
  hardBytes: number
  /** Processes and threads. */
  pids: number
  /** Microseconds of CPU time in each 100 ms, all cores together. */
  cpuQuotaUs: number
}

const KB = 1024
const CPU_PERIOD_US = 100_000
/** Memory that has no file behind it is as good to push out as any other. */
const RECLAIM_SWAPPINESS = '100'
/**
 * Pages that the disk has not taken yet when the kernel comes by are given up only at another pass. Passes end when there is
 * little left, when one gains little, and after this many.
 */
const RECLAIM_PASSES = 8
const RECLAIM_PAUSE_MS = 30
const RECLAIM_REST_BYTES = 4 * 1024 * 1024
const RECLAIM_LEAST_BYTES = 1024 * 1024
/** With the multi-generational LRU the kernel searches on for many seconds when all that can go is gone: it is stopped then. */
const RECLAIM_STALL_MS = 200
/** The directory above all computers, in each hierarchy. systemd leaves alone what it did not make. */
const PARENT = 'orb'
const CONTROLLERS = ['memory', 'pids', 'cpu'] as const
type Controller = (typeof CONTROLLERS)[number]

/**
 * The cgroups of computers. Processes are frozen, killed and watched through the v2 hierarchy, which is there on every
 * supported host; each controller is taken from v2 where v2 has it and from its v1 hierarchy otherwise (hybrid hosts).
 */
export class Cgroups {
  private readonly v1 = new Map<Controller, string>()
  private readonly v2Controllers: Controller[]

  /** @param root the v2 mount, @param v1Root where v1 hierarchies are mounted */
  constructor(
    private readonly root: string,
    v1Root: string,
  ) {
    const available = readFileSync(join(root, 'cgroup.controllers'), 'utf8').trim().split(' ')
    this.v2Controllers = CONTROLLERS.filter((name) => available.includes(name))
    for (const name of CONTROLLERS) {
      const mount = join(v1Root, name)
      if (this.v2Controllers.includes(name)) continue
      if (!existsSync(join(mount, 'cgroup.procs'))) throw new Error(`no cgroup hierarchy has the ${name} controller`)
      this.v1.set(name, mount)
    }
  }

  /** The hierarchies of this host. @throws Error when cgroup v2 is not mounted at all, or a controller is missing */
  static detect(): Cgroups {
    const root = ['/sys/fs/cgroup', '/sys/fs/cgroup/unified'].find((dir) => existsSync(join(dir, 'cgroup.controllers')))
    if (!root) throw new Error('cgroup v2 is not mounted at /sys/fs/cgroup or /sys/fs/cgroup/unified')
    return new Cgroups(root, '/sys/fs/cgroup')
  }

  /**
   * Lets processes change their cgroup at once. As it comes, the kernel waits for a quiet moment of every core first,
   * which each wake and each command would pay with some 5 ms; in return every fork of the host costs nanoseconds more.
   * Kernels before 6.0 do not know this.
   */
  async allowQuickMoves(): Promise<void> {
    await run(['mount', '-o', 'remount,favordynmods', this.root]).catch((error) =>
      log('info', 'processes change their cgroup slowly here', { error }),
    )
  }

  /** `v2`, or the controllers that are still on v1. */
  get kind(): string {
    return this.v1.size === 0 ? 'v2' : `hybrid (v1: ${[...this.v1.keys()].join(', ')})`
  }

  /** Makes the cgroups of a computer with their limits, or sets the limits anew. */
  create(name: string, limits: Limits): void {
    if (this.v2Controllers.length > 0) {
      const enable = this.v2Controllers.map((controller) => `+${controller}`).join(' ')
      for (const dir of [this.root, join(this.root, PARENT), this.v2(name)]) {
        mkdirSync(dir, { recursive: true })
        writeFileSync(join(dir, 'cgroup.subtree_control'), enable)
      }
    }
    mkdirSync(this.v2(name, 'init'), { recursive: true })
    mkdirSync(this.v2(name, 'agent'), { recursive: true })
    for (const controller of this.v1.keys()) mkdirSync(this.v1Dir(controller, name), { recursive: true })
    this.limit(name, limits)
  }

  private limit(name: string, limits: Limits): void {
    if (this.v1.has('memory')) {
      const dir = this.v1Dir('memory', name)
      // The limit of memory and swap together must never be below that of memory, whichever of them grows.
      const total = join(dir, 'memory.memsw.limit_in_bytes')
      if (existsSync(total)) writeFileSync(total, '-1')
      writeFileSync(join(dir, 'memory.limit_in_bytes'), String(limits.hardBytes))
      if (existsSync(total)) writeFileSync(total, String(limits.hardBytes))
      writeFileSync(join(dir, 'memory.soft_limit_in_bytes'), String(limits.softBytes))
      writeFileSync(join(dir, 'memory.swappiness'), '0')
    } else {
      // Protection is shared out from above: a parent without any would leave its children none.
      writeFileSync(join(this.root, PARENT, 'memory.low'), 'max')
      writeFileSync(join(this.v2(name), 'memory.low'), String(limits.softBytes))
      writeFileSync(join(this.v2(name), 'memory.max'), String(limits.hardBytes))
      const swap = join(this.v2(name), 'memory.swap.max')
      if (existsSync(swap)) writeFileSync(swap, '0')
      // An agent that lost one process to the OOM killer is no agent any more.
      writeFileSync(join(this.v2(name, 'agent'), 'memory.oom.group'), '1')
    }
    writeFileSync(join(this.dirOf('pids', name), 'pids.max'), String(limits.pids))
    const cpu = this.dirOf('cpu', name)
    if (this.v1.has('cpu')) {
      writeFileSync(join(cpu, 'cpu.cfs_period_us'), String(CPU_PERIOD_US))
      writeFileSync(join(cpu, 'cpu.cfs_quota_us'), String(limits.cpuQuotaUs))
    } else {
      writeFileSync(join(cpu, 'cpu.max'), `${limits.cpuQuotaUs} ${CPU_PERIOD_US}`)
    }
  }

  /** The cgroup.procs files that a process of `leaf` is written to. Makes the leaf of a command. */
  joinFiles(name: string, leaf: Leaf): string[] {
    mkdirSync(this.v2(name, leaf), { recursive: true })
    const v1 = [...this.v1.keys()].map((controller) => this.v1Dir(controller, name))
    return [this.v2(name, leaf), ...v1].map((dir) => join(dir, 'cgroup.procs'))
  }

  /** Names of all that have cgroups, those of other orbs too. */
  computers(): string[] {
    return children(join(this.root, PARENT))
  }

  /** Host pids. */
  processes(name: string, leaf: Leaf): number[] {
    return numbersIn(join(this.v2(name, leaf), 'cgroup.procs'))
  }

  /** Host numbers of the agent's threads. */
  agentThreads(name: string): number[] {
    return numbersIn(join(this.v2(name, 'agent'), 'cgroup.threads'))
  }

  isPopulated(name: string, leaf: Leaf): boolean {
    return readIfThere(join(this.v2(name, leaf), 'cgroup.events')).includes('populated 1')
  }

  isFrozen(name: string): boolean {
    return readIfThere(join(this.v2(name, 'agent'), 'cgroup.events')).includes('frozen 1')
  }

  /** Asks the kernel to stop (or continue) the agent's tree; done when `isFrozen` says so, within a few ms. */
  setFrozen(name: string, frozen: boolean): void {
    writeFileSync(join(this.v2(name, 'agent'), 'cgroup.freeze'), frozen ? '1' : '0')
  }

  /** Kills everything in the leaf at once, what it forks meanwhile included; a leaf that is gone is no error. */
  kill(name: string, leaf: Leaf): void {
    try {
      writeFileSync(join(this.v2(name, leaf), 'cgroup.kill'), '1')
    } catch (thrown) {
      if (errnoCode(thrown) !== 'ENOENT') throw thrown
    }
  }

  /** Calls back at each change of the agent's `populated` and `frozen`. */
  watch(name: string, changed: () => void): FSWatcher {
    return watch(join(this.v2(name, 'agent'), 'cgroup.events'), changed)
  }

  /** Directory that `criu --freeze-cgroup` takes. */
  freezerDir(name: string): string {
    return this.v2(name, 'agent')
  }

  /** The number by which sock_diag names the agent's cgroup: the inode of its v2 directory. */
  agentId(name: string): bigint {
    return statSync(this.v2(name, 'agent'), { bigint: true }).ino
  }

  /** Bytes charged to the agent's tree, page cache included. On v1 what is beside it counts, too. */
  agentMemory(name: string): number {
    const file = this.v1.has('memory') ? 'memory.usage_in_bytes' : 'memory.current'
    return Number(readIfThere(join(this.agentMemoryDir(name), file)) || 0)
  }

  /** Bytes of the agent's tree that are in no file: what a checkpoint has to write at least. */
  agentAnonymous(name: string): number {
    const pattern = this.v1.has('memory') ? /^rss (\d+)$/m : /^anon (\d+)$/m
    const text = readIfThere(join(this.agentMemoryDir(name), 'memory.stat'))
    return Number(pattern.exec(text)?.[1] ?? 0)
  }

  /** CPU time of the agent's tree so far, in microseconds; v2 keeps this without a controller. */
  agentCpuUs(name: string): number {
    return Number(/^usage_usec (\d+)$/m.exec(readIfThere(join(this.v2(name, 'agent'), 'cpu.stat')))?.[1] ?? 0)
  }

  /**
   * Gives the page cache that a computer is charged for back to the host: what its agent left behind, and what commands
   * beside it read, which may be the same programs.
   * @param signal ends it at once, half done
   */
  async dropCache(name: string, signal = new AbortController().signal): Promise<void> {
    const dir = this.dirOf('memory', name)
    if (!this.v1.has('memory')) return this.empty(dir, signal)
    try {
      writeFileSync(join(dir, 'memory.force_empty'), '0')
    } catch (thrown) {
      // Some pages could not be taken, which costs memory and nothing else; or the computer is down.
      if (!['EAGAIN', 'EBUSY', 'ENOENT'].includes(errnoCode(thrown) ?? '')) throw thrown
    }
  }

  /**
   * Pushes the agent's memory out: to swap what has no file behind it, and the rest back to the host. Only here may memory
   * of a computer be swapped: not when the host is short of it, nor when the agent reaches its limit.
   * @param signal ends it at once, half done
   */
  async reclaimAgent(name: string, signal: AbortSignal): Promise<void> {
    this.letSwap(name, true)
    try {
      for (let pass = 0; pass < RECLAIM_PASSES && !signal.aborted; pass++) {
        const before = this.agentMemory(name)
        await this.empty(this.agentMemoryDir(name), signal)
        const after = this.agentMemory(name)
        if (after < RECLAIM_REST_BYTES || (pass > 0 && before - after < RECLAIM_LEAST_BYTES)) break
        await Bun.sleep(RECLAIM_PAUSE_MS)
      }
    } finally {
      this.letSwap(name, false)
    }
    // What commands beside it read.
    if (!this.v1.has('memory')) await this.empty(this.v2(name), signal)
  }

  /** Has the kernel take all that it can of a cgroup's memory; how much that was, its caller sees. */
  private async empty(dir: string, signal: AbortSignal): Promise<void> {
    if (this.v1.has('memory')) return writeInChild(join(dir, 'memory.force_empty'), '0', signal)
    // Kernels before 5.19 do not know it.
    if (!existsSync(join(dir, 'memory.reclaim'))) return
    const used = () => Number(readIfThere(join(dir, 'memory.current')))
    const stalled = new AbortController()
    let before = used()
    const asked = String(before)
    const timer = setInterval(() => {
      const now = used()
      if (before - now < RECLAIM_LEAST_BYTES) stalled.abort()
      before = now
    }, RECLAIM_STALL_MS)
    try {
      await writeInChild(join(dir, 'memory.reclaim'), asked, AbortSignal.any([signal, stalled.signal]))
    } finally {
      clearInterval(timer)
    }
  }

  private letSwap(name: string, swap: boolean): void {
    if (this.v1.has('memory')) {
      writeFileSync(join(this.v1Dir('memory', name), 'memory.swappiness'), swap ? RECLAIM_SWAPPINESS : '0')
    } else {
      // What is in swap already stays there when no more may follow.
      const dir = this.v2(name)
      const file = join(dir, 'memory.swap.max')
      if (existsSync(file)) writeFileSync(file, swap ? readIfThere(join(dir, 'memory.max')).trim() : '0')
    }
  }

  /** Whether the kernel can be asked to push an agent's memory out (on v2, 5.19 and newer). */
  canReclaim(name: string): boolean {
    return this.v1.has('memory') || existsSync(join(this.v2(name), 'memory.reclaim'))
  }

  /** Bytes of the agent's memory that are in swap. On v1 what forks share counts for each of them. */
  agentSwap(name: string): number {
    if (!this.v1.has('memory')) return Number(readIfThere(join(this.v2(name, 'agent'), 'memory.swap.current')) || 0)
    const swapKb = (pid: number) => Number(/^VmSwap:\s+(\d+) kB$/m.exec(readIfThere(`/proc/${pid}/status`))?.[1] ?? 0)
    return this.processes(name, 'agent').reduce((sum, pid) => sum + swapKb(pid) * KB, 0)
  }

  /** How often the OOM killer struck in the agent's tree; on v1, in this computer. */
  oomKills(name: string): number {
    const file = this.v1.has('memory') ? 'memory.oom_control' : 'memory.events'
    return Number(/^oom_kill (\d+)$/m.exec(readIfThere(join(this.agentMemoryDir(name), file)))?.[1] ?? 0)
  }

  /** Leaves of commands that still have processes, or had. */
  commands(name: string, purposes: readonly Purpose[]): Leaf[] {
    return children(this.v2(name)).filter((child): child is Leaf =>
      purposes.some((purpose) => child.startsWith(`${purpose}-`)),
    )
  }

  /** Removes leaves whose last background process has ended; those in `inUse` may not have their first one yet. */
  sweepCommands(name: string, inUse: ReadonlySet<Leaf>): void {
    for (const leaf of this.commands(name, PURPOSES)) {
      if (!inUse.has(leaf) && !this.isPopulated(name, leaf)) this.removeLeaf(name, leaf)
    }
  }

  /** Removes an empty leaf; one that still has processes stays. */
  removeLeaf(name: string, leaf: Leaf): boolean {
    return removeDir(this.v2(name, leaf))
  }

  /** Removes the cgroups of a computer whose processes are gone. Returns false while something is left. */
  remove(name: string): boolean {
    const dirs = [...this.v1.keys()].flatMap((controller) => {
      const dir = this.v1Dir(controller, name)
      return [...children(dir).map((leaf) => join(dir, leaf)), dir]
    })
    const v2 = [...children(this.v2(name)).map((leaf) => join(this.v2(name), leaf)), this.v2(name)]
    const done = [...dirs, ...v2].map(removeDir).every(Boolean)
    for (const root of [this.root, ...this.v1.values()]) removeDir(join(root, PARENT))
    return done
  }

  private v2(name: string, leaf = ''): string {
    return join(this.root, PARENT, name, leaf)
  }

  private v1Dir(controller: Controller, name: string): string {
    return join(this.v1.get(controller) ?? '', PARENT, name)
  }

  /**
   * v1 has one for the whole computer: the kernel keeps account of each superblock in each memory cgroup, which in a
   * thousand computers comes to 100 KB for every one of these.
   */
  private agentMemoryDir(name: string): string {
    return this.v1.has('memory') ? this.v1Dir('memory', name) : this.v2(name, 'agent')
  }

  private dirOf(controller: Controller, name: string): string {
    return this.v1.has(controller) ? this.v1Dir(controller, name) : this.v2(name)
  }
}

/** Writes a file that keeps its writer for as long as the kernel is busy with it: a child, so that orb goes on meanwhile. */
async function writeInChild(file: string, text: string, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return
  // A shell's own printf says "I/O error" for all of them.
  const child = Bun.spawn(['tee', file], {
    stdin: Buffer.from(text.trim()),
    stdout: 'ignore',
    stderr: 'pipe',
    env: HOST_ENVIRONMENT,
    signal,
    killSignal: 'SIGKILL',
  })
  const [stderr, exitCode] = await Promise.all([new Response(child.stderr).text(), child.exited])
  // Not all of it could be pushed out: how much was, its caller sees.
  if (exitCode === 0 || signal.aborted || /busy|temporarily unavailable/.test(stderr)) return
  throw new Error(`memory cannot be pushed out: ${stderr.trim()}`)
}

const children = (dir: string): string[] =>
  existsSync(dir)
    ? readdirSync(dir, { withFileTypes: true })
        .filter((entry) => entry.isDirectory())
        .map((entry) => entry.name)
    : []

const numbersIn = (file: string): number[] => readIfThere(file).split('\n').filter(Boolean).map(Number)

function readIfThere(file: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch (thrown) {
    if (['ENOENT', 'ENODEV', 'ESRCH'].includes(errnoCode(thrown) ?? '')) return ''
    throw thrown
  }
}

function removeDir(dir: string): boolean {
  try {
    rmdirSync(dir)
    return true
  } catch (thrown) {
    return errnoCode(thrown) === 'ENOENT'
  }
}
