import { existsSync, type FSWatcher, readFileSync, writeFileSync } from 'node:fs'
import { mkdir, writeFile } from 'node:fs/promises'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { messageOf, OrbError } from '../errors.ts'
import { log } from '../log.ts'
import { type Base, baseNamed, prepareBase, prepareDevices } from './base.ts'
import type { RuntimeFiles } from './bundle.ts'
import { Cgroups, PURPOSES, type Purpose } from './cgroup.ts'
import { type CheckpointHost, Checkpoints } from './checkpoints.ts'
import {
  Commands,
  commandLeaf,
  type ExecRequest,
  type ExecResult,
  type LiveRequest,
  type TerminalRequest,
} from './commands.ts'
import { type ComputerSpec, killLeaf, limitsOf, shmBytes, until } from './computer.ts'
import { Criu } from './criu.ts'
import type { CriuProcess } from './criu-processes.ts'
import * as disk from './disk.ts'
import { HostView } from './host-view.ts'
import { isInTimedSleep, type Traffic, trafficOf } from './idle-signs.ts'
import { readNotes } from './image.ts'
import { type Exit, installPid1, readExit } from './inside.ts'
import * as launcher from './launcher.ts'
import * as layers from './layers.ts'
import type { LiveCommand } from './live-command.ts'
import type { Ports } from './netlink.ts'
import { Network, type NetworkOptions } from './network.ts'
import type { Cidr } from './outbound.ts'
import { type ComputerPaths, computerPaths, type DataPaths, objectName } from './paths.ts'
import { type Reclaimed, Reclaims } from './reclaim.ts'
import { seccompFilter } from './seccomp.ts'
import { type Known, keepsUnknown, removeStrays, type Swept } from './strays.ts'
import type { Terminal } from './terminal.ts'

export interface RuntimeOptions {
  data: DataPaths
  files: RuntimeFiles
  /** `host`, a directory or a tar file. */
  base: string
  memoryMultiplier: number
  network: NetworkOptions
  /** Which computers have had a disk. A disk that is there no more is not made anew, empty. */
  disks?: { isMade(id: string): boolean; setMade(id: string): void }
}

export interface AgentStart {
  argv: string[]
  env: Record<string, string>
  cwd: string
}

/** Files of /proc that tell of the host when they are read. */
const MASKED = ['/proc/kcore', '/proc/keys', '/proc/timer_list', '/proc/latency_stats', '/proc/sched_debug']
const FREEZE_TIMEOUT_MS = 5000
/** What taking down takes of a computer that has no row. */
const NOBODY = { slot: 0, runtimeMb: 0, diskMb: 0, base: '' }

/**
 * Computers as the kernel sees them: disk, root, network, cgroup, processes. It knows what is there, not what should be:
 * that is the caller's. Calls for one computer must not overlap unless they say so.
 */
export class Runtime {
  private readonly masks = MASKED.filter((file) => existsSync(file))
  private readonly inits = new Map<string, number>()
  private readonly comingUp = new Map<string, Promise<void>>()
  private readonly goingDown = new Set<string>()
  readonly checkpoints: Checkpoints
  private readonly launch: launcher.LauncherFiles
  private readonly beside: Commands
  private readonly view: Promise<HostView>
  private readonly reclaims: Reclaims

  private constructor(
    private readonly options: RuntimeOptions,
    readonly base: Base,
    private readonly devices: string,
    readonly network: Network,
    private readonly cgroups: Cgroups,
  ) {
    const { run } = options.data
    const boot = readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()
    const { checkpoints, images, root } = options.data
    // All that criu reads of the host, and /sys for the freezer.
    this.view = HostView.make(options.files.init, devices, [
      options.files.dir,
      checkpoints,
      images,
      run,
      '/dev',
      '/sys',
      '/proc',
    ])
    this.view.catch((error) => log('error', 'agents cannot be checkpointed', { error }))
    const criu = new Criu(options.files, join(run, `criu.kdat.${boot}.${options.files.criuVersion}`), this.view)
    this.launch = { init: options.files.init, seccomp: join(run, 'seccomp') }
    this.beside = new Commands(cgroups, this.launch)
    this.reclaims = new Reclaims(cgroups)
    const host: CheckpointHost = {
      dataDir: root,
      devices,
      masks: this.masks,
      paths: (spec) => this.paths(spec),
      base: (spec) => baseNamed(spec.base, options.data.images),
      initPid: (spec) => this.initPid(spec),
      up: (spec) => this.up(spec),
    }
    this.checkpoints = new Checkpoints(host, criu, cgroups, network)
  }

  /**
   * @param asleep agents that are on disk, by image: their connections stay locked from the first moment on
   * @param limited what computers with an outbound list may reach, by slot: that holds from the first moment on
   */
  static async start(
    options: RuntimeOptions,
    asleep: { spec: ComputerSpec; image: string }[],
    limited?: Map<number, Cidr[]>,
  ): Promise<Runtime> {
    const { data } = options
    for (const dir of [data.computers, data.checkpoints, data.images, data.run, data.spool]) {
      await mkdir(dir, { recursive: true, mode: 0o700 })
    }
    await writeFile(join(data.run, 'seccomp'), seccompFilter(), { mode: 0o600 })
    shareInotify()
    const cgroups = Cgroups.detect()
    await cgroups.allowQuickMoves()
    const [base, devices] = await Promise.all([prepareBase(options.base, data.images), prepareDevices(data.images)])
    const locked = new Map(
      asleep.map(({ spec, image }) => {
        const dir = join(computerPaths(data, spec.id).checkpoints, image)
        return [spec.shortId, readNotes(dir).connections] as const
      }),
    )
    const network = await Network.start(options.network, locked, limited)
    for (const { spec } of asleep) network.outbound.pause(spec.slot)
    return new Runtime(options, base, devices, network, cgroups)
  }

  paths(spec: ComputerSpec): ComputerPaths {
    return computerPaths(this.options.data, spec.id)
  }

  /* ---- computers ---- */

  /**
   * Makes whatever of the computer is missing, from its disk to its pid 1: at creation, after a crash, after a reboot.
   * @throws OrbError internal, with the reason
   */
  async up(spec: ComputerSpec): Promise<void> {
    // First of all: while it comes up, its first process is not yet where commands may follow it.
    const underWay = this.comingUp.get(spec.id)
    if (underWay) return underWay
    if (this.findInit(spec) !== null) return
    if (this.goingDown.has(spec.id)) throw new Error('the computer is being taken down')
    const begun = this.bringUp(spec)
      .catch((cause) => {
        throw this.cannotBeBroughtUp(cause)
      })
      .finally(() => this.comingUp.delete(spec.id))
    this.comingUp.set(spec.id, begun)
    return begun
  }

  /** What its user may know of the reason: not where on the server the data lies. */
  private cannotBeBroughtUp(cause: unknown): OrbError {
    const [reason = ''] = messageOf(cause).replaceAll(`${this.options.data.root}/`, '').split('\n')
    return new OrbError('internal', `the computer cannot be brought up: ${reason}`, {}, { cause })
  }

  private async bringUp(spec: ComputerSpec): Promise<void> {
    const paths = this.paths(spec)
    const name = objectName(spec.shortId)
    const base = baseNamed(spec.base, this.options.data.images)
    layers.checkLayer(base)
    if (!existsSync(paths.disk)) {
      if (this.options.disks?.isMade(spec.id)) throw new Error(`its disk is missing: ${paths.disk}`)
      await disk.makeDisk(paths, spec.diskMb)
    }
    this.options.disks?.setMade(spec.id)
    const identity = { hostname: name, nameserver: this.network.gateway }
    await disk.mountComputer(paths, base, identity)
    await this.network.create(spec.shortId, spec.slot)
    await this.checkpoints.reservePorts(spec)
    this.cgroups.create(name, limitsOf(spec, this.options.memoryMultiplier, availableParallelism()))
    const pid = await launcher.boot(this.launch, {
      cgroups: this.cgroups.joinFiles(name, 'init'),
      netns: this.network.netnsFile(spec.shortId),
      rootfs: paths.rootfs,
      devices: this.devices,
      hostname: name,
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
      this.reclaims.forget(name)
      await this.checkpoints.drained(spec)
      this.checkpoints.forget(spec)
      await disk.unmountComputer(this.paths(spec))
      await this.network.remove(spec.shortId)
      this.network.unlock(spec.shortId)
      await until(() => this.cgroups.remove(name), FREEZE_TIMEOUT_MS)
    } finally {
      this.goingDown.delete(spec.id)
    }
  }

  /** Has `removeStrays` remove what is left of it, should `erase` not come to its end. */
  async markDeleted(spec: ComputerSpec): Promise<void> {
    await disk.markDeleted(this.paths(spec))
  }

  /** Removes disk, images and log. */
  async erase(spec: ComputerSpec): Promise<void> {
    await disk.removeDisk(this.paths(spec))
  }

  /** Whether the computer has been brought up, or that was begun: what it stands on is fixed from then on. */
  isMade(spec: ComputerSpec): boolean {
    return this.comingUp.has(spec.id) || existsSync(this.paths(spec).disk)
  }

  /**
   * Makes a layer of what a build has written in a computer; what the build left running is ended.
   * @param signal gives it up @throws Error; there is no layer then
   */
  async makeLayer(spec: ComputerSpec, layer: string, signal: AbortSignal): Promise<void> {
    await this.up(spec)
    await this.killCommands(spec, ['build'])
    await layers.makeLayer(this.options.data.images, layer, this.paths(spec).mount, signal)
  }

  /**
   * Removes all layers but those in use, unless there are disks of unknown computers, which may stand on any. Returns how
   * many. May overlap anything. @param inUse asked after a look at what is there
   */
  async removeUnusedLayers(known: Known, inUse: () => ReadonlySet<string>): Promise<number> {
    const { data } = this.options
    return keepsUnknown(data, known) ? 0 : layers.removeUnusedLayers(data.images, inUse)
  }

  /** Takes away what is left of computers that nobody knows any more. May overlap anything. */
  removeStrays(known: Known): Promise<Swept> {
    const { data, files } = this.options
    const { cgroups, network } = this
    const down = (id: string, shortId: string) => this.down({ ...NOBODY, id, shortId })
    return removeStrays({ data, programs: files.dir, cgroups, network, down }, known)
  }

  /** Whether a computer that this orb has brought up or found is not whole any more. */
  hasVanished(spec: ComputerSpec): boolean {
    return this.inits.has(spec.id) && (this.findInit(spec) === null || !this.network.isUp(spec.shortId))
  }

  /**
   * Nothing of the agent's tree or of a build is in the kernel, and its image (null: it should have none) needs nothing
   * done. @param found of `checkpoints.running()`, which looks at all processes of the server once for all computers
   */
  isAtRest(spec: ComputerSpec, image: string | null, found: CriuProcess[]): boolean {
    const name = objectName(spec.shortId)
    if (this.cgroups.isPopulated(name, 'agent') || this.cgroups.commands(name, ['build']).length > 0) return false
    return this.checkpoints.isAtRest(spec, image, found)
  }

  /* ---- the agent's tree ---- */

  /** Starts the agent. @param life number of this start, which its exit will bear @throws launcher.SpawnError */
  async spawnAgent(spec: ComputerSpec, start: AgentStart, life = 0): Promise<void> {
    await this.up(spec)
    this.network.outbound.resume(spec.slot)
    const name = objectName(spec.shortId)
    await launcher.spawnAgent(this.launch, {
      ...start,
      cgroups: this.cgroups.joinFiles(name, 'agent'),
      initPid: this.initPid(spec),
      ...this.privateMounts(spec),
      life,
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

  /** Bytes of the agent's memory that are in swap. */
  agentSwap(spec: ComputerSpec): number {
    return this.cgroups.agentSwap(objectName(spec.shortId))
  }

  /** CPU time of the agent's tree so far, in microseconds. */
  agentCpuUs(spec: ComputerSpec): number {
    return this.cgroups.agentCpuUs(objectName(spec.shortId))
  }

  /** Whether a thread of the agent's tree sleeps for a time that it has set itself; one that waits for something does not. */
  agentInTimedSleep(spec: ComputerSpec): boolean {
    return this.cgroups.agentThreads(objectName(spec.shortId)).some(isInTimedSleep)
  }

  /** What has passed between the computer and the world so far. @param last what it said before */
  traffic(spec: ComputerSpec, last: Traffic | null): Traffic {
    return trafficOf(objectName(spec.shortId), last)
  }

  oomKills(spec: ComputerSpec): number {
    return this.cgroups.oomKills(objectName(spec.shortId))
  }

  /** What the agent's pid 1 wrote down, or null when it could not. */
  readExit(spec: ComputerSpec): Exit | null {
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
    await this.killCommands(spec, PURPOSES)
  }

  /** Kills commands beside the agent, with what they left in the background. */
  async killCommands(spec: ComputerSpec, purposes: readonly Purpose[]): Promise<void> {
    const name = objectName(spec.shortId)
    for (const leaf of this.cgroups.commands(name, purposes)) {
      await killLeaf(this.cgroups, name, leaf)
      this.cgroups.removeLeaf(name, leaf)
    }
  }

  /** Kills one command beside the agent, which was given this id, with all its children. One that has ended is no error. */
  async killCommand(spec: ComputerSpec, purpose: Purpose, id: string): Promise<void> {
    const name = objectName(spec.shortId)
    const leaf = commandLeaf(purpose, id)
    await killLeaf(this.cgroups, name, leaf)
    this.cgroups.removeLeaf(name, leaf)
  }

  /** Stops the agent's tree in place. @throws Error when it does not stop; it then runs on */
  async freezeAgent(spec: ComputerSpec): Promise<void> {
    const name = objectName(spec.shortId)
    try {
      this.cgroups.setFrozen(name, true)
      if (await until(() => this.cgroups.isFrozen(name), FREEZE_TIMEOUT_MS)) {
        this.network.outbound.pause(spec.slot)
        return
      }
      throw new Error('the agent could not be frozen')
    } catch (thrown) {
      this.cgroups.setFrozen(name, false)
      throw thrown
    }
  }

  /** Lets the agent's tree run on; of a reclaimed one, what it used last comes back meanwhile. */
  thawAgent(spec: ComputerSpec): void {
    const name = objectName(spec.shortId)
    this.reclaims.readAhead(name)
    this.network.outbound.resume(spec.slot)
    this.cgroups.setFrozen(name, false)
  }

  /** Pushes the memory of the frozen agent to swap; `signal` ends that at once. @throws Error when the kernel refuses */
  reclaimAgent(spec: ComputerSpec, signal: AbortSignal): Promise<Reclaimed> {
    return this.reclaims.reclaim(objectName(spec.shortId), signal)
  }

  /** Whether this kernel can push an agent's memory out. */
  canReclaim(spec: ComputerSpec): boolean {
    return this.cgroups.canReclaim(objectName(spec.shortId))
  }

  /* ---- commands beside the agent ---- */

  /**
   * Runs a command in the computer. Calls may overlap.
   * @throws Error when the computer cannot be brought up
   */
  async exec(spec: ComputerSpec, request: ExecRequest): Promise<ExecResult> {
    await this.up(spec)
    return this.beside.run(objectName(spec.shortId), this.initPid(spec), this.privateMounts(spec), request)
  }

  /** Starts a command whose output is taken as it comes. @throws Error when the computer cannot be brought up */
  async execLive(spec: ComputerSpec, request: LiveRequest): Promise<LiveCommand> {
    await this.up(spec)
    return this.beside.start(objectName(spec.shortId), this.initPid(spec), this.privateMounts(spec), request)
  }

  /**
   * Opens a terminal in the computer. Calls may overlap.
   * @throws Error when the computer cannot be brought up
   */
  async openTerminal(spec: ComputerSpec, request: TerminalRequest): Promise<Terminal> {
    await this.up(spec)
    return this.beside.open(objectName(spec.shortId), this.initPid(spec), this.privateMounts(spec), request)
  }

  /* ---- who is calling ---- */

  /** Whether the connection from `port` of the computer to the LLM proxy was made by its agent's tree. */
  isAgentConnection(spec: ComputerSpec, port: number): boolean {
    return this.network.cgroupOf(spec.shortId, spec.slot, port) === this.cgroups.agentId(objectName(spec.shortId))
  }

  /** Resets the agent's connections to the LLM proxy but those from the ports that orb `holds` the other end of. */
  resetLostCalls(spec: ComputerSpec, holds: Ports): void {
    this.network.resetProxyConnections(spec.shortId, this.cgroups.agentId(objectName(spec.shortId)), holds)
  }

  /** For tests and benchmarks' tear-down: rules and gateway address go; computers must be down. */
  async stop(): Promise<void> {
    await this.network.stop()
    await this.closeView()
  }

  /** Leaves all as it is and lets go of orb's own handles. */
  close(): void {
    this.network.close()
    void this.closeView()
  }

  private privateMounts(spec: ComputerSpec): launcher.PrivateMounts {
    return { masks: this.masks, shmBytes: shmBytes(spec) }
  }

  private closeView(): Promise<void> {
    return this.view.then(
      (view) => view.close(),
      () => undefined,
    )
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
