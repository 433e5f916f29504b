import { closeSync, readFileSync, writeSync } from 'node:fs'
import { HOST_ENVIRONMENT } from './command.ts'
import { cString, sys } from './libc.ts'

/** Files on the host that starting something in a computer takes. */
export interface LauncherFiles {
  /** `orb-init` on the host. */
  init: string
  /** The compiled seccomp filter. */
  seccomp: string
}

export interface BootOptions {
  cgroups: string[]
  netns: string
  rootfs: string
  devices: string
  hostname: string
}

/** What a program gets of its own beside the files of its computer. */
export interface PrivateMounts {
  /** Files of /proc to hide. */
  masks: string[]
  shmBytes: number
}

export interface AgentOptions extends PrivateMounts {
  cgroups: string[]
  /** Host pid of the computer's pid 1. */
  initPid: number
  /** `orb-init` as the computer sees it. */
  pid1: string
  /** Comes back in the exit file. */
  life: number
  argv: string[]
  env: Record<string, string>
  cwd: string
}

/** The program could not be started in the computer; the message says why, for the user. */
export class SpawnError extends Error {
  override name = 'SpawnError'
}

/**
 * Starts a computer: its namespaces, its root, its pid 1. Returns the host pid of the latter.
 * @throws Error with what orb-init said
 */
export async function boot(files: LauncherFiles, options: BootOptions): Promise<number> {
  const argv = [
    files.init,
    'boot',
    ...repeat('--cgroup', options.cgroups),
    '--net',
    options.netns,
    '--root',
    options.rootfs,
    '--dev',
    options.devices,
    '--host',
    options.hostname,
    '--seccomp',
    files.seccomp,
  ]
  const child = Bun.spawn(argv, {
    stdin: 'ignore',
    stdout: 'pipe',
    stderr: 'pipe',
    env: HOST_ENVIRONMENT,
    detached: true,
  })
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()])
  const pid = Number(/^pid (\d+)$/m.exec(stdout)?.[1] ?? 0)
  if (!pid || !/^ready$/m.test(stdout))
    throw new Error(`cannot start the computer: ${stderr.trim() || 'no reason given'}`)
  return pid
}

/**
 * Starts an agent below its own pid 1, which stays a child of the computer's. Returns once the program was executed.
 * @throws SpawnError
 */
export async function spawnAgent(files: LauncherFiles, options: AgentOptions): Promise<void> {
  const env = environmentFd(options.env)
  const argv = [
    files.init,
    'agent',
    ...repeat('--cgroup', options.cgroups),
    '--init',
    String(options.initPid),
    ...repeat('--mask', options.masks),
    '--shm',
    String(options.shmBytes),
    '--seccomp',
    files.seccomp,
    '--pid1',
    options.pid1,
    '--life',
    String(options.life),
    '--cwd',
    options.cwd,
    '--env',
    '3',
    '--',
    ...options.argv,
  ]
  try {
    const child = Bun.spawn(argv, { stdio: ['ignore', 'pipe', 'pipe', env], env: HOST_ENVIRONMENT, detached: true })
    // The program there is the tenant's to replace: it need not ever say anything, nor close what it was given.
    const timer = setTimeout(() => child.kill('SIGKILL'), START_TIMEOUT_MS)
    const stdout = await firstLine(child.stdout, START_TIMEOUT_MS)
    clearTimeout(timer)
    if (stdout === 'started') {
      // The agent has let go of it; read or not, it would stay open here until the next garbage collection.
      void child.stderr.cancel()
      return
    }
    if (stdout === null) throw new SpawnError('the program did not start in time')
    const stderr = await Promise.race([new Response(child.stderr).text(), Bun.sleep(STDERR_MS).then(() => '')])
    const errno = /^failed (\d+)$/.exec(stdout)?.[1]
    throw new SpawnError(errno ? `${options.argv[0]}: ${errnoText(Number(errno))}` : explain(stderr))
  } finally {
    closeSync(env)
  }
}

const START_TIMEOUT_MS = 10_000
const STDERR_MS = 500
/** The program there is the tenant's to replace: it need not close anything. */
const CLOSE_MS = 500

/**
 * The first line, '' when there is none before the end, null when it does not come in time. The other side closes the
 * stream right after the line, and is waited for: with it open, which leads out of the computer, there is no checkpoint.
 */
async function firstLine(stream: ReadableStream<Uint8Array>, timeoutMs: number): Promise<string | null> {
  const reader = stream.getReader()
  const late = Bun.sleep(timeoutMs).then(() => null)
  let text = ''
  try {
    for (;;) {
      const read = await Promise.race([reader.read(), late])
      if (read === null) return null
      if (read.done) return text
      text += Buffer.from(read.value).toString()
      const end = text.indexOf('\n')
      if (end === -1) continue
      await Promise.race([reader.read(), Bun.sleep(CLOSE_MS)])
      return text.slice(0, end)
    }
  } finally {
    void reader.cancel()
  }
}

/** What orb-init says names files of the host only in set-up failures, which are orb's own. */
const explain = (stderr: string): string => stderr.trim().split('\n').at(-1) || 'the program could not be started'

const ERRNO_TEXT: Record<number, string> = {
  2: 'no such file or directory',
  7: 'argument list too long',
  8: 'not an executable format',
  12: 'out of memory',
  13: 'permission denied',
  20: 'not a directory',
  40: 'too many levels of symbolic links',
}
const errnoText = (errno: number): string => ERRNO_TEXT[errno] ?? `error ${errno}`

/** Commands of one computer share their private mounts; those of the first one stay. */
export interface ExecOptions extends PrivateMounts {
  cgroups: string[]
  initPid: number
  argv: string[]
  env: Record<string, string>
  cwd: string
  /** Whether it gets a pipe as standard input, not nothing. */
  input?: boolean
}

/** Starts a command in a computer, beside its agent; its exit code is that of the returned process, 125 if set-up failed. */
export function spawnCommand(files: LauncherFiles, options: ExecOptions) {
  const env = environmentFd(options.env)
  const argv = execArguments(files, options, [])
  try {
    const input = options.input ? 'pipe' : 'ignore'
    return Bun.spawn(argv, { stdio: [input, 'pipe', 'pipe', env], env: HOST_ENVIRONMENT, detached: true })
  } finally {
    closeSync(env)
  }
}

function execArguments(files: LauncherFiles, options: ExecOptions, more: string[]): string[] {
  return [
    files.init,
    'exec',
    ...repeat('--cgroup', options.cgroups),
    '--init',
    String(options.initPid),
    ...repeat('--mask', options.masks),
    '--shm',
    String(options.shmBytes),
    '--seccomp',
    files.seccomp,
    '--cwd',
    options.cwd,
    '--env',
    '3',
    ...more,
    '--',
    ...options.argv,
  ]
}

/** Of a terminal, in characters. */
export interface Size {
  columns: number
  rows: number
}

export interface TerminalProcess {
  process: Bun.Subprocess<number, 'ignore', 'pipe'>
  /** The other side of the terminal, for somebody who closes it: what is written there is typed, what is read is shown. */
  socket: number
  /** Takes its sizes, two 16-bit numbers each, and is to be closed as well. */
  sizes: number
}

/**
 * Starts a command as `spawnCommand` does, on a terminal of the computer. When the socket is closed, by this process or by
 * its end, the terminal is hung up.
 */
export function spawnOnTerminal(files: LauncherFiles, options: ExecOptions, size: Size): TerminalProcess {
  const given = [environmentFd(options.env)]
  const kept: number[] = []
  const pair = (type: number) => {
    const [own, other] = socketPair(type)
    kept.push(own)
    given.push(other)
    return [own, other] as const
  }
  try {
    const [socket, input] = pair(SOCK_STREAM)
    const [sizes, sizesInside] = pair(SOCK_SEQPACKET)
    writeSync(sizes, new Uint16Array([size.columns, size.rows]))
    const process = Bun.spawn(execArguments(files, options, ['--tty', '4']), {
      stdio: [input, 'ignore', 'pipe', given[0]!, sizesInside],
      env: HOST_ENVIRONMENT,
      detached: true,
    })
    return { process, socket, sizes }
  } catch (thrown) {
    for (const fd of kept) closeSync(fd)
    throw thrown
  } finally {
    for (const fd of given) closeSync(fd)
  }
}

/** Numbers of the system call: arch/x86/entry/syscalls/syscall_64.tbl and asm-generic/unistd.h. */
const SYS_SOCKETPAIR = process.arch === 'arm64' ? 199 : 53
const AF_UNIX = 1
const SOCK_STREAM = 1
const SOCK_SEQPACKET = 5
const SOCK_NONBLOCK_CLOEXEC = 0o4000 | 0o2000000

/** Two connected sockets, which do not block. */
export function socketPair(type: number): [number, number] {
  const pair = new Uint8Array(8)
  sys(SYS_SOCKETPAIR, AF_UNIX, type | SOCK_NONBLOCK_CLOEXEC, 0, pair)
  const view = new DataView(pair.buffer)
  return [view.getInt32(0, true), view.getInt32(4, true)]
}

const repeat = (flag: string, values: string[]): string[] => values.flatMap((value) => [flag, value])

const SYS_MEMFD_CREATE = process.arch === 'arm64' ? 279 : 319
const MFD_CLOEXEC = 1

/** The environment as NUL-separated entries behind a descriptor: it holds secrets, and argv and files can be read. */
function environmentFd(env: Record<string, string>): number {
  const fd = sys(SYS_MEMFD_CREATE, cString('orb-env'), MFD_CLOEXEC)
  const data = Buffer.from(
    Object.entries(env)
      .map(([name, value]) => `${name}=${value}\0`)
      .join(''),
  )
  let written = 0
  while (written < data.length) written += writeSync(fd, data, written, data.length - written, written)
  return fd
}

/** `name` field of /proc/PID/status, or '' when the process is gone. */
function statusField(pid: number, name: string): string {
  try {
    return new RegExp(`^${name}:\\s*(.*)$`, 'm').exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? ''
  } catch {
    return ''
  }
}

/** Numbers of a process from the outermost pid namespace in: host, computer, agent. */
export const namespacePids = (pid: number): number[] =>
  statusField(pid, 'NSpid').split(/\s+/).filter(Boolean).map(Number)

export const isZombie = (pid: number): boolean => statusField(pid, 'State').startsWith('Z')

/** A process that is pid 1 of a computer, and no longer on its way to be one: it takes its name last. */
export const isComputerInit = (pid: number): boolean =>
  statusField(pid, 'Name') === 'orb-computer' && namespacePids(pid).at(-1) === 1 && !isZombie(pid)

/** Of an agent's processes (host pids) the one that is pid 1 of its own namespace, or null. */
export const agentInit = (pids: number[]): number | null =>
  pids.find((pid) => {
    const numbers = namespacePids(pid)
    return numbers.length >= AGENT_DEPTH && numbers.at(-1) === 1 && !isZombie(pid)
  }) ?? null

/** Host, computer, agent. */
const AGENT_DEPTH = 3

/** Host pid of the first child of a process: under an agent's pid 1, its program. */
export function firstChild(pid: number): number | null {
  try {
    return Number(readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').trim().split(' ')[0]) || null
  } catch {
    return null
  }
}
