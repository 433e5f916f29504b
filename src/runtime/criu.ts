import { existsSync, statSync } from 'node:fs'
import { open, readdir, readFile, readlink, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { RuntimeFiles } from './bundle.ts'
import { HOST_ENVIRONMENT } from './command.ts'

/** What dump and restore of one agent have in common. */
export interface CriuTarget {
  /** Host pid of the computer's pid 1. */
  initPid: number
  rootfs: string
  netns: string
  devices: string
  /** Whether /usr is a mount of its own. */
  hostUsr: boolean
  masks: string[]
}

export interface DumpOptions extends CriuTarget {
  /** Directory of the image. */
  dir: string
  /** The agent's pid 1 as the computer's pid namespace numbers it. */
  pid: number
  freezerDir: string
}

export interface RestoreOptions extends CriuTarget {
  dir: string
  /** The agent's cgroup.procs files: criu is in them while it restores, so that each page is charged there. */
  cgroups: string[]
}

/** criu refused or failed; `reason` is the line of its log that says why. */
export class CriuError extends Error {
  override name = 'CriuError'
  constructor(
    readonly operation: 'dump' | 'restore',
    readonly reason: string,
    readonly noSpace = false,
  ) {
    super(`${operation} failed: ${reason}`)
  }
}

/** Deleted files that the agent still holds open are saved up to this size each. */
const GHOST_LIMIT_BYTES = 512 * 1024 * 1024
/** The descriptor that criu finds the network namespace at. */
const NETNS_FD = 9
const DUMP_RESULT = 'dump.result'
const RESTORE_RESULT = 'restore.result'
const PAGES_DRAINED = 'lazy.result'

export class Criu {
  constructor(
    private readonly files: RuntimeFiles,
    /** Where criu's probe of this kernel is kept: valid until the next boot, and for this version. */
    private readonly kdat: string,
  ) {}

  /**
   * Writes a frozen agent to `dir` and ends it. When it returns the image is whole and the tree gone; when it throws
   * the tree is as it was.
   * @throws CriuError
   */
  async dump(options: DumpOptions): Promise<{ bytes: number }> {
    const { dir } = options
    const netnsInode = statSync(options.netns).ino
    const code = await this.run(options.initPid, [], dir, DUMP_RESULT, [
      'dump',
      '-t',
      String(options.pid),
      '-D',
      dir,
      '-o',
      join(dir, 'dump.log'),
      '-v1',
      '--root',
      options.rootfs,
      '--external',
      `net[${netnsInode}]:orbnet`,
      ...mounts(options).flatMap(({ path, key }) => ['--external', `mnt[${path}]:${key}`]),
      '--tcp-established',
      '--network-lock',
      'skip',
      '--manage-cgroups=ignore',
      '--freeze-cgroup',
      options.freezerDir,
      '--skip-in-flight',
      '--file-locks',
      '--link-remap',
      '--ghost-limit',
      String(GHOST_LIMIT_BYTES),
    ])
    if (code !== 0) throw await failure('dump', dir)
    return { bytes: await imageBytes(dir) }
  }

  /**
   * Brings an agent back. It runs when this returns; its pages follow on demand. The image must stay until `drained`.
   * @throws CriuError; the image is untouched
   */
  async restore(options: RestoreOptions): Promise<{ drained: Promise<boolean> }> {
    const { dir } = options
    for (const name of [RESTORE_RESULT, PAGES_DRAINED, 'lazy-pages.socket']) await rm(join(dir, name), { force: true })
    const daemon = this.spawn(
      options.initPid,
      [],
      dir,
      PAGES_DRAINED,
      ['lazy-pages', '-D', dir, '-o', join(dir, 'lazy.log'), '-v1', '--status-fd', '3'],
      true,
    )
    await daemon.ready
    const code = await this.run(
      options.initPid,
      options.cgroups,
      dir,
      RESTORE_RESULT,
      [
        'restore',
        '-d',
        '-D',
        dir,
        '-o',
        join(dir, 'restore.log'),
        '-v1',
        '--root',
        options.rootfs,
        '--inherit-fd',
        `fd[${NETNS_FD}]:orbnet`,
        ...mounts(options).flatMap(({ key, source }) => ['--external', `mnt[${key}]:${source}`]),
        '--tcp-established',
        '--network-lock',
        'skip',
        '--manage-cgroups=ignore',
        '--file-locks',
        '--lazy-pages',
      ],
      options.netns,
    )
    if (code === 0) return { drained: daemon.exited.then((exit) => exit === 0) }
    daemon.kill()
    await daemon.exited
    throw await failure('restore', dir)
  }

  private async run(
    initPid: number,
    cgroups: string[],
    dir: string,
    result: string,
    argv: string[],
    netns?: string,
  ): Promise<number> {
    return this.spawn(initPid, cgroups, dir, result, argv, false, netns).exited
  }

  private spawn(
    initPid: number,
    cgroups: string[],
    dir: string,
    result: string,
    argv: string[],
    status: boolean,
    netns?: string,
  ) {
    const { loader, libraryPath, criu, init } = this.files
    const child = Bun.spawn(
      [
        init,
        'criu',
        '--init',
        String(initPid),
        ...cgroups.flatMap((file) => ['--cgroup', file]),
        '--kdat',
        this.kdat,
        '--result',
        join(dir, result),
        ...(netns ? ['--fd', `${NETNS_FD}=${netns}`] : []),
        '--',
        loader,
        '--library-path',
        libraryPath,
        criu,
        ...argv,
      ],
      {
        stdio: ['ignore', 'ignore', Bun.file(join(dir, `${argv[0]}.stderr`)), ...(status ? (['pipe'] as const) : [])],
        env: HOST_ENVIRONMENT,
        detached: true,
      },
    )
    return {
      ready: status ? statusByte(child.stdio[3]) : Promise.resolve(),
      exited: child.exited,
      kill: () => child.kill(),
    }
  }
}

/** The page daemon writes one byte when it listens, or closes the pipe when it ends. */
async function statusByte(fd: number | null | undefined): Promise<void> {
  if (typeof fd !== 'number') return
  const reader = Bun.file(fd).stream().getReader()
  await reader.read()
  await reader.cancel()
}

/** Mounts that criu leaves to us: what they are called in the image, where they lie inside and on the host. */
function mounts(target: CriuTarget): { path: string; key: string; source: string }[] {
  const usr = target.hostUsr ? [{ path: '/usr', key: 'usr', source: join(target.rootfs, 'usr') }] : []
  const masks = target.masks.map((path) => ({
    path,
    key: path.replaceAll('/', '_'),
    source: join(target.devices, 'null'),
  }))
  return [...usr, { path: '/dev', key: 'dev', source: target.devices }, ...masks]
}

/** Whether the dump into `dir` ran to its end: only then is the image whole. */
export const isComplete = async (dir: string): Promise<boolean> => (await resultOf(dir, DUMP_RESULT)) === 0

/** Whether the last restore from `dir` ran to its end. */
export const isRestored = async (dir: string): Promise<boolean> => (await resultOf(dir, RESTORE_RESULT)) === 0

async function resultOf(dir: string, name: string): Promise<number | null> {
  const text = await readFile(join(dir, name), 'utf8').catch(() => '')
  return text.endsWith('\n') ? Number(text) : null
}

async function imageBytes(dir: string): Promise<number> {
  const names = await readdir(dir)
  const sizes = await Promise.all(
    names.filter((name) => name.endsWith('.img')).map(async (name) => (await stat(join(dir, name))).size),
  )
  return sizes.reduce((sum, size) => sum + size, 0)
}

async function failure(operation: 'dump' | 'restore', dir: string): Promise<CriuError> {
  const log = await readFile(join(dir, `${operation}.log`), 'utf8').catch(() => '')
  const stderr = await readFile(join(dir, `${operation}.stderr`), 'utf8').catch(() => '')
  const errors = log.split('\n').filter((line) => line.includes('Error'))
  // The first error is the cause, the last one only says that all of it failed.
  const line = errors[0] ?? stderr.trim().split('\n').at(-1) ?? ''
  const reason = line
    .replace(/^\([\d.]+\)\s*/, '')
    .replace(/^\s*\d+:\s*/, '')
    .replace(/^Error \([^)]*\):\s*/, '')
  const noSpace = /No space left on device|Disk quota exceeded/.test(log + stderr)
  return new CriuError(operation, reason || `criu gave no reason`, noSpace)
}

/** criu processes (of any version that orb unpacked) that work on images of a directory: host pids and image directory. */
export async function runningCriu(runtimeDir: string): Promise<{ pid: number; dir: string; operation: string }[]> {
  const found: { pid: number; dir: string; operation: string }[] = []
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue
    const exe = await readlink(`/proc/${name}/exe`).catch(() => '')
    if (!exe.startsWith(`${runtimeDir}/`) || !exe.endsWith('/ld.so')) continue
    const argv = (await readFile(`/proc/${name}/cmdline`, 'utf8').catch(() => '')).split('\0')
    const dir = argv[argv.indexOf('-D') + 1]
    const operation = argv[4]
    if (dir && operation && argv.includes('-D')) found.push({ pid: Number(name), dir, operation })
  }
  return found
}

/** Puts an image on stable storage: without it a power cut could leave a checkpoint of zeros. */
export async function syncImage(dir: string): Promise<void> {
  for (const name of await readdir(dir)) {
    if (!name.endsWith('.img')) continue
    const file = await open(join(dir, name), 'r')
    await file.sync().finally(() => file.close())
  }
  if (existsSync(dir)) {
    const handle = await open(dir, 'r')
    await handle.sync().finally(() => handle.close())
  }
}
