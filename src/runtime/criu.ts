import { rmSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { RuntimeFiles } from './bundle.ts'
import { HOST_ENVIRONMENT } from './command.ts'
import { explain } from './criu-reasons.ts'
import type { HostView } from './host-view.ts'
import { PAGES_LOG, PAGES_LOG_LEVEL } from './hot-pages.ts'
import { DUMP_RESULT, PAGES_DRAINED, RESTORE_RESULT } from './image.ts'
import { errnoCode } from './libc.ts'

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
  /** The agent's /dev/shm holds nothing: a fresh one does as well, and criu need not run tar for it. */
  emptyShm: boolean
}

export interface DumpOptions extends CriuTarget {
  /** Directory of the image. */
  dir: string
  /** The agent's pid 1 as the computer's pid namespace numbers it. */
  pid: number
  freezerDir: string
  timeoutMs: number
}

export interface RestoreOptions extends CriuTarget {
  dir: string
  /** The agent's cgroup.procs files: criu is in them while it restores, so that each page is charged there. */
  cgroups: string[]
  shmBytes: number
  timeoutMs: number
  /** What all pages take at most, once the agent runs. */
  drainTimeoutMs: number
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
/** Where orb-init puts an empty tmpfs for criu. */
const FRESH_SHM = '/run/shm'
/** A task that cannot be seized (somebody traces it) will not be in ten seconds either, criu's own limit. */
const SEIZE_TIMEOUT_S = 3
/** Where orb-init lets criu wait for the page daemon, and the descriptor on which that tells it that it listens. */
const GATE = '/run/gate'
const STATUS_FD = '8'
const PAGES_SOCKET = 'lazy-pages.socket'
/** The network is locked, and processes are put into cgroups, by orb. */
const COMMON_FLAGS = ['--tcp-established', '--network-lock', 'skip', '--manage-cgroups=ignore', '--file-locks']

export class Criu {
  constructor(
    readonly files: RuntimeFiles,
    /** Where criu's probe of this kernel is kept: valid until the next boot, and for this version. */
    private readonly kdat: string,
    private readonly view: Promise<HostView>,
  ) {}

  /**
   * Writes a frozen agent to `dir` and ends it. When it returns the image is whole and the tree gone; when it throws
   * the tree is as it was.
   * @throws CriuError
   */
  async dump(options: DumpOptions): Promise<void> {
    const { dir } = options
    const criu = this.spawn(options, dir, DUMP_RESULT, await this.mounts(options), [
      'dump',
      ...['-t', String(options.pid), '-D', dir, '-o', join(dir, 'dump.log'), '-v1', '--root', options.rootfs],
      ...mounts(options).flatMap(({ path, key }) => ['--external', `mnt[${path}]:${key}`]),
      ...COMMON_FLAGS,
      ...['--freeze-cgroup', options.freezerDir, '--timeout', String(SEIZE_TIMEOUT_S)],
      ...['--link-remap', '--ghost-limit', String(GHOST_LIMIT_BYTES)],
    ])
    if ((await bounded(criu, options.timeoutMs)) !== 0) throw await failure('dump', dir)
  }

  /**
   * Brings an agent back. It runs when this returns; its pages follow on demand, which is never slower than to read them
   * first, however few there are. The image must stay until `drained`.
   * @throws CriuError; the image is untouched
   */
  async restore(options: RestoreOptions): Promise<{ drained: Promise<boolean> }> {
    const { dir } = options
    for (const name of [RESTORE_RESULT, PAGES_DRAINED, PAGES_SOCKET]) rmSync(join(dir, name), { force: true })
    const mountOptions = await this.mounts(options)
    const restore = this.spawn(
      options,
      dir,
      RESTORE_RESULT,
      [
        ...mountOptions,
        ...options.cgroups.flatMap((file) => ['--cgroup', file]),
        ...['--shm', String(options.shmBytes), '--drained', join(dir, PAGES_DRAINED)],
      ],
      [
        'restore',
        ...['-d', '-D', dir, '-o', join(dir, 'restore.log'), '-v1', '--root', options.rootfs],
        ...mounts(options).flatMap(({ key, source }) => ['--external', `mnt[${key}]:${source}`]),
        ...[...COMMON_FLAGS, '--lazy-pages', '--config', GATE],
      ],
      ['lazy-pages', '-D', dir, '-o', join(dir, PAGES_LOG), PAGES_LOG_LEVEL, '--status-fd', STATUS_FD],
    )
    const done = restore.says('done').then((said) => (said ? 0 : restore.exited))
    const code = await bounded({ exited: done, kill: restore.kill }, options.timeoutMs)
    if (code !== 0) {
      // A command inside may have ended the process that sees to the page daemon's end.
      restore.kill()
      throw await failure('restore', dir)
    }
    const drained = bounded(restore, options.drainTimeoutMs)
    return { drained: drained.then((code) => code === 0) }
  }

  /** Returns at once; a directory that is not there is no error. */
  readAhead(dir: string): void {
    Bun.spawn([this.files.init, 'warm', dir], { stdio: ['ignore', 'ignore', 'ignore'], env: HOST_ENVIRONMENT })
  }

  private async mounts({ rootfs }: CriuTarget): Promise<string[]> {
    return ['--view', (await this.view).path, '--root', rootfs]
  }

  /** Runs criu through orb-init, in a process group of its own. */
  private spawn(
    { initPid, netns }: CriuTarget,
    dir: string,
    result: string,
    options: string[],
    argv: string[],
    pages: string[] = [],
  ) {
    const { loader, libraryPath, criu, init } = this.files
    const command = [loader, '--library-path', libraryPath, criu]
    const child = Bun.spawn(
      [
        ...[init, 'criu', '--init', String(initPid), '--net', netns],
        ...['--kdat', this.kdat, '--result', join(dir, result), ...options],
        ...['--', ...command, ...argv],
        ...(pages.length > 0 ? ['--', ...command, ...pages] : []),
      ],
      {
        stdio: ['ignore', 'pipe', Bun.file(join(dir, `${argv[0]}.stderr`))],
        env: HOST_ENVIRONMENT,
        detached: true,
      },
    )
    if (pages.length === 0) void child.stdout.cancel()
    return {
      exited: child.exited,
      says: (line: string) => begins(child.stdout, line),
      kill: () => killProcess(-child.pid),
    }
  }
}

/** The exit code; after `timeoutMs` the whole of it is killed. */
async function bounded(criu: { exited: Promise<number>; kill(): void }, timeoutMs: number): Promise<number> {
  const timer = setTimeout(() => criu.kill(), timeoutMs)
  return criu.exited.finally(() => clearTimeout(timer))
}

/** Kills a process, or with a negative number a group; one that is gone is no error. */
export function killProcess(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch (thrown) {
    if (errnoCode(thrown) !== 'ESRCH') throw thrown
  }
}

/** Whether the stream's first words are this line. */
async function begins(stream: ReadableStream<Uint8Array>, line: string): Promise<boolean> {
  const reader = stream.getReader()
  let text = ''
  while (text.length <= line.length) {
    const { done, value } = await reader.read()
    if (done) break
    text += Buffer.from(value).toString()
  }
  void reader.cancel()
  return text === `${line}\n`
}

/** Mounts that criu leaves to us: what they are called in the image, where they lie inside and on the host. */
function mounts(target: CriuTarget): { path: string; key: string; source: string }[] {
  const usr = target.hostUsr ? [{ path: '/usr', key: 'usr', source: join(target.rootfs, 'usr') }] : []
  const masks = target.masks.map((path) => ({
    path,
    key: path.replaceAll('/', '_'),
    source: join(target.devices, 'null'),
  }))
  const shm = target.emptyShm ? [{ path: '/dev/shm', key: 'shm', source: FRESH_SHM }] : []
  return [...usr, { path: '/dev', key: 'dev', source: target.devices }, ...shm, ...masks]
}

/** criu says this at each start and goes on. */
const HARMLESS = /RLIMIT_NOFILE for self/

async function failure(operation: 'dump' | 'restore', dir: string): Promise<CriuError> {
  const log = await readFile(join(dir, `${operation}.log`), 'utf8').catch(() => '')
  const stderr = await readFile(join(dir, `${operation}.stderr`), 'utf8').catch(() => '')
  const errors = log.split('\n').filter((line) => line.includes('Error') && !HARMLESS.test(line))
  // The first error is the cause, the last one only says that all of it failed.
  const line = errors[0] ?? stderr.trim().split('\n').at(-1) ?? ''
  const reason = line
    .replace(/^\([\d.]+\)\s*/, '')
    .replace(/^\s*\d+:\s*/, '')
    .replace(/^Error \([^)]*\):\s*/, '')
  const noSpace = /No space left on device|Disk quota exceeded/.test(log + stderr)
  return new CriuError(operation, explain(reason) || `criu gave no reason`, noSpace)
}
