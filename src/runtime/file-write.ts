import { randomBytes } from 'node:crypto'
import { closeSync, constants, fchmodSync, fchownSync, fsync, write } from 'node:fs'
import { promisify } from 'node:util'
import { OrbError } from '../errors.ts'
import { errnoCode, mkdirat, O_PATH, openInRoot, readlinkat, renameat, type Stat, statat, unlinkat } from './libc.ts'
import { pathError, segmentsOf, withRoot } from './rootfs.ts'

export interface WriteOptions {
  /** Bytes that the sender announced, or null. */
  contentLength: number | null
  maxBytes: number
  signal?: AbortSignal
}

/** Linux follows at most 40 links in one path, path_resolution(7). */
const MAX_LINKS = 40
const NEW_FILE_MODE = 0o644
const NEW_DIRECTORY_MODE = 0o755
const TEMPORARY_MODE = 0o600
const TEMPORARY_NAME_BYTES = 12
const SLASH = 0x2f

const writeAsync = promisify(write)
const fsyncAsync = promisify(fsync)

/**
 * Writes the file at `path` (absolute inside the computer, without its first slash), resolved beneath `rootDir` as the
 * computer itself would, making its parents. Others see the old file or the whole new one, never a part. A new file is
 * root's with mode 0644, an old one keeps owner and mode. Throws OrbError `invalid_path`, `is_a_directory`,
 * `not_a_directory`, `payload_too_large`, `invalid_request` (fewer bytes than announced), `disk_full`; what `body` or
 * `signal` failed with passes as it is. Orb Cloud contract §14.1.
 */
export async function writePath(
  rootDir: string,
  path: string,
  body: ReadableStream<Uint8Array> | null,
  options: WriteOptions,
): Promise<{ path: string; size: number }> {
  const inside = segmentsOf(path).join('/')
  if (inside === '') throw new OrbError('invalid_path', 'the path of a file is needed')
  if (path.endsWith('/')) throw new OrbError('is_a_directory', `/${inside}/ names a directory`)
  if ((options.contentLength ?? 0) > options.maxBytes) throw tooLarge(options.maxBytes)
  try {
    const target = await withRoot(rootDir, (rootFd) => locate(rootFd, Buffer.from(inside)))
    try {
      return { path: inside, size: await replace(target, body, options) }
    } finally {
      closeSync(target.dirFd)
    }
  } catch (thrown) {
    throw pathError(thrown, inside)
  }
}

const tooLarge = (maxBytes: number): OrbError =>
  new OrbError('payload_too_large', `a file may have at most ${maxBytes} bytes`)

/** The place of a file: a name in a directory that is held by its descriptor, so it can be neither swapped nor redirected. */
interface Target {
  dirFd: number
  name: Uint8Array
  /** The file that is there now. */
  previous: Stat | null
}

/** Follows symlinks in the last place too, one at a time, each resolved from the root again. Throws `Errno`, OrbError. */
const locate = (rootFd: number, path: Buffer): Target => {
  let current = path
  for (let links = 0; links <= MAX_LINKS; links++) {
    const parent = current.subarray(0, Math.max(current.lastIndexOf(SLASH), 0))
    const name = current.subarray(current.lastIndexOf(SLASH) + 1)
    // Only the target of a link can end so.
    if (['', '.', '..'].includes(name.toString())) throw isDirectory()
    const dirFd = openParents(rootFd, parent)
    const found = judge(dirFd, name)
    if (found.kind !== 'link') return { dirFd, name, previous: found.previous }
    current = found.to[0] === SLASH ? found.to : Buffer.concat([parent, Buffer.from('/'), found.to])
  }
  throw new OrbError('invalid_path', 'too many symbolic links on the way to the file')
}

const isDirectory = (): OrbError => new OrbError('is_a_directory', 'the path names a directory')

/** What is at the last place of a path. Closes `dirFd` unless a file can be put there. */
const judge = (
  dirFd: number,
  name: Uint8Array,
): { kind: 'place'; previous: Stat | null } | { kind: 'link'; to: Buffer } => {
  try {
    const previous = statOrNull(dirFd, name)
    if (previous?.kind === 'directory') throw isDirectory()
    if (previous?.kind === 'other') throw new OrbError('invalid_path', 'not a regular file')
    if (previous?.kind !== 'symlink') return { kind: 'place', previous }
    const to = Buffer.from(readlinkat(dirFd, name))
    closeSync(dirFd)
    return { kind: 'link', to }
  } catch (thrown) {
    closeSync(dirFd)
    throw thrown
  }
}

const statOrNull = (dirFd: number, name: Uint8Array): Stat | null => {
  try {
    return statat(dirFd, name)
  } catch (thrown) {
    if (errnoCode(thrown) === 'ENOENT') return null
    throw thrown
  }
}

/** Holds the directory `path`, made where it is missing. Throws `Errno`, OrbError. */
const openParents = (rootFd: number, path: Buffer): number => {
  const whole = openDirectory(rootFd, path)
  if (whole !== null) return whole
  let dirFd = openInRoot(rootFd, '.', O_PATH | constants.O_DIRECTORY)
  for (let end = nextSlash(path, 0); ; end = nextSlash(path, end + 1)) {
    const parentFd = dirFd
    try {
      const reached = path.subarray(0, end)
      dirFd = openDirectory(rootFd, reached) ?? makeDirectory(rootFd, parentFd, reached)
    } finally {
      closeSync(parentFd)
    }
    if (end === path.length) return dirFd
  }
}

const nextSlash = (path: Buffer, from: number): number => {
  const found = path.indexOf(SLASH, from)
  return found === -1 ? path.length : found
}

const openDirectory = (rootFd: number, path: Uint8Array): number | null => {
  try {
    return openInRoot(rootFd, path.length === 0 ? '.' : path, O_PATH | constants.O_DIRECTORY)
  } catch (thrown) {
    if (errnoCode(thrown) === 'ENOENT') return null
    throw thrown
  }
}

const makeDirectory = (rootFd: number, parentFd: number, path: Buffer): number => {
  const name = path.subarray(path.lastIndexOf(SLASH) + 1)
  try {
    mkdirat(parentFd, name, NEW_DIRECTORY_MODE)
    liftUmask(parentFd, name)
  } catch (thrown) {
    if (errnoCode(thrown) !== 'EEXIST') throw thrown
  }
  const made = openDirectory(rootFd, path)
  // Only a link that leads nowhere exists and yet cannot be opened.
  if (made === null) throw new OrbError('not_a_directory', 'a parent of the file is not a directory')
  return made
}

const liftUmask = (parentFd: number, name: Uint8Array): void => {
  const fd = openInRoot(parentFd, name, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW)
  try {
    fchmodSync(fd, NEW_DIRECTORY_MODE)
  } finally {
    closeSync(fd)
  }
}

/** Fills a file beside the target and renames it over the target. Returns its bytes. */
const replace = async (
  { dirFd, name, previous }: Target,
  body: ReadableStream<Uint8Array> | null,
  options: WriteOptions,
): Promise<number> => {
  const temporary = `.orb-upload-${randomBytes(TEMPORARY_NAME_BYTES).toString('hex')}`
  const fd = openInRoot(
    dirFd,
    temporary,
    constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW,
    TEMPORARY_MODE,
  )
  try {
    const size = await fill(fd, body, options)
    // Owner first: changing it clears setuid and setgid.
    fchownSync(fd, previous?.uid ?? 0, previous?.gid ?? 0)
    fchmodSync(fd, previous?.mode ?? NEW_FILE_MODE)
    await fsyncAsync(fd)
    options.signal?.throwIfAborted()
    renameat(dirFd, temporary, dirFd, name)
    return size
  } catch (thrown) {
    removeIfThere(dirFd, temporary)
    throw thrown
  } finally {
    closeSync(fd)
  }
}

const removeIfThere = (dirFd: number, name: string): void => {
  try {
    unlinkat(dirFd, name)
  } catch {
    // A process of the computer took it away or put something in its place; the first failure is the one to report.
  }
}

const fill = async (fd: number, body: ReadableStream<Uint8Array> | null, options: WriteOptions): Promise<number> => {
  const { contentLength, maxBytes, signal } = options
  signal?.throwIfAborted()
  const reader = body?.getReader()
  // Cancelling ends a read that waits; its reason is thrown below.
  const abort = (): void => void reader?.cancel(signal?.reason).catch(() => undefined)
  signal?.addEventListener('abort', abort)
  let size = 0
  try {
    for (let next = await reader?.read(); next && !next.done; next = await reader?.read()) {
      size += next.value.length
      if (size > maxBytes) throw tooLarge(maxBytes)
      await writeAll(fd, next.value)
    }
    signal?.throwIfAborted()
  } catch (thrown) {
    void reader?.cancel(thrown).catch(() => undefined)
    throw thrown
  } finally {
    signal?.removeEventListener('abort', abort)
  }
  if (contentLength === null || size === contentLength) return size
  throw new OrbError('invalid_request', `the body ended after ${size} of ${contentLength} bytes`)
}

const writeAll = async (fd: number, bytes: Uint8Array): Promise<void> => {
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await writeAsync(fd, bytes, done, bytes.length - done, null)
    done += bytesWritten
  }
}
