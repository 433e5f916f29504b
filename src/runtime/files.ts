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
  /** The bytes from `start` to `end` (exclusive); closes the file at its end, on failure or when cancelled. */
  stream(start: number, end: number): ReadableStream<Uint8Array>
  /** For a caller that does not take the stream. */
  close(): void
}

/** Orb Cloud contract §20. */
const MAX_ENTRIES = 10_000
const NAMES_BUFFER_BYTES = 64 * 1024
const PIECE_BYTES = 256 * 1024
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
  return { size, close, stream: (start, end) => byteRange(fd, start, end, close) }
}

const byteRange = (fd: number, start: number, end: number, close: () => void): ReadableStream<Uint8Array> => {
  let position = start
  let running: Promise<unknown> = Promise.resolve()
  const pull = async (controller: ReadableStreamDefaultController<Uint8Array>): Promise<void> => {
    if (position < end) {
      const piece = new Uint8Array(Math.min(PIECE_BYTES, end - position))
      const { bytesRead } = await readAsync(fd, piece, 0, piece.length, position)
      if (bytesRead === 0) throw new Error('the file became shorter while it was read')
      position += bytesRead
      controller.enqueue(piece.subarray(0, bytesRead))
    }
    if (position < end) return
    close()
    controller.close()
  }
  return new ReadableStream<Uint8Array>(
    {
      pull(controller) {
        const pulled = pull(controller).catch((thrown) => {
          close()
          throw thrown
        })
        running = pulled.catch(() => undefined)
        return pulled
      },
      // A descriptor closed under a running read could by then be another file's.
      cancel: () => running.then(close),
    },
    { highWaterMark: 0 },
  )
}
