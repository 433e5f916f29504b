/** The rows of the matrix: programs that keep verifiable state, and where their source is. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

export type Situation = 'idle' | 'plain' | 'stream'
export type WayName = 'checkpoint' | 'reclaim'

export const SITUATIONS: Situation[] = ['idle', 'plain', 'stream']

export interface Program {
  name: string
  /** For the table. */
  what: string
  lang: 'node' | 'python' | 'binary'
  entry: string
  args?: string[]
  /** Of `programs/`; `harness.*` goes with each. */
  files: string[]
  /** How it is told and asked: over HTTP, or through a fifo and its log. */
  control?: 'http' | 'fifo'
  /** What wakes it when nothing else will; a public request where it serves HTTP. */
  wake?: 'request' | 'promote'
  runtimeMb?: number
  /** How orb refuses to put it to sleep, where it cannot. */
  refused?: Partial<Record<WayName, RegExp>>
}

const SOURCES = join(import.meta.dir, 'programs')

const python = (name: string, file: string, what: string, more: Partial<Program> = {}): Program => ({
  name,
  what,
  lang: 'python',
  entry: `${file}.py`,
  files: [`${file}.py`, 'harness.py'],
  ...more,
})

export const PROGRAMS: Program[] = [
  {
    name: 'Node',
    what: '40 MB of data, timers, a child behind pipes, a worker thread, a watched directory',
    lang: 'node',
    entry: 'node.mjs',
    files: ['node.mjs', 'harness.mjs'],
  },
  python('Python', 'python', '40 MB of data, an event loop, a child behind pipes, SQLite with its log', {
    wake: 'promote',
  }),
  {
    name: 'Bun',
    what: '40 MB of data, timers, a child behind pipes, a worker thread, SQLite with its log',
    lang: 'binary',
    entry: 'bun',
    args: ['bun.mjs'],
    files: ['bun.mjs', 'harness.mjs'],
  },
  {
    name: 'Go, static',
    what: '40 MB of data, 1000 goroutines, a ticker, a child behind pipes',
    lang: 'binary',
    entry: 'static',
    files: ['static'],
  },
  {
    name: 'Shell pipeline',
    what: 'five programs between pipes, numbers under way all the time',
    lang: 'binary',
    entry: 'pipeline.sh',
    files: ['pipeline.sh'],
    control: 'fifo',
    wake: 'promote',
  },
  python('Process tree', 'tree', '15 processes on three levels behind pipes; a daemon, a zombie and a stopped process'),
  python('Listening sockets', 'listening', 'TCP on IPv4 and IPv6, connections inside, UDP; bytes under way'),
  python('Unix sockets', 'unix-sockets', 'stream, datagram and packet; pairs, paths, abstract names; bytes under way'),
  python('Open files', 'files', 'deleted, renamed, unnamed, mapped and locked files; memfd, /dev/shm, fifo, pipe'),
  python('500 MB of data', 'heap', 'random bytes, each of them checked', { runtimeMb: 1024 }),
  python('200 threads', 'threads', 'each waits for work', { wake: 'promote' }),
  python('Timers', 'timers', 'timerfd and POSIX timers on three clocks, a running alarm, sleep, waits with timeout', {
    wake: 'promote',
  }),
  python('Inotify', 'inotify', '307 watches, on every file system that the computer writes to'),
  python('Terminal', 'terminal', 'an interactive shell behind a pseudoterminal, with jobs'),
  {
    name: 'Chromium',
    what: 'headless, a page with timer, worker, canvas, storage and an open event stream',
    lang: 'node',
    entry: 'chromium.mjs',
    files: ['chromium.mjs', 'harness.mjs'],
    runtimeMb: 2048,
  },
  python('Connection not yet accepted, Unix', 'backlog', 'its client has spoken already', {
    args: ['unix'],
    refused: { checkpoint: /not accepted/ },
  }),
  python('Connection not yet accepted, TCP', 'backlog', 'its client has spoken already', {
    args: ['tcp'],
    refused: { checkpoint: /not accepted/ },
  }),
  python('Traced process', 'traced', 'as below a debugger', { refused: { checkpoint: /trace/ } }),
]

let built: Promise<Uint8Array<ArrayBuffer>> | null = null

/** What is uploaded as `file`: its source, or what is compiled from it. */
export function programFile(file: string): Promise<Uint8Array<ArrayBuffer>> {
  if (file !== 'static') return Bun.file(join(SOURCES, file)).bytes()
  built ??= buildStatic()
  return built
}

async function buildStatic(): Promise<Uint8Array<ArrayBuffer>> {
  const dir = await mkdtemp(join(tmpdir(), 'orb-matrix-'))
  try {
    const go = Bun.spawn(['go', 'build', '-o', join(dir, 'static'), join(SOURCES, 'static.go')], {
      env: { ...process.env, CGO_ENABLED: '0', GOCACHE: join(dir, 'cache'), GOFLAGS: '-mod=mod', HOME: dir },
      stderr: 'pipe',
    })
    const stderr = await new Response(go.stderr).text()
    if ((await go.exited) !== 0) throw new Error(`the Go program does not compile: ${stderr}`)
    return await Bun.file(join(dir, 'static')).bytes()
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
}
