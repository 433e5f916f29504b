import { appendFileSync, closeSync, read, renameSync, statSync } from 'node:fs'
import { constants } from 'node:os'
import { promisify } from 'node:util'
import { log } from '../log.ts'
import { Errno, errnoCode } from './libc.ts'
import { openJudged, withRoot } from './rootfs.ts'

/** Orb Cloud contract §9. */
export type LogStream = 'stdout' | 'stderr' | 'orb'

/** One line of a log file: `<unix ms> <0|1|2> <text>`, 0 being orb itself, 1 stdout, 2 stderr. */
export interface StampedLine {
  ms: number
  stream: LogStream
  text: string
}

/** One log. */
export interface LogSet {
  /** Its files are beneath this directory. */
  rootDir: string
  /** Paths of its files, newest first. */
  names: string[]
  /** What the digit of a line in these files means; other digits do not belong there. */
  streams: Record<string, LogStream>
}

export interface LogFile {
  fd: number
  ino: bigint
  /** Bytes, when it was opened. */
  size: number
}

/** Orb Cloud contract §20: 3 × 10 MiB, lines split at 16 KiB. */
const MAX_FILE_BYTES = 10 * 1024 * 1024
const MAX_TEXT_BYTES = 16 * 1024
const MAX_STAMP_BYTES = 18
const MAX_LINE_BYTES = MAX_TEXT_BYTES + MAX_STAMP_BYTES
const CHUNK_BYTES = 256 * 1024
const NEWLINE = 0x0a
const readAsync = promisify(read)
const decoder = new TextDecoder('utf-8', { ignoreBOM: true })

/** A line without its newline; null if it has another form (a process inside can write anything). */
export function parseLine(line: Uint8Array, streams: LogSet['streams']): StampedLine | null {
  const stamp = /^(\d{1,15}) (\d) /.exec(Buffer.from(line.subarray(0, MAX_STAMP_BYTES)).toString('latin1'))
  const stream = streams[stamp?.[2] ?? '']
  if (!stamp || !stream) return null
  const start = stamp[0].length
  return { ms: Number(stamp[1]), stream, text: decoder.decode(line.subarray(start, start + MAX_TEXT_BYTES)) }
}

/**
 * Appends a line of orb's own to the host file `file`, which is rotated to `<file>.1` at 10 MiB. A full disk loses the line
 * and nothing else.
 */
export function appendOrbLine(file: string, text: string, nowMs: number): void {
  const line = Buffer.from(`${nowMs} 0 ${text.replace(/[\r\n]+/g, ' ')}`).subarray(0, MAX_LINE_BYTES)
  try {
    const size = statSync(file, { throwIfNoEntry: false })?.size ?? 0
    if (size + line.length + 1 > MAX_FILE_BYTES) renameSync(file, `${file}.1`)
    appendFileSync(file, Buffer.concat([line, Buffer.from('\n')]), { mode: 0o600 })
  } catch (error) {
    log('warn', 'a line of a computer’s log is lost', { error })
  }
}

/**
 * Opens what exists of a log, newest first, runs `use`, closes. A file that was renamed between two openings comes once.
 * What is no regular file, or cannot be reached, does not exist.
 */
export async function withLog<T>(set: LogSet, use: (files: LogFile[]) => Promise<T>): Promise<T> {
  const files: LogFile[] = []
  try {
    await withRoot(set.rootDir, (rootFd) => {
      for (const name of set.names) {
        const file = openLog(rootFd, name)
        if (!file) continue
        if (files.some(({ ino }) => ino === file.ino)) closeSync(file.fd)
        else files.push(file)
      }
    }).catch(ignoreAbsent)
    return await use(files)
  } finally {
    for (const { fd } of files) closeSync(fd)
  }
}

const openLog = (rootFd: number, name: string): LogFile | null => {
  try {
    const { fd, stat } = openJudged(rootFd, name, ({ kind }) => {
      if (kind !== 'file') throw new Errno(constants.errno.ENOENT, 'open')
    })
    return { fd, ino: stat.ino, size: stat.size }
  } catch (thrown) {
    ignoreAbsent(thrown)
    return null
  }
}

const ABSENT = new Set(['EAGAIN', 'ELOOP', 'ENAMETOOLONG', 'ENOENT', 'ENOTDIR'])
const ignoreAbsent = (thrown: unknown): void => {
  if (!ABSENT.has(errnoCode(thrown) ?? '')) throw thrown
}

/** The offset just after the last whole line: what follows is still being written. */
export async function endOfLines({ fd, size }: LogFile): Promise<number> {
  const start = Math.max(0, size - 2 * MAX_LINE_BYTES)
  const last = (await readAt(fd, start, size - start)).lastIndexOf(NEWLINE)
  // Nothing that wrote lines made this; there is no line to wait for.
  if (last === -1 && start > 0) return size
  return start + last + 1
}

/**
 * The lines before `end` (an answer of `endOfLines`), last line first, chunk by chunk, at most the 10 MiB that a file may
 * have. Lines longer than allowed are cut.
 */
export async function* linesBackward(fd: number, end: number): AsyncGenerator<Uint8Array[]> {
  if (end === 0) return
  const stop = Math.max(0, end - MAX_FILE_BYTES - MAX_LINE_BYTES)
  // The part of a line whose start is not reached yet.
  let rest: Uint8Array = new Uint8Array()
  // Without the newline that ends the last line.
  for (let position = end - 1; position > stop; ) {
    const length = Math.min(CHUNK_BYTES, position - stop)
    position -= length
    const chunk = await readAt(fd, position, length)
    // The file was cut meanwhile.
    if (chunk.length < length) return
    const lines: Uint8Array[] = []
    let lineEnd = length
    for (let newline = chunk.lastIndexOf(NEWLINE); newline !== -1; ) {
      lines.push(joined(chunk.subarray(newline + 1, lineEnd), rest))
      rest = new Uint8Array()
      lineEnd = newline
      newline = newline === 0 ? -1 : chunk.lastIndexOf(NEWLINE, newline - 1)
    }
    rest = joined(chunk.subarray(0, lineEnd), rest)
    yield lines
  }
  if (stop === 0) yield [rest]
}

const joined = (head: Uint8Array, rest: Uint8Array): Uint8Array =>
  rest.length === 0 ? head.subarray(0, MAX_LINE_BYTES) : Buffer.concat([head, rest]).subarray(0, MAX_LINE_BYTES)

/** Whole lines from `offset` on, at most one chunk of them, and the offset after them: the same one if there is none yet. */
export async function linesForward(fd: number, offset: number): Promise<{ lines: Uint8Array[]; offset: number }> {
  const chunk = await readAt(fd, offset, CHUNK_BYTES)
  const last = chunk.lastIndexOf(NEWLINE)
  // No line is that long: give up what it was.
  if (last === -1) return { lines: [], offset: chunk.length > 2 * MAX_LINE_BYTES ? offset + chunk.length : offset }
  const lines: Uint8Array[] = []
  for (let start = 0; start <= last; ) {
    const newline = chunk.indexOf(NEWLINE, start)
    lines.push(chunk.subarray(start, Math.min(newline, start + MAX_LINE_BYTES)))
    start = newline + 1
  }
  return { lines, offset: offset + last + 1 }
}

const readAt = async (fd: number, position: number, length: number): Promise<Uint8Array> => {
  const bytes = new Uint8Array(length)
  let filled = 0
  while (filled < length) {
    const { bytesRead } = await readAsync(fd, bytes, filled, length - filled, position + filled)
    if (bytesRead === 0) break
    filled += bytesRead
  }
  return bytes.subarray(0, filled)
}
