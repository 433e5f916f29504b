import { existsSync, type FSWatcher, readFileSync, statfsSync, writeFileSync } from 'node:fs'
import { mkdir, readdir, rm, writeFile } from 'node:fs/promises'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { log } from '../log.ts'
import { type Base, baseNamed, prepareBase, prepareDevices } from './base.ts'
import type { RuntimeFiles } from './bundle.ts'
import { Cgroups, type Purpose } from './cgroup.ts'
import { Commands, type ExecRequest, type ExecResult } from './commands.ts'
import { type ComputerSpec, killLeaf, limitsOf, shmBytes, until } from './computer.ts'
import { Criu, type CriuTarget, killProcess } from './criu.ts'
import { runningCriu } from './criu-processes.ts'
import * as disk from './disk.ts'
import { imageBytes, isComplete, isDrained, isRestored, isSynced, readNotes, syncImage, writeNotes } from './image.ts'
import { installPid1, readExit } from './inside.ts'
import * as launcher from './launcher.ts'
import { Network, type NetworkOptions } from './network.ts'
import { type ComputerPaths, computerPaths, type DataPaths, objectName } from './paths.ts'
import { seccompFilter } from './seccomp.ts'

export interface RuntimeOptions {
  data: DataPaths
  files: RuntimeFiles
  /** `host`, a directory or a tar file. */
  base: string
  memoryMultiplier: number
  network: NetworkOptions
}

export interface AgentStart {
  argv: string[]
  env: Record<string, string>
  cwd: string
}

/** Files of /proc that tell of the host when they are read. */
const MASKED = ['/proc/kcore', '/proc/keys', '/proc/timer_list', '/proc/latency_stats', '/proc/sched_debug']
const FREEZE_TIMEOUT_MS = 5000
/** Longest that criu may take beyond what writing the memory takes: a command inside may have stopped it. */
const CRIU_TIMEOUT_MS = 30_000
/** 20 MB/s */
const SLOWEST_DISK_BYTES_PER_MS = 20_000
const SETTLE_POLL_MS = 50

/**
 * Computers as the kernel sees them: disk, root, network, cgroup, processes. It knows what is there, not what should be:
 * that is the caller's. Calls for one computer must not overlap unless they say so.
 */
export class Runtime {
  private readonly masks = MASKED.filter((file) => existsSync(file))
  private readonly inits = new Map<string, number>()
  private readonly comingUp = new Map<string, Promise<void>>()
  private readonly goingDown = new Set<string>()
  private readonly draining = new Map<string, Promise<boolean>>()
  private readonly criu: Criu
  private readonly launch: launcher.LauncherFiles
  private readonly beside: Commands

  private constructor(
    private readonly options: RuntimeOptions,
    readonly base: Base,
    private readonly devices: string,
    readonly network: Network,
    private readonly cgroups: Cgroups,
  ) {
    const { run } = options.data
    const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
    this.criu = new Criu(options.files, join(run, `criu.kdat.${boot}.${options.files.criuVersion}`))
    this.launch = { init: options.files.init, seccomp: join(run, 'seccomp') }
    this.beside = new Commands(cgroups, this.launch)
  }

  /** @param asleep agents that are on disk, by image: their connections stay locked from the first moment on */
  static async start(options: RuntimeOptions, asleep: { spec: ComputerSpec; image: string }[]): Promise<Runtime> {
    const { data } = options
    for (const dir of [data.computers, data.checkpoints, data.images, data.run, data.spool]) {
      await mkdir(dir, { recursive: true, mode: 0o700 })
    }
    await writeFile(join(data.run, 'seccomp'), seccompFilter(), { mode: 0o600 })
    shareInotify()
    const cgroups = Cgroups.detect()
    const [base, devices] = await Promise.all([prepareBase(options.base, data.images), prepareDevices(data.images)])
    const locked = new Map(
      asleep.map(({ spec, image }) => {
        const dir = join(computerPaths(data, spec.id).checkpoints, image)
        return [spec.shortId, readNotes(dir).connections] as const
      }),
    )
    const network = await Network.start(options.network, locked)
    return new Runtime(options, base, devices, network, cgroups)
  }

  paths(spec: ComputerSpec): ComputerPaths {
    return computerPaths(this.options.data, spec.id)
  }

  /* ---- computers ---- */

  /** Makes whatever of the computer is missing, from its disk to its pid 1: at creation, after a crash, after a reboot. */
  async up(spec: ComputerSpec): Promise<void> {
    // First of all: while it comes up, its first process is not yet where commands may follow it.
    const underWay = this.comingUp.get(spec.id)
    if (underWay) return underWay
    if (this.findInit(spec) !== null) return
    if (this.goingDown.has(spec.id)) throw new Error('the computer is being taken down')
    const begun = this.bringUp(spec).finally(() => this.comingUp.delete(spec.id))
    this.comingUp.set(spec.id, begun)
    return begun
  }

  private async bringUp(spec: ComputerSpec): Promise<void> {
    const paths = this.paths(spec)
    const name = objectName(spec.shortId)
    if (!existsSync(paths.disk)) await disk.makeDisk(paths, spec.diskMb)
    const identity = { hostname: name, nameserver: this.network.gateway }
    await disk.mountComputer(paths, baseNamed(spec.base, this.options.data.images), identity)
    await this.network.create(spec.shortId, spec.slot)
    this.cgroups.create(name, limitsOf(spec, this.options.memoryMultiplier, availableParallelism()))
    const pid = await launcher.boot(this.launch, {
      cgroups: this.cgroups.joinFiles(name, 'init'),
      netns: this.network.netnsFile(spec.shortId),
      rootfs: paths.rootfs,
      devices: this.devices,
      hostname: name,
      masks: this.masks,
      shmBytes: shmBytes(spec),
    })
    this.inits.set(spec.id, pid)
  }

  /** Ends everything in the computer and takes its kernel objects away; the disk stays. */
  async down(spec: ComputerSpec): Promise<void> {
    const name = objectName(spec.shortId)
    this.goingDown.add(spec.id)
    try {
      await this.comingUp.get(spec.id)?.catch(() => undefined)
      await this.killAll(spec)
      await killLeaf(this.cgroups, name, 'init')
      this.inits.delete(spec.id)
      await this.draining.get(spec.id)
      await disk.unmountComputer(this.paths(spec))
      await this.network.remove(spec.shortId)
      this.network.unlock(spec.shortId)
      await until(() => this.cgroups.remove(name), FREEZE_TIMEOUT_MS)
    } finally {
      this.goingDown.delete(spec.id)
    }
  }

  /** Removes disk, images and log. */
  async erase(spec: ComputerSpec): Promise<void> {
    await disk.removeDisk(this.paths(spec))
  }

  /** Directories below the data directory that belong to none of `ids`: unmounted and removed, as far as that goes. */
  async removeStrays(ids: Set<string>): Promise<void> {
    const { data } = this.options
    const names = (await Promise.all([readdir(data.computers), readdir(data.checkpoints)])).flat()
    for (const id of new Set(names)) {
      if (ids.has(id)) continue
      const paths = computerPaths(data, id)
      try {
        await disk.unmountComputer(paths)
        await disk.removeDisk(paths)
      } catch (error) {
        log('warn', 'a leftover directory cannot be removed', { dir: paths.dir, error })
      }
    }
  }

  /* ---- the agent's tree ---- */

  /** Starts the agent. @throws launcher.SpawnError */
  async spawnAgent(spec: ComputerSpec, start: AgentStart): Promise<void> {
    await this.up(spec)
    const name = objectName(spec.shortId)
    await launcher.spawnAgent(this.launch, {
      ...start,
      cgroups: this.cgroups.joinFiles(name, 'agent'),
      initPid: this.initPid(spec),
      masks: this.masks,
      shmBytes: shmBytes(spec),
      pid1: await installPid1(this.paths(spec).rootfs, this.options.files.init),
    })
  }

  /** Whether any process of the agent's tree is there. */
  agentAlive(spec: ComputerSpec): boolean {
    return this.cgroups.isPopulated(objectName(spec.shortId), 'agent')
  }

  /** Host pid of the agent's program, or of its pid 1 while the program ends; null without a tree. */
  agentPid(spec: ComputerSpec): number | null {
    const init = launcher.agentInit(this.cgroups.processes(objectName(spec.shortId), 'agent'))
    return init === null ? null : (launcher.firstChild(init) ?? init)
  }

  /** Bytes of RAM that the agent's tree is charged for. */
  agentMemory(spec: ComputerSpec): number {
    return this.cgroups.agentMemory(objectName(spec.shortId))
  }

  /** CPU time of the agent's tree so far, in microseconds. */
  agentCpuUs(spec: ComputerSpec): number {
    return this.cgroups.agentCpuUs(objectName(spec.shortId))
  }

  oomKills(spec: ComputerSpec): number {
    return this.cgroups.oomKills(objectName(spec.shortId))
  }

  /** Exit code and time (ms) that the agent's pid 1 wrote down, or null when it could not. */
  readExit(spec: ComputerSpec): { code: number; at: number } | null {
    return readExit(this.paths(spec).rootfs)
  }

  /** Calls back when the agent's tree ends, is frozen or thawed. May overlap anything. */
  watchAgent(spec: ComputerSpec, changed: () => void): FSWatcher {
    return this.cgroups.watch(objectName(spec.shortId), changed)
  }

  /** Kills the agent's whole tree and waits for its end. */
  async killAgent(spec: ComputerSpec): Promise<void> {
    await killLeaf(this.cgroups, objectName(spec.shortId), 'agent')
  }

  /** Kills the agent and every command beside it; the computer's pid 1 stays. */
  async killAll(spec: ComputerSpec): Promise<void> {
    await this.killAgent(spec)
    await this.killCommands(spec, ['exec', 'build'])
  }

  /** Kills commands beside the agent, with what they left in the background. */
  async killCommands(spec: ComputerSpec, purposes: Purpose[]): Promise<void> {
    const name = objectName(spec.shortId)
    for (const leaf of this.cgroups.commands(name, purposes)) {
      await killLeaf(this.cgroups, name, leaf)
      this.cgroups.removeLeaf(name, leaf)
    }
  }

  /** Stops the agent's tree in place. @throws Error when it does not stop; it then runs on */
  async freezeAgent(spec: ComputerSpec): Promise<void> {
    const name = objectName(spec.shortId)
    this.cgroups.setFrozen(name, true)
    if (await until(() => this.cgroups.isFrozen(name), FREEZE_TIMEOUT_MS)) return
    this.cgroups.setFrozen(name, false)
    throw new Error('the agent could not be frozen')
  }

  thawAgent(spec: ComputerSpec): void {
    this.cgroups.setFrozen(objectName(spec.shortId), false)
  }

  isFrozen(spec: ComputerSpec): boolean {
    return this.cgroups.isFrozen(objectName(spec.shortId))
  }

  /* ---- checkpoint and restore ---- */

  imageDir(spec: ComputerSpec, image: string): string {
    return join(this.paths(spec).checkpoints, image)
  }

  /**
   * Writes the frozen agent into the image and ends its tree; its connections are locked from here on.
   * @throws CriuError; the tree is then still frozen, its connections open, nothing of the image left
   */
  async checkpoint(spec: ComputerSpec, image: string): Promise<{ bytes: number; durationMs: number }> {
    const started = performance.now()
    const name = objectName(spec.shortId)
    const dir = this.imageDir(spec, image)
    const init = launcher.agentInit(this.cgroups.processes(name, 'agent'))
    const pid = init === null ? undefined : launcher.namespacePids(init)[1]
    if (init === null || pid === undefined) throw new Error('the agent has no process')
    const connections = this.network.connectionsOf(spec.shortId, this.cgroups.agentId(name))
    this.network.lock(spec.shortId, connections)
    try {
      await rm(dir, { recursive: true, force: true })
      await mkdir(dir, { recursive: true, mode: 0o700 })
      const emptyShm = isEmptyShm(init)
      writeNotes(dir, { connections, emptyShm })
      const timeoutMs = CRIU_TIMEOUT_MS + this.agentMemory(spec) / SLOWEST_DISK_BYTES_PER_MS
      const freezerDir = this.cgroups.freezerDir(name)
      await this.criu.dump({ ...this.target(spec, emptyShm), dir, pid, freezerDir, timeoutMs })
    } catch (thrown) {
      // criu thaws what it froze: back to how it was found.
      this.cgroups.setFrozen(name, true)
      this.network.unlock(spec.shortId)
      await rm(dir, { recursive: true, force: true })
      throw thrown
    }
    // From here on the image is all that there is of the agent: nothing that fails now may touch it.
    const durationMs = performance.now() - started
    this.tidyUp(name)
    return { bytes: await imageBytes(dir), durationMs }
  }

  private tidyUp(name: string): void {
    try {
      this.cgroups.setFrozen(name, false)
      this.cgroups.dropAgentCache(name)
    } catch (error) {
      log('warn', 'memory of a sleeping agent is not all given back', { computer: name, error })
    }
  }

  /** Puts an image on stable storage: until then a power cut may leave nothing of it but names. */
  async syncImage(spec: ComputerSpec, image: string): Promise<void> {
    await syncImage(this.imageDir(spec, image))
  }

  /**
   * Brings the agent back from the image; it runs, and its connections are open, when this returns.
   * @param resetProxy connections to the LLM proxy that a former orb held are reset first
   * @throws CriuError; the image is kept, nothing of a half restored tree stays
   */
  async restore(spec: ComputerSpec, image: string, resetProxy: boolean): Promise<{ durationMs: number }> {
    const started = performance.now()
    await this.up(spec)
    const name = objectName(spec.shortId)
    const dir = this.imageDir(spec, image)
    try {
      const { drained } = await this.criu.restore({
        ...this.target(spec, readNotes(dir).emptyShm),
        shmBytes: shmBytes(spec),
        dir,
        cgroups: this.cgroups.joinFiles(name, 'agent'),
        timeoutMs: CRIU_TIMEOUT_MS,
      })
      this.trackDraining(spec.id, drained)
      if (resetProxy) this.network.resetProxyConnections(spec.shortId, this.cgroups.agentId(name))
      this.network.unlock(spec.shortId)
      return { durationMs: performance.now() - started }
    } catch (thrown) {
      await killLeaf(this.cgroups, name, 'agent')
      throw thrown
    }
  }

  /** Removes an image; a missing one is no error. */
  async removeImage(spec: ComputerSpec, image: string): Promise<void> {
    await rm(this.imageDir(spec, image), { recursive: true, force: true })
  }

  /** Removes every image of the computer but `keep`. */
  async removeOtherImages(spec: ComputerSpec, keep: string | null): Promise<void> {
    const names = await readdir(this.paths(spec).checkpoints).catch(() => [])
    for (const name of names) if (name !== keep) await this.removeImage(spec, name)
  }

  /** After the pages of the last restore are all in: true; false when their daemon failed, which the agent will not survive. */
  drained(spec: ComputerSpec): Promise<boolean> {
    return this.draining.get(spec.id) ?? Promise.resolve(true)
  }

  /**
   * What a crash of orb left of a transition: waits for a criu that is still at work, then says how its image stands.
   * A page daemon goes on as long as there is an agent to serve, and is waited for before the image is used again.
   * @param rebooted an image counts only if it had reached stable storage
   */
  async settle(
    spec: ComputerSpec,
    image: string | null,
    rebooted: boolean,
  ): Promise<{ imageComplete: boolean; restored: boolean }> {
    if (image === null) return { imageComplete: false, restored: false }
    const dir = this.imageDir(spec, image)
    const working = (lazy: boolean) =>
      runningCriu(this.options.data.root).filter(
        (criu) => criu.dir === dir && (criu.operation === 'lazy-pages') === lazy,
      )
    const deadline = performance.now() + CRIU_TIMEOUT_MS
    for (let busy = working(false); busy.length > 0; busy = working(false)) {
      if (performance.now() > deadline) for (const { pid } of busy) killProcess(pid)
      await Bun.sleep(SETTLE_POLL_MS)
    }
    if (!this.agentAlive(spec)) for (const { pid } of working(true)) killProcess(pid)
    if (working(true).length > 0) {
      const drained = (async () => {
        while (working(true).length > 0) await Bun.sleep(SETTLE_POLL_MS)
        return isDrained(dir)
      })()
      this.trackDraining(spec.id, drained)
    }
    const [complete, restored, synced] = await Promise.all([isComplete(dir), isRestored(dir), isSynced(dir)])
    return { imageComplete: complete && (synced || !rebooted), restored }
  }

  private trackDraining(id: string, drained: Promise<boolean>): void {
    this.draining.set(id, drained)
    void drained.then(() => {
      if (this.draining.get(id) === drained) this.draining.delete(id)
    })
  }

  /* ---- commands beside the agent ---- */

  /**
   * Runs a command in the computer. Calls may overlap.
   * @throws Error when the computer cannot be brought up
   */
  async exec(spec: ComputerSpec, request: ExecRequest): Promise<ExecResult> {
    await this.up(spec)
    return this.beside.run(objectName(spec.shortId), this.initPid(spec), request)
  }

  /* ---- who is calling ---- */

  /** Whether the connection from `port` of the computer to the LLM proxy was made by its agent's tree. */
  isAgentConnection(spec: ComputerSpec, port: number): boolean {
    return this.network.cgroupOf(spec.shortId, spec.slot, port) === this.cgroups.agentId(objectName(spec.shortId))
  }

  /** For tests and benchmarks' tear-down: rules and gateway address go; computers must be down. */
  async stop(): Promise<void> {
    await this.network.stop()
  }

  /** Leaves all as it is and lets go of orb's own handles. */
  close(): void {
    this.network.close()
  }

  private target(spec: ComputerSpec, emptyShm: boolean): CriuTarget {
    return {
      initPid: this.initPid(spec),
      rootfs: this.paths(spec).rootfs,
      netns: this.network.netnsFile(spec.shortId),
      devices: this.devices,
      hostUsr: baseNamed(spec.base, this.options.data.images).hostUsr,
      masks: this.masks,
      emptyShm,
    }
  }

  private initPid(spec: ComputerSpec): number {
    const pid = this.findInit(spec)
    if (pid === null) throw new Error('the computer is not up')
    return pid
  }

  /** The computer's pid 1 once it is one: confined, in namespaces of its own. Also when a former orb started it. */
  private findInit(spec: ComputerSpec): number | null {
    const pids = this.cgroups.processes(objectName(spec.shortId), 'init')
    const known = this.inits.get(spec.id)
    if (known !== undefined && pids.includes(known)) return known
    const found = pids.find(launcher.isComputerInit)
    if (found === undefined) return null
    this.inits.set(spec.id, found)
    return found
  }
}

/** Enough for a thousand computers. */
const INOTIFY_INSTANCES = 65_536
const INOTIFY_WATCHES = 4_194_304

/** Root inside is root outside: all agents, and orb itself, watch files on one account, whose default is 128. */
function shareInotify(): void {
  for (const [name, least] of [
    ['max_user_instances', INOTIFY_INSTANCES],
    ['max_user_watches', INOTIFY_WATCHES],
  ] as const) {
    const file = `/proc/sys/fs/inotify/${name}`
    if (Number(readFileSync(file, 'utf8')) < least) writeFileSync(file, String(least))
  }
}

/** Nothing in it, and no deleted file that is still open: not a single page and no inode but its root. */
function isEmptyShm(pid: number): boolean {
  const { blocks, bfree, files, ffree } = statfsSync(`/proc/${pid}/root/dev/shm`)
  return blocks === bfree && files - ffree === 1
}
