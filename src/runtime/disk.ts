import { existsSync } from 'node:fs'
import { mkdir, open, readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type Base, lowersOf } from './base.ts'
import { CommandError, run } from './command.ts'
import type { ComputerPaths } from './paths.ts'

const MB = 1024 * 1024
/** Smaller file systems get a journal of this size; mkfs's own choice would eat a quarter of a 64 MB disk. */
const SMALL_DISK_MB = 512
const SMALL_JOURNAL_MB = 4

/**
 * A computer's disk: a sparse ext4 image of `diskMb`, the hard cap on what it writes. Replaces an unfinished one.
 * @throws CommandError, or a node:fs error such as ENOSPC
 */
export async function makeDisk(paths: ComputerPaths, diskMb: number): Promise<void> {
  await mkdir(paths.dir, { recursive: true, mode: 0o700 })
  const temp = `${paths.disk}.part`
  const file = await open(temp, 'w', 0o600)
  await file.truncate(diskMb * MB)
  await file.close()
  const journal = diskMb < SMALL_DISK_MB ? ['-J', `size=${SMALL_JOURNAL_MB}`] : []
  // Root inside is the only user that matters: no blocks are kept back for it.
  await run([
    'mkfs.ext4',
    '-q',
    '-F',
    '-m',
    '0',
    '-E',
    'lazy_itable_init=1,lazy_journal_init=1,nodiscard',
    ...journal,
    temp,
  ])
  await run(['mv', temp, paths.disk])
}

/** Layers on a computer's disk: upper and work directory of its root, and of its /usr when that is the server's. */
const LAYERS = ['root', 'root.work', 'usr', 'usr.work']

/**
 * index and nfs_export give files on the overlay stable handles: without them criu cannot dump a watched directory,
 * and most coding agents watch their files.
 */
const OVERLAY_OPTIONS = 'index=on,nfs_export=on'

/** Directories of a layer are the computer's own as much as those it made itself: it may rename them. */
const LAYER_OPTIONS = 'redirect_dir=on'

/** Without its cache of shared attribute blocks, of which these disks have none, a mounted file system costs 16 KB less. */
const DISK_OPTIONS = 'loop,nodev,noatime,nombcache'

/** What makes a fresh root this computer's. */
export interface Identity {
  hostname: string
  nameserver: string
}

/** Beside the layers, where nothing inside sees it: the disk has its layers and its identity. */
const MADE = '.made'

/** Mounts what is not mounted yet: the disk, the root on it, /usr. No device node works on any of them. */
export async function mountComputer(paths: ComputerPaths, base: Base, identity: Identity): Promise<void> {
  const mounted = await mountPoints()
  await mkdir(paths.mount, { recursive: true, mode: 0o700 })
  await mkdir(paths.rootfs, { recursive: true, mode: 0o755 })
  if (!mounted.has(paths.mount)) {
    await run(['mount', '-t', 'ext4', '-o', DISK_OPTIONS, paths.disk, paths.mount])
  }
  if (!existsSync(join(paths.mount, MADE))) await layOut(paths.mount, identity)
  if (!mounted.has(paths.rootfs)) await mountOverlay(paths, 'root', base, paths.rootfs)
  const usr = join(paths.rootfs, 'usr')
  if (base.hostUsr && !mounted.has(usr)) await mountOverlay(paths, 'usr', base, usr)
}

const PROFILE = `# The PATH of the agent, in place of the one that /etc/profile has just set.
if [ -n "\${ORB_LOGIN_PATH-}" ]; then export PATH="$ORB_LOGIN_PATH"; fi
`

/**
 * Layers, host name and resolver of a fresh disk. Done once, before anything ran inside: later the layers are the
 * tenant's, and a path in them may lead anywhere.
 */
async function layOut(mount: string, { hostname, nameserver }: Identity): Promise<void> {
  for (const layer of LAYERS) await mkdir(join(mount, layer), { recursive: true, mode: 0o755 })
  const etc = join(mount, 'root', 'etc')
  await mkdir(etc, { recursive: true, mode: 0o755 })
  const hosts = `127.0.0.1\tlocalhost\n127.0.1.1\t${hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n`
  await writeFile(join(etc, 'hosts'), hosts, { mode: 0o644 })
  await writeFile(join(etc, 'resolv.conf'), `nameserver ${nameserver}\n`, { mode: 0o644 })
  await writeFile(join(etc, 'hostname'), `${hostname}\n`, { mode: 0o644 })
  await mkdir(join(etc, 'profile.d'), { mode: 0o755 })
  await writeFile(join(etc, 'profile.d', 'orb.sh'), PROFILE, { mode: 0o644 })
  await writeFile(join(mount, MADE), '')
}

const BUSY_RETRY_MS = 50
const BUSY_TIMEOUT_MS = 3000

/** A mount namespace that ended a moment ago may still hold the layers. */
async function mountOverlay(paths: ComputerPaths, part: 'root' | 'usr', base: Base, target: string): Promise<void> {
  const upper = join(paths.mount, part)
  const lower = lowersOf(base, part).join(':')
  const features = base.layer === null ? OVERLAY_OPTIONS : `${OVERLAY_OPTIONS},${LAYER_OPTIONS}`
  const options = `nodev,${features},lowerdir=${lower},upperdir=${upper},workdir=${upper}.work`
  const deadline = performance.now() + BUSY_TIMEOUT_MS
  for (;;) {
    try {
      await run(['mount', '-t', 'overlay', 'orb', '-o', options, target])
      return
    } catch (thrown) {
      if (!isBusy(thrown) || performance.now() > deadline) throw thrown
      await Bun.sleep(BUSY_RETRY_MS)
    }
  }
}

const isBusy = (thrown: unknown): boolean =>
  thrown instanceof CommandError && /busy|already mounted/.test(thrown.stderr)

/**
 * Unmounts all of a computer; what is not mounted is no error. What a download or a log reader still has open goes when
 * that is over, and the loop device with it.
 */
export async function unmountComputer(paths: ComputerPaths): Promise<void> {
  const mounted = await mountPoints()
  for (const target of [join(paths.rootfs, 'usr'), paths.rootfs, paths.mount]) {
    if (!mounted.has(target)) continue
    await run(['umount', target]).catch((thrown) =>
      isBusy(thrown) ? run(['umount', '-l', target]) : Promise.reject(thrown),
    )
  }
}

/** In the directory of a computer that was deleted: only then may its disk go without somebody asking for it. */
const DELETED = 'deleted'

/** Notes that the computer was deleted: what a crash leaves of it is then removed later. */
export async function markDeleted(paths: ComputerPaths): Promise<void> {
  if (existsSync(paths.dir)) await writeFile(join(paths.dir, DELETED), '')
}

/** Whether what lies there is the disk of a computer that was not deleted. */
export const isDiskKept = (paths: ComputerPaths): boolean =>
  existsSync(paths.disk) && !existsSync(join(paths.dir, DELETED))

/**
 * Removes a computer's images, then its directory; the other way round a crash would leave images that nobody finds.
 * @throws Error when something of it is still mounted
 */
export async function removeDisk(paths: ComputerPaths): Promise<void> {
  for (const place of await mountPoints()) {
    if (place.startsWith(`${paths.dir}/`)) throw new Error(`${place} is still mounted`)
  }
  await rm(paths.checkpoints, { recursive: true, force: true })
  await rm(paths.dir, { recursive: true, force: true, maxRetries: 3 })
}

/** Every mount point of this process, unescaped. */
export async function mountPoints(): Promise<Set<string>> {
  const table = await readFile('/proc/self/mounts', 'utf8')
  return new Set(table.split('\n').map((line) => unescaped(line.split(' ')[1] ?? '')))
}

/** Spaces, tabs, newlines and backslashes are octal in the table, proc_pid_mountinfo(5). */
const unescaped = (field: string): string =>
  field.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))
