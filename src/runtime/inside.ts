import { createHash } from 'node:crypto'
import { closeSync, constants, fchmodSync, fstatSync, openSync, readFileSync, readSync, writeSync } from 'node:fs'
import { errnoCode, mkdirat, openInRoot, renameat } from './libc.ts'

/*
 * The few files that orb itself keeps inside a computer, below /.orb. The tenant may replace any of them by anything, so
 * each is opened beneath the root and looked at before it is believed; the harm stays the tenant's own.
 */

const DIRECTORY = '.orb'
const HASH_LENGTH = 12
const EXIT_FILE_BYTES = 96

const hashes = new Map<string, string>()

/** Puts `orb-init` into the computer under a name made of its content, so that older agents keep theirs. Returns its path inside. */
export async function installPid1(rootfs: string, init: string): Promise<string> {
  const content = readFileSync(init)
  const hash = hashes.get(init) ?? createHash('sha256').update(content).digest('hex').slice(0, HASH_LENGTH)
  hashes.set(init, hash)
  const name = `init-${hash}`
  const root = openSync(rootfs, constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    const dir = openDirectory(root)
    try {
      if (!isInstalled(dir, name, content.length)) {
        const flags =
          constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC | constants.O_NOFOLLOW | constants.O_NONBLOCK
        const fd = openInRoot(dir, `${name}.part`, flags, 0o755)
        try {
          for (let at = 0; at < content.length; ) at += writeSync(fd, content, at)
          fchmodSync(fd, 0o755)
        } finally {
          closeSync(fd)
        }
        renameat(dir, `${name}.part`, dir, name)
      }
    } finally {
      closeSync(dir)
    }
  } finally {
    closeSync(root)
  }
  return `/${DIRECTORY}/${name}`
}

function openDirectory(root: number): number {
  const flags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW
  try {
    return openInRoot(root, DIRECTORY, flags)
  } catch (thrown) {
    if (errnoCode(thrown) !== 'ENOENT') throw thrown
    mkdirat(root, DIRECTORY, 0o755)
    return openInRoot(root, DIRECTORY, flags)
  }
}

function isInstalled(dir: number, name: string, size: number): boolean {
  try {
    const fd = openInRoot(dir, name, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
    const info = fstatSync(fd)
    closeSync(fd)
    return info.isFile() && info.size === size && (info.mode & 0o111) === 0o111
  } catch (thrown) {
    if (errnoCode(thrown) === 'ENOENT' || errnoCode(thrown) === 'ELOOP') return false
    throw thrown
  }
}

/** What an agent's pid 1 wrote down when the program ended. */
export interface Exit {
  code: number
  /** By the clock of that moment, which need not be later than that of the start: ms since the epoch. */
  at: number
  /** Which start this was the end of; null from a pid 1 of an orb that did not tell. */
  life: number | null
}

/** The agent's exit, or null when there is nothing to be believed. */
export function readExit(rootfs: string): Exit | null {
  try {
    const root = openSync(rootfs, constants.O_RDONLY | constants.O_DIRECTORY)
    try {
      const fd = openInRoot(root, `${DIRECTORY}/exit`, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
      try {
        if (!fstatSync(fd).isFile()) return null
        const buffer = Buffer.alloc(EXIT_FILE_BYTES)
        const text = buffer.toString('latin1', 0, readSync(fd, buffer))
        const [, code, at, life] = /^(\d{1,3}) (\d{1,16})(?: (\d{1,16}))?\n$/.exec(text) ?? []
        return code && at ? { code: Number(code), at: Number(at), life: life ? Number(life) : null } : null
      } finally {
        closeSync(fd)
      }
    } finally {
      closeSync(root)
    }
  } catch (thrown) {
    if (errnoCode(thrown) !== null) return null
    throw thrown
  }
}
