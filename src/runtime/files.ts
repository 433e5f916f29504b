import { closeSync, read } from 'node:fs'
import { promisify } from 'node:util'
import { errnoCode, readNames, statat } from './libc.ts'
import { notFound, openJudged, pathError, refuseSpecial, segmentsOf, withRoot } from './rootfs.ts'
import { timestamp } from './timestamp.ts'

/** Orb Cloud contract §14.1: one row of a listing. */
export interface Entry {
  name: string
  type: 'file' | 'directory' | 'symlink' | 'other'
  /** Bytes. */
  size: number
  /** Permissions as four octal digits, such as `0644`. */
  mode: string
  mtime: string
}

export interface Listing {
  path: string
  files: Entry[]
  truncated?: true
}

export interface OpenedFile {
  /** Bytes, when it was opened. */
  size: number
  /** The bytes from `start` to `end` (exclusive), of a known length; closes the file when it is done with. */
  content(start: number, end: number): Promise<Blob>
  /** For a caller that does not take the content. */
  close(): void
}

/** Orb Cloud contract §20. */
const MAX_ENTRIES = 10_000
const NAMES_BUFFER_BYTES = 64 * 1024
/** Longer content is sent straight from the file. */
const MEMORY_BYTES = 256 * 1024
/**
 * Whoever sends a file opens it once more by its descriptor's number, at once. Until long after that the number must not
 * become another file's.
 */
const HANDED_OVER_MS = 10_000
/** Entries looked at before other work gets its turn. */
const STATS_PER_TURN = 500

const readAsync = promisify(read)
const nextTurn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

/**
 * The directory or file at `path` (absolute inside the computer, without its first slash; '' is the root), resolved beneath
 * `rootDir` as the computer itself would. Throws OrbError `invalid_path`, `not_found`.
 */
export async function readPath(rootDir: string, path: string): Promise<Listing | OpenedFile> {
  const inside = segmentsOf(path).join('/')
  try {
    return await withRoot(rootDir, async (rootFd) => {
      const { fd, stat } = openJudged(rootFd, inside, refuseSpecial)
      if (stat.kind === 'file') return openedFile(fd, stat.size)
      try {
        return await list(fd, inside)
      } finally {
        closeSync(fd)
      }
    })
  } catch (thrown) {
    // To a reader, a path that goes through a file is just missing.
    throw errnoCode(thrown) === 'ENOTDIR' ? notFound(inside) : pathError(thrown, inside)
  }
}

const list = async (dirFd: number, path: string): Promise<Listing> => {
  const { names, truncated } = await firstNames(dirFd)
  const files: Entry[] = []
  for (const [index, name] of names.entries()) {
    if (index % STATS_PER_TURN === 0) await nextTurn()
    const entry = entryOf(dirFd, name)
    if (entry) files.push(entry)
  }
  return truncated ? { path, files, truncated } : { path, files }
}

/** The first names in byte order, in memory that does not grow with the directory. */
const firstNames = async (dirFd: number): Promise<{ names: Uint8Array[]; truncated?: true }> => {
  const buffer = new Uint8Array(NAMES_BUFFER_BYTES)
  let names: Uint8Array[] = []
  let truncated: true | undefined
  for (let found = readNames(dirFd, buffer); found; found = readNames(dirFd, buffer)) {
    names.push(...found)
    if (names.length > 2 * MAX_ENTRIES) {
      names = names.sort(Buffer.compare).slice(0, MAX_ENTRIES)
      truncated = true
    }
    await nextTurn()
  }
  if (names.length > MAX_ENTRIES) truncated = true
  return { names: names.sort(Buffer.compare).slice(0, MAX_ENTRIES), truncated }
}

const entryOf = (dirFd: number, name: Uint8Array): Entry | null => {
  try {
    const stat = statat(dirFd, name)
    return {
      name: new TextDecoder('utf-8', { ignoreBOM: true }).decode(name),
      type: stat.kind,
      size: stat.size,
      mode: stat.mode.toString(8).padStart(4, '0'),
      mtime: timestamp(stat.mtimeMs),
    }
  } catch (thrown) {
    // Removed since the directory was read.
    if (errnoCode(thrown) === 'ENOENT') return null
    throw thrown
  }
}

const openedFile = (fd: number, size: number): OpenedFile => {
  let open = true
  const close = (): void => {
    if (!open) return
    open = false
    closeSync(fd)
  }
  return {
    size,
    close,
    content: async (start, end) => {
      if (end - start > MEMORY_BYTES) {
        setTimeout(close, HANDED_OVER_MS).unref()
        return Bun.file(`/proc/self/fd/${fd}`).slice(start, end)
      }
      try {
        return new Blob([await readRange(fd, start, end)])
      } finally {
        close()
      }
    },
  }
}

const readRange = async (fd: number, start: number, end: number): Promise<Uint8Array<ArrayBuffer>> => {
  const bytes = new Uint8Array(end - start)
  for (let filled = 0; filled < bytes.length; ) {
    const { bytesRead } = await readAsync(fd, bytes, filled, bytes.length - filled, start + filled)
    if (bytesRead === 0) throw new Error('the file became shorter while it was read')
    filled += bytesRead
  }
  return bytes
}
