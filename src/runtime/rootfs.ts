import { closeSync, constants, openSync } from 'node:fs'
import { OrbError } from '../errors.ts'
import { errnoCode, O_PATH, openInRoot, type Stat, statat } from './libc.ts'

/** Runs `use` with a descriptor of the root directory of a computer. */
export async function withRoot<T>(rootDir: string, use: (rootFd: number) => T | Promise<T>): Promise<T> {
  const rootFd = openSync(rootDir, constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    return await use(rootFd)
  } finally {
    closeSync(rootFd)
  }
}

/**
 * Opens what `path` leads to beneath `rootFd` for reading, if `accept` says so. The object is first held without opening it
 * (opening a fifo would wake its writer, opening a device its driver), judged, and only then opened through that hold, so a
 * process that swaps names meanwhile changes nothing. Never blocks: a file under a lease is EAGAIN.
 */
export function openJudged(rootFd: number, path: string, accept: (stat: Stat) => void): { fd: number; stat: Stat } {
  const held = openInRoot(rootFd, path === '' ? '.' : path, O_PATH)
  try {
    const stat = statat(held, '')
    accept(stat)
    const fd = openSync(`/proc/self/fd/${held}`, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY)
    return { fd, stat }
  } finally {
    closeSync(held)
  }
}

/** The segments of a client's path. Throws `invalid_path` for what must not be in one (Orb Cloud contract §14.1). */
export function segmentsOf(path: string): string[] {
  if (path.includes('\0')) throw new OrbError('invalid_path', 'the path contains a NUL character')
  const segments = path.split('/').filter((segment) => segment !== '' && segment !== '.')
  if (segments.includes('..')) throw new OrbError('invalid_path', 'the path contains a .. segment')
  return segments
}

/** Throws `invalid_path` for a fifo, socket or device. */
export function refuseSpecial(stat: Stat): void {
  if (stat.kind === 'other') throw new OrbError('invalid_path', 'not a regular file or directory')
}

export const notFound = (path: string): OrbError => new OrbError('not_found', `no such file or directory: /${path}`)

/** What a failed system call on `path` means to a client; anything unforeseen comes back as it is. */
export function pathError(thrown: unknown, path: string): unknown {
  switch (errnoCode(thrown)) {
    case 'ENOENT':
      return notFound(path)
    case 'ENOTDIR':
      return new OrbError('not_a_directory', `a parent of /${path} is not a directory`)
    case 'EISDIR':
      return new OrbError('is_a_directory', `/${path} is a directory`)
    case 'ELOOP':
      return new OrbError('invalid_path', `too many symbolic links on the way to /${path}`)
    case 'ENAMETOOLONG':
      return new OrbError('invalid_path', 'the path is too long')
    case 'EAGAIN':
    case 'EBUSY':
    case 'ETXTBSY':
      return new OrbError('invalid_path', `/${path} is in use`)
    case 'EACCES':
    case 'EINVAL':
    case 'ENXIO':
    case 'EPERM':
    case 'EROFS':
      return new OrbError('invalid_path', `/${path} does not allow this`)
    case 'EDQUOT':
    case 'ENOSPC':
      return new OrbError('disk_full', 'no space left on the disk of this computer')
    default:
      return thrown
  }
}
