import { closeSync, constants, fstatSync, openSync, readSync, statSync } from 'node:fs'
import { dirname } from 'node:path'
import { errnoCode, O_PATH, openInRoot, type Stat, statat } from './libc.ts'

/** What a look at a file of a computer has found. `stamp` is for the next look; null: it must read again. */
export type FileLook =
  /** The computer's root is not mounted: nothing can be said of the file, and nothing there can change it. */
  | { kind: 'away' }
  | { kind: 'same' }
  | { kind: 'none' }
  | { kind: 'read'; stamp: string | null; bytes: Uint8Array }
  | { kind: 'refused'; stamp: string | null; reason: string }

/** The kernel's clock for files stands still for some ms: a change right after a look may bear the stamp that the look saw. */
const UNSETTLED_MS = 1000
const NS_PER_MS = 1_000_000n

/**
 * Looks at the file `path` (absolute inside, without its first slash) of the computer whose root is `rootDir`, resolved as the
 * computer itself would, and reads it unless it is as at the look that gave the stamp `last`. Wakes nobody, brings nothing up
 * and takes some microseconds. @param maxBytes a longer file is refused
 */
export function lookAtFile(rootDir: string, path: string, last: string | null, maxBytes: number): FileLook {
  let rootFd: number
  try {
    rootFd = openSync(rootDir, constants.O_RDONLY | constants.O_DIRECTORY)
  } catch (thrown) {
    if (errnoCode(thrown) === 'ENOENT') return { kind: 'away' }
    throw thrown
  }
  try {
    if (fstatSync(rootFd).dev === statSync(dirname(rootDir)).dev) return { kind: 'away' }
    return lookAt(openInRoot(rootFd, path, O_PATH), last, maxBytes)
  } catch (thrown) {
    const code = errnoCode(thrown)
    if (code === null) throw thrown
    if (code === 'ENOENT' || code === 'ENOTDIR') return { kind: 'none' }
    return { kind: 'refused', stamp: null, reason: `cannot be read (${code})` }
  } finally {
    closeSync(rootFd)
  }
}

/** Judges the file before it is opened: opening a fifo would wake its writer. Closes `held`. */
function lookAt(held: number, last: string | null, maxBytes: number): FileLook {
  try {
    const stat = statat(held, '')
    const stamp = `${stat.ino} ${stat.size} ${stat.ctimeNs}`
    if (stamp === last) return { kind: 'same' }
    const settled = isSettled(stat) ? stamp : null
    if (stat.kind !== 'file') return { kind: 'refused', stamp: settled, reason: 'is not a regular file' }
    if (stat.size > maxBytes) return { kind: 'refused', stamp: settled, reason: `is longer than ${maxBytes} bytes` }
    const bytes = readAtMost(held, maxBytes)
    return { kind: 'read', stamp: settled, bytes }
  } finally {
    closeSync(held)
  }
}

const isSettled = ({ ctimeNs }: Stat): boolean => Date.now() - Number(ctimeNs / NS_PER_MS) > UNSETTLED_MS

/** What is appended meanwhile is for the next look. */
function readAtMost(held: number, maxBytes: number): Uint8Array {
  const fd = openSync(`/proc/self/fd/${held}`, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY)
  try {
    const bytes = new Uint8Array(maxBytes)
    let size = 0
    let read: number
    do {
      read = readSync(fd, bytes, size, maxBytes - size, size)
      size += read
    } while (read > 0 && size < maxBytes)
    return bytes.slice(0, size)
  } finally {
    closeSync(fd)
  }
}
