import { basename, dirname } from 'node:path'
import {
  endOfLines,
  type LogSet,
  type LogStream,
  linesBackward,
  linesForward,
  parseLine,
  type StampedLine,
  withLog,
} from './log-file.ts'
import { timestamp } from './timestamp.ts'

/** Orb Cloud contract §9. */
export interface LogLine {
  ts: string
  stream: LogStream
  line: string
}

export interface LogQuery {
  /** Number of last lines. */
  tail: number
  stream: LogStream | 'all'
}

/** Where the two logs of a computer are: the agent's beneath its root directory, orb's own lines in a file of the host. */
export interface LogSource {
  rootDir: string
  orbLog: string
}

const AGENT_LOG = 'var/log/orb/agent.log'
const POLL_MS = 250
/** Orb Cloud contract §7.3. */
const STDERR_TAIL_BYTES = 4096

/** The last `tail` lines by time; `truncated` says that there are older ones. Reads no more of the files than it takes. */
export async function readLogs(source: LogSource, query: LogQuery): Promise<{ lines: LogLine[]; truncated: boolean }> {
  const { lines, truncated } = await readTail(source, query)
  return { lines: lines.map(shown), truncated }
}

/**
 * The last `tail` lines, then each new one within 250 ms of its writing, across rotation and truncation, until `signal`
 * aborts. No file stays open between two lines, so a follower never holds the computer's disk.
 */
export async function* followLogs(source: LogSource, query: LogQuery, signal: AbortSignal): AsyncGenerator<LogLine> {
  const { lines, followers } = await readTail(source, query)
  for (let batch = lines; !signal.aborted; ) {
    for (const line of batch) {
      if (signal.aborted) return
      yield shown(line)
    }
    const news = await Promise.all(followers.map(advance))
    batch = news.map(({ lines }) => lines.filter((line) => isWanted(query, line))).reduce(merge)
    if (!news.some(({ more }) => more)) await pause(signal)
  }
}

/** The end of what the agent wrote to stderr since `sinceMs`, at most 4 KiB; '' if it wrote nothing. */
export async function stderrTail(source: LogSource, sinceMs: number): Promise<string> {
  const texts: string[] = []
  let bytes = 0
  await visitBackward(agentSet(source), (line) => {
    if (line.ms < sinceMs) return false
    if (line.stream !== 'stderr') return true
    texts.unshift(`${line.text}\n`)
    bytes += Buffer.byteLength(line.text) + 1
    return bytes < STDERR_TAIL_BYTES
  })
  return lastBytes(texts.join(''), STDERR_TAIL_BYTES)
}

/** The end of a text in whole characters. */
const lastBytes = (text: string, limit: number): string => {
  const bytes = Buffer.from(text)
  let start = Math.max(0, bytes.length - limit)
  // 10xxxxxx: inside a character.
  while (((bytes[start] ?? 0) & 0xc0) === 0x80) start++
  return bytes.subarray(start).toString()
}

const agentSet = ({ rootDir }: LogSource): LogSet => ({
  rootDir,
  names: [AGENT_LOG, `${AGENT_LOG}.1`, `${AGENT_LOG}.2`],
  streams: { 1: 'stdout', 2: 'stderr' },
})

const orbSet = ({ orbLog }: LogSource): LogSet => ({
  rootDir: dirname(orbLog),
  names: [basename(orbLog), `${basename(orbLog)}.1`],
  streams: { 0: 'orb' },
})

const setsFor = (source: LogSource, { stream }: LogQuery): LogSet[] => {
  if (stream === 'all') return [agentSet(source), orbSet(source)]
  return [stream === 'orb' ? orbSet(source) : agentSet(source)]
}

const shown = ({ ms, stream, text }: StampedLine): LogLine => ({ ts: timestamp(ms), stream, line: text })

const isWanted = ({ stream }: LogQuery, line: StampedLine): boolean => stream === 'all' || line.stream === stream

/** Two logs in one by time, each in its own order; at the same moment the first goes first. */
const merge = (first: StampedLine[], second: StampedLine[]): StampedLine[] => {
  const merged: StampedLine[] = []
  let next = 0
  for (const line of first) {
    for (let other = second[next]; other && other.ms < line.ms; other = second[++next]) merged.push(other)
    merged.push(line)
  }
  return [...merged, ...second.slice(next)]
}

/** How far a log was read: the file by its inode, since its name changes at rotation; null before there was one. */
interface Position {
  ino: bigint
  offset: number
}

interface Follower {
  set: LogSet
  position: Position | null
}

const readTail = async (
  source: LogSource,
  query: LogQuery,
): Promise<{ lines: StampedLine[]; truncated: boolean; followers: Follower[] }> => {
  const tails = await Promise.all(
    setsFor(source, query).map(async (set) => {
      const lines: StampedLine[] = []
      const position = await visitBackward(set, (line) => {
        if (isWanted(query, line)) lines.push(line)
        // One more than asked for tells whether there are older ones.
        return lines.length <= query.tail
      })
      return { lines: lines.reverse(), follower: { set, position } }
    }),
  )
  const lines = tails.map((tail) => tail.lines).reduce(merge)
  const older = Math.max(0, lines.length - query.tail)
  return { lines: lines.slice(older), truncated: older > 0, followers: tails.map(({ follower }) => follower) }
}

/** Shows the lines of a log, newest first, until `visit` has enough (false). Returns the log's end. */
const visitBackward = (set: LogSet, visit: (line: StampedLine) => boolean): Promise<Position | null> =>
  withLog(set, async (files) => {
    const ends = await Promise.all(files.map(endOfLines))
    const newest = files[0]
    const end = newest ? { ino: newest.ino, offset: ends[0] ?? 0 } : null
    for (const [index, { fd }] of files.entries()) {
      for await (const lines of linesBackward(fd, ends[index] ?? 0)) {
        for (const bytes of lines) {
          const line = parseLine(bytes, set.streams)
          if (line && !visit(line)) return end
        }
      }
    }
    return end
  })

/** Takes the next lines of a log; `more` says that the next call will find some at once. */
const advance = (follower: Follower): Promise<{ lines: StampedLine[]; more: boolean }> =>
  withLog(follower.set, async (files) => {
    const { position, set } = follower
    const found = files.findIndex(({ ino }) => ino === position?.ino)
    // A file that is not there any more was replaced, not rotated: what took its place is new.
    const index = Math.max(0, found)
    const file = files[index]
    if (!file) return { lines: [], more: false }
    const known = found === -1 ? 0 : (position?.offset ?? 0)
    // Shorter than what was read of it: emptied and begun anew.
    const start = file.size < known ? 0 : known
    const { lines, offset } = await linesForward(file.fd, start)
    const newer = files[index - 1]
    const done = offset === start
    follower.position = done && newer ? { ino: newer.ino, offset: 0 } : { ino: file.ino, offset }
    return { lines: lines.flatMap((bytes) => parseLine(bytes, set.streams) ?? []), more: !done || newer !== undefined }
  })

const pause = (signal: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    const end = (): void => {
      clearTimeout(timer)
      signal.removeEventListener('abort', end)
      resolve()
    }
    const timer = setTimeout(end, POLL_MS)
    signal.addEventListener('abort', end)
    if (signal.aborted) end()
  })
