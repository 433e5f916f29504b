import { readdirSync, statfsSync, statSync } from 'node:fs'
import { mkdir, readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { log } from '../log.ts'
import type { Base } from './base.ts'
import type { Cgroups } from './cgroup.ts'
import { type ComputerSpec, killLeaf, shmBytes } from './computer.ts'
import { type Criu, CriuError, type CriuTarget, killProcess } from './criu.ts'
import { type CriuProcess, runningCriu } from './criu-processes.ts'
import { HotPages } from './hot-pages.ts'
import {
  DUMP_RESULT,
  isComplete,
  isDrained,
  isRestored,
  isStored,
  isSynced,
  RESTORE_RESULT,
  readNotes,
  syncImage,
  writeNotes,
} from './image.ts'
import { checkImage, hasManifest, ImageError, noteHashes, noteSizes } from './image-manifest.ts'
import { mendImage } from './image-mend.ts'
import * as launcher from './launcher.ts'
import { errnoCode } from './libc.ts'
import type { Ports } from './netlink.ts'
import type { Network } from './network.ts'
import {
  holdOpenFiles,
  type Layers,
  portsOf,
  prepareOpenFiles,
  releaseOpenFiles,
  releaseOtherFiles,
} from './open-files.ts'
import { type ComputerPaths, objectName } from './paths.ts'
import { portsInUse } from './reserved-ports.ts'
import { readBack } from './working-set.ts'

/** What of the host and of computers checkpoints need. */
export interface CheckpointHost {
  dataDir: string
  /** The /dev that all computers share. */
  devices: string
  masks: string[]
  paths(spec: ComputerSpec): ComputerPaths
  base(spec: ComputerSpec): Base
  /** Host pid of the computer's pid 1. @throws Error when it is not up */
  initPid(spec: ComputerSpec): number
  up(spec: ComputerSpec): Promise<void>
}

/** Longest that criu may take beyond what writing the memory takes: a command inside may have stopped it. */
const CRIU_TIMEOUT_MS = 30_000
/** 20 MB/s */
const SLOWEST_DISK_BYTES_PER_MS = 20_000
const SETTLE_POLL_MS = 50
/** More than this of a sleeping computer is worth another try to get it back. */
const CACHE_REST_BYTES = 1024 * 1024
const CACHE_PASSES = 5
const CACHE_PAUSE_MS = 100
const BYTES_PER_MB = 1024 * 1024
/** Stays free: on a disk that is full to the last byte the computers' own disks, which are files, stop taking writes. */
const SPARE_BYTES = 64 * BYTES_PER_MB

/** Agents on their way to disk and back. Calls for one computer must not overlap. */
export class Checkpoints {
  private readonly draining = new Map<string, Promise<boolean>>()
  private readonly hotPages = new HotPages()
  /** Images on their way to stable storage: a restore does not share the disk and the processor with that. */
  private readonly syncing = new Map<string, AbortController>()

  constructor(
    private readonly host: CheckpointHost,
    private readonly criu: Criu,
    private readonly cgroups: Cgroups,
    private readonly network: Network,
  ) {}

  imageDir(spec: ComputerSpec, image: string): string {
    return join(this.host.paths(spec).checkpoints, image)
  }

  /**
   * Writes the frozen agent into the image and ends its tree; its connections are locked from here on.
   * @throws CriuError; the tree is then still frozen, its connections open, nothing of the image left
   */
  async dump(spec: ComputerSpec, image: string): Promise<{ bytes: number; durationMs: number }> {
    const started = performance.now()
    const name = objectName(spec.shortId)
    const dir = this.imageDir(spec, image)
    const init = launcher.agentInit(this.cgroups.processes(name, 'agent'))
    const pid = init === null ? undefined : launcher.namespacePids(init)[1]
    if (init === null || pid === undefined) throw new Error('the agent has no process')
    this.checkRoom(name)
    const connections = this.network.connectionsOf(spec.shortId, this.cgroups.agentId(name))
    this.network.lock(spec.shortId, connections)
    this.network.outbound.pause(spec.slot)
    try {
      // Page by page criu would take four times as long for what is in swap.
      if (this.cgroups.agentSwap(name) > 0) await Promise.all(this.cgroups.processes(name, 'agent').map(readBack))
      await rm(dir, { recursive: true, force: true })
      await mkdir(dir, { recursive: true, mode: 0o700 })
      const emptyShm = isEmptyShm(init)
      writeNotes(dir, { connections, emptyShm })
      const timeoutMs = CRIU_TIMEOUT_MS + this.cgroups.agentMemory(name) / SLOWEST_DISK_BYTES_PER_MS
      const freezerDir = this.cgroups.freezerDir(name)
      await this.criu.dump({ ...this.target(spec, emptyShm), dir, pid, freezerDir, timeoutMs })
    } catch (thrown) {
      if (!(await this.dumpedAllTheSame(spec, dir).catch(() => false))) {
        // criu thaws what it froze: back to how it was found.
        this.cgroups.setFrozen(name, true)
        this.network.unlock(spec.shortId)
        await rm(dir, { recursive: true, force: true })
        throw thrown
      }
    }
    // From here on the image is all that there is of the agent: nothing that fails now may touch it.
    const durationMs = performance.now() - started
    this.tidyUp(name)
    return { bytes: await this.seal(spec, image), durationMs }
  }

  /** Whether the dump went well though word of that did not come: somebody inside may end the process that brings it. */
  private async dumpedAllTheSame(spec: ComputerSpec, dir: string): Promise<boolean> {
    if (this.running().some((criu) => criu.dir === dir)) await this.outwait(spec, dir)
    return (await isComplete(dir)) && !this.cgroups.isPopulated(objectName(spec.shortId), 'agent')
  }

  /** @throws CriuError when the memory that has to be written cannot fit */
  private checkRoom(name: string): void {
    const { bavail, bsize } = statfsSync(this.host.dataDir)
    const [free, memory] = [bavail * bsize, this.cgroups.agentAnonymous(name)]
    if (free >= memory + SPARE_BYTES) return
    const mb = (bytes: number) => `${Math.ceil(bytes / BYTES_PER_MB)} MB`
    throw new CriuError('dump', `${mb(memory)} of memory do not fit into the ${mb(free)} of the data directory`, true)
  }

  /** Notes of a whole image what a later restore needs to know. Returns the bytes that criu wrote. */
  private async seal(spec: ComputerSpec, image: string): Promise<number> {
    const dir = this.imageDir(spec, image)
    await mendImage(dir).catch((error) => log('warn', 'a checkpoint could not be mended', { dir, error }))
    await this.hotPages
      .mark(spec.id, dir)
      .catch((error) => log('warn', 'a checkpoint has no hot pages', { dir, error }))
    try {
      holdOpenFiles(this.layers(spec), dir, image)
      this.network.reserve(spec.shortId, portsOf(dir))
    } catch (error) {
      log('warn', 'open files of a sleeping agent are not kept', { computer: objectName(spec.shortId), error })
    }
    return noteSizes(dir).catch((error) => {
      log('warn', 'a checkpoint has no manifest', { dir, error })
      return 0
    })
  }

  private tidyUp(name: string): void {
    const failed = (error: unknown) =>
      log('warn', 'memory of a sleeping agent is not all given back', { computer: name, error })
    try {
      this.cgroups.setFrozen(name, false)
    } catch (error) {
      failed(error)
    }
    // Nobody waits for it: on cgroup v2 it takes its time.
    void this.cgroups.dropCache(name).catch(failed)
  }

  /** Keeps the ports of a sleeping agent in a network namespace that was made anew, as after a reboot. */
  async reservePorts(spec: ComputerSpec): Promise<void> {
    const images = await readdir(this.host.paths(spec).checkpoints).catch(() => [])
    const ports = images.flatMap((image) => portsOf(this.imageDir(spec, image)))
    this.network.reserve(spec.shortId, ports)
  }

  /** Puts an image on stable storage: until then a power cut may leave nothing of it but names. A restore ends this early. */
  async syncImage(spec: ComputerSpec, image: string): Promise<void> {
    const dir = this.imageDir(spec, image)
    const inUse = new AbortController()
    this.syncing.set(spec.id, inUse)
    try {
      await noteHashes(dir, inUse.signal)
      await syncImage(this.criu.files.init, dir, this.host.paths(spec).mount, inUse.signal)
      await this.giveBack(objectName(spec.shortId), inUse.signal)
    } finally {
      if (this.syncing.get(spec.id) === inUse) this.syncing.delete(spec.id)
    }
  }

  /** What the file system held on to before: names first, then the files behind them, each some time after it was asked. */
  private async giveBack(name: string, signal: AbortSignal): Promise<void> {
    for (let pass = 0; pass < CACHE_PASSES && this.cgroups.agentMemory(name) > CACHE_REST_BYTES; pass++) {
      if (signal.aborted) return
      await this.cgroups.dropCache(name, signal)
      await Bun.sleep(CACHE_PAUSE_MS)
    }
  }

  /**
   * Brings the agent back from the image; it runs, and its connections are open, when this returns. What of its tree is
   * still there is killed first.
   * @param foreign a former orb made the image: all of it is read to see whether it is whole
   * @param held ports of the agent's connections to the LLM proxy whose other end is still there; the others are reset first
   * @throws CriuError, ImageError; the image is kept, nothing of a half restored tree stays
   */
  async restore(
    spec: ComputerSpec,
    image: string,
    foreign: boolean,
    held: () => Ports,
  ): Promise<{ durationMs: number }> {
    const started = performance.now()
    const name = objectName(spec.shortId)
    const dir = this.imageDir(spec, image)
    this.syncing.get(spec.id)?.abort()
    if (!(await isComplete(dir))) throw new ImageError('the checkpoint is not whole')
    await checkImage(dir, foreign)
    await this.host.up(spec)
    // A tree that a failure left alive would be there twice.
    await killLeaf(this.cgroups, name, 'agent')
    const { connections, emptyShm } = readNotes(dir)
    const putBack = await prepareOpenFiles(this.layers(spec), dir, image)
    try {
      this.network.expectApps(spec.shortId, true)
      this.network.outbound.resume(spec.slot)
      const { drained } = await this.criu.restore({
        ...this.target(spec, emptyShm),
        shmBytes: shmBytes(spec),
        dir,
        cgroups: this.cgroups.joinFiles(name, 'agent'),
        timeoutMs: CRIU_TIMEOUT_MS,
        drainTimeoutMs: drainTimeoutMs(dir),
      })
      this.trackDraining(spec.id, this.learning(spec.id, dir, drained))
      const open = held()
      if (connections.some((one) => this.network.leadsToProxy(one) && !open.has(one.local.port))) {
        this.network.resetProxyConnections(spec.shortId, this.cgroups.agentId(name), open)
      }
      this.network.unlock(spec.shortId)
      return { durationMs: performance.now() - started }
    } catch (thrown) {
      this.network.expectApps(spec.shortId, false)
      this.network.outbound.pause(spec.slot)
      // What criu left of itself: a process that just began another program is in no list for a moment.
      for (const criu of this.running()) if (criu.dir === dir) killProcess(criu.pid)
      await killLeaf(this.cgroups, name, 'agent')
      throw this.portTaken(spec, dir, thrown) ?? thrown
    } finally {
      putBack()
    }
  }

  /** Has the kernel read an image that it let go of meanwhile, so that the restore finds it in memory. Returns at once. */
  readAhead(spec: ComputerSpec, image: string): void {
    this.criu.readAhead(this.imageDir(spec, image))
  }

  /** Removes an image; a missing one is no error. */
  async removeImage(spec: ComputerSpec, image: string): Promise<void> {
    await rm(this.imageDir(spec, image), { recursive: true, force: true })
    await releaseOpenFiles(this.host.paths(spec), image)
  }

  /** Removes every image of the computer but `keep`. */
  async removeOtherImages(spec: ComputerSpec, keep: string | null): Promise<void> {
    await releaseOtherFiles(this.host.paths(spec), keep)
    const names = await readdir(this.host.paths(spec).checkpoints).catch(() => [])
    for (const name of names) if (name !== keep) await this.removeImage(spec, name)
  }

  /** Images that no transition left in use, and criu where it works on one of those: removed. Returns how many there were. */
  async removeStrays(spec: ComputerSpec, keep: string | null): Promise<number> {
    const names = await readdir(this.host.paths(spec).checkpoints).catch(() => [])
    const strays = names.filter((name) => name !== keep)
    if (strays.length === 0) return 0
    const dirs = strays.map((name) => this.imageDir(spec, name))
    for (const { pid, dir } of runningCriu(this.host.dataDir)) if (dirs.includes(dir)) killProcess(pid)
    for (const name of strays) await this.removeImage(spec, name)
    return strays.length
  }

  /** After the pages of the last restore are all in: true; false when their daemon failed, which the agent will not survive. */
  drained(spec: ComputerSpec): Promise<boolean> {
    return this.draining.get(spec.id) ?? Promise.resolve(true)
  }

  /**
   * What a crash of orb left of a transition: waits for a criu that is still at work, then says how its image stands.
   * A page daemon goes on as long as there is an agent to serve, and is waited for before the image is used again.
   * @param rebooted an image counts only if it had reached stable storage
   * @param found what was at work when orb started: only what is among it is looked for again
   */
  async settle(
    spec: ComputerSpec,
    image: string | null,
    rebooted: boolean,
    found: CriuProcess[] = this.running(),
  ): Promise<{ imageComplete: boolean; restored: boolean }> {
    if (image === null) return { imageComplete: false, restored: false }
    const dir = this.imageDir(spec, image)
    if (found.some((criu) => criu.dir === dir)) await this.outwait(spec, dir)
    const [complete, restored, synced] = await Promise.all([isComplete(dir), isRestored(dir), isSynced(dir)])
    if (complete && !restored && !hasManifest(dir)) await this.seal(spec, image)
    return { imageComplete: complete && (synced || !rebooted), restored }
  }

  /** When the image was whole, and when the last restore from it ran to its end, in ms since the epoch. */
  times(spec: ComputerSpec, image: string | null): { dumpedAt?: number; restoredAt?: number } {
    if (image === null) return {}
    const dir = this.imageDir(spec, image)
    return { dumpedAt: writtenAt(join(dir, DUMP_RESULT)), restoredAt: writtenAt(join(dir, RESTORE_RESULT)) }
  }

  /** criu processes of any orb that worked on this data directory. */
  running(): CriuProcess[] {
    return runningCriu(this.host.dataDir)
  }

  /** An image, or none, that needs nothing: whole, on stable storage, nobody at work on it, the only one of its computer. */
  isAtRest(spec: ComputerSpec, image: string | null, found: CriuProcess[]): boolean {
    const dir = image === null ? null : this.imageDir(spec, image)
    if (dir !== null && (found.some((criu) => criu.dir === dir) || !isStored(dir))) return false
    return namesIn(this.host.paths(spec).checkpoints).every((name) => name === image)
  }

  private async outwait(spec: ComputerSpec, dir: string): Promise<void> {
    const working = (lazy: boolean) =>
      this.running().filter((criu) => criu.dir === dir && (criu.operation === 'lazy-pages') === lazy)
    const deadline = performance.now() + CRIU_TIMEOUT_MS
    for (let busy = working(false); busy.length > 0; busy = working(false)) {
      if (performance.now() > deadline) for (const { pid } of busy) killProcess(pid)
      await Bun.sleep(SETTLE_POLL_MS)
    }
    if (!this.cgroups.isPopulated(objectName(spec.shortId), 'agent'))
      for (const { pid } of working(true)) killProcess(pid)
    if (working(true).length === 0) return
    const drained = (async () => {
      const end = performance.now() + drainTimeoutMs(dir)
      for (let busy = working(true); busy.length > 0; busy = working(true)) {
        if (performance.now() > end) for (const { pid } of busy) killProcess(pid)
        await Bun.sleep(SETTLE_POLL_MS)
      }
      return isDrained(dir)
    })()
    this.trackDraining(spec.id, drained)
  }

  /** Of an agent that is no more. */
  forget(spec: ComputerSpec): void {
    this.hotPages.forget(spec.id)
  }

  private async learning(id: string, dir: string, drained: Promise<boolean>): Promise<boolean> {
    const whole = await drained
    await this.hotPages.learn(id, dir).catch((error) => log('warn', 'the hot pages are not known', { dir, error }))
    return whole
  }

  private trackDraining(id: string, drained: Promise<boolean>): void {
    this.draining.set(id, drained)
    void drained.then(() => {
      if (this.draining.get(id) === drained) this.draining.delete(id)
    })
  }

  /** What criu's failure to bind means to a user. */
  private portTaken(spec: ComputerSpec, dir: string, thrown: unknown): CriuError | null {
    if (!(thrown instanceof CriuError) || !/bind|Address already in use/.test(thrown.reason)) return null
    const inUse = portsInUse(this.host.initPid(spec))
    const port = portsOf(dir).find((one) => inUse.has(one))
    if (port === undefined) return null
    return new CriuError(
      'restore',
      `port ${port} of the agent is in use by another program in its computer: end that first`,
    )
  }

  private layers(spec: ComputerSpec): Layers {
    return { paths: this.host.paths(spec), base: this.host.base(spec) }
  }

  private target(spec: ComputerSpec, emptyShm: boolean): CriuTarget {
    return {
      initPid: this.host.initPid(spec),
      rootfs: this.host.paths(spec).rootfs,
      netns: this.network.netnsFile(spec.shortId),
      devices: this.host.devices,
      hostUsr: this.host.base(spec).hostUsr,
      masks: this.host.masks,
      emptyShm,
    }
  }
}

/** A command inside may have stopped the page daemon: without an end of that, whoever wants to use the image would wait for ever. */
function drainTimeoutMs(dir: string): number {
  const pages = namesIn(dir).filter((name) => name.startsWith('pages-'))
  const bytes = pages.reduce((sum, name) => sum + statSync(join(dir, name)).size, 0)
  return CRIU_TIMEOUT_MS + bytes / SLOWEST_DISK_BYTES_PER_MS
}

const writtenAt = (file: string): number | undefined => statSync(file, { throwIfNoEntry: false })?.mtimeMs

function namesIn(dir: string): string[] {
  try {
    return readdirSync(dir)
  } catch (thrown) {
    if (errnoCode(thrown) === 'ENOENT') return []
    throw thrown
  }
}

/** Nothing in it, and no deleted file that is still open: not a single page and no inode but its root. */
function isEmptyShm(pid: number): boolean {
  const { blocks, bfree, files, ffree } = statfsSync(`/proc/${pid}/root/dev/shm`)
  return blocks === bfree && files - ffree === 1
}
