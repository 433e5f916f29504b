import { randomBytes } from 'node:crypto'
import type { Cgroups, Leaf, Purpose } from './cgroup.ts'
import { type LauncherFiles, type PrivateMounts, type Size, spawnCommand, spawnOnTerminal } from './launcher.ts'
import { EXIT_TIMEOUT, Input, LiveCommand } from './live-command.ts'
import { Head, type Output, Tail } from './output.ts'
import { Terminal } from './terminal.ts'

/** A command whose output is taken as it comes. */
export interface LiveRequest {
  argv: string[]
  env: Record<string, string>
  cwd: string
  purpose: Purpose
  timeoutMs: number
  /** Its standard input: whole, or to be written to it. Nothing when absent. */
  stdin?: Uint8Array | 'open'
}

export interface ExecRequest extends LiveRequest {
  stdin?: Uint8Array
  /** Kept of each stream. */
  maxBytes: number
  /** Which part of a longer stream is kept; its end if absent. */
  keep?: 'start' | 'end'
  /** By which `killCommand` finds it; unique, of letters and digits. */
  id?: string
}

export interface TerminalRequest {
  argv: string[]
  env: Record<string, string>
  cwd: string
  size: Size
  /** As for `Terminal.open`. */
  onOutput(bytes: Uint8Array): void
}

export interface ExecResult {
  /** 124 after a timeout, 128 + n after signal n, 125 if it could not be started. */
  exitCode: number
  stdout: string
  stderr: string
  truncated: boolean
  timedOut: boolean
  durationMs: number
}

/** How long output that is in the pipes already is waited for once the shell has ended. */
const DRAIN_MS = 100

/** The cgroup of a command. */
export const commandLeaf = (purpose: Purpose, id: string): Leaf => `${purpose}-${id}`

/** Commands beside the agents, each in a cgroup of its own, so that it can be killed with all its children. */
export class Commands {
  /** Their cgroups may not have a process yet, or any more. */
  private readonly running = new Set<Leaf>()

  constructor(
    private readonly cgroups: Cgroups,
    private readonly files: LauncherFiles,
  ) {}

  /**
   * Runs a command in the computer whose cgroup is `name` and whose pid 1 is `initPid` on the host. Returns when it ends,
   * even if a child it left behind holds its output; after the timeout it is killed with all its children.
   */
  async run(name: string, initPid: number, mounts: PrivateMounts, request: ExecRequest): Promise<ExecResult> {
    const leaf = commandLeaf(request.purpose, request.id ?? randomBytes(6).toString('hex'))
    this.running.add(leaf)
    try {
      this.cgroups.sweepCommands(name, this.running)
      return await this.runIn(name, leaf, initPid, mounts, request)
    } finally {
      this.running.delete(leaf)
      // One whose background processes live on goes with /restart, the computer, or a later command.
      this.cgroups.removeLeaf(name, leaf)
    }
  }

  /**
   * Starts a command as `run` does. Who does not read its output to the end has to `kill` it.
   */
  start(name: string, initPid: number, mounts: PrivateMounts, request: LiveRequest): LiveCommand {
    const leaf = commandLeaf(request.purpose, randomBytes(6).toString('hex'))
    const over = () => {
      this.running.delete(leaf)
      this.cgroups.removeLeaf(name, leaf)
    }
    this.running.add(leaf)
    try {
      this.cgroups.sweepCommands(name, this.running)
      const { argv, env, cwd, stdin, timeoutMs } = request
      const cgroups = this.cgroups.joinFiles(name, leaf)
      const child = spawnCommand(this.files, {
        argv,
        env,
        cwd,
        cgroups,
        initPid,
        input: stdin !== undefined,
        ...mounts,
      })
      const command = new LiveCommand(child, { stdin, timeoutMs, kill: () => this.cgroups.kill(name, leaf) })
      void command.ended.finally(over)
      return command
    } catch (thrown) {
      over()
      throw thrown
    }
  }

  /** Runs a command on a terminal of the computer. What it leaves in the background lives on as that of `run` does. */
  async open(name: string, initPid: number, mounts: PrivateMounts, request: TerminalRequest): Promise<Terminal> {
    const leaf = commandLeaf('terminal', randomBytes(6).toString('hex'))
    const over = () => {
      this.running.delete(leaf)
      this.cgroups.removeLeaf(name, leaf)
    }
    this.running.add(leaf)
    try {
      this.cgroups.sweepCommands(name, this.running)
      const { argv, env, cwd, size } = request
      const cgroups = this.cgroups.joinFiles(name, leaf)
      const options = { argv, env, cwd, cgroups, initPid, ...mounts }
      const terminal = await Terminal.open(spawnOnTerminal(this.files, options, size), request.onOutput)
      void terminal.ended.finally(over)
      return terminal
    } catch (thrown) {
      over()
      throw thrown
    }
  }

  private async runIn(
    name: string,
    leaf: Leaf,
    initPid: number,
    mounts: PrivateMounts,
    request: ExecRequest,
  ): Promise<ExecResult> {
    const { argv, env, cwd, stdin, timeoutMs, maxBytes, keep } = request
    const started = performance.now()
    const cgroups = this.cgroups.joinFiles(name, leaf)
    const child = spawnCommand(this.files, { argv, env, cwd, cgroups, initPid, input: stdin !== undefined, ...mounts })
    if (child.stdin) void new Input(child.stdin).write(stdin ?? new Uint8Array(0), true)
    let timedOut = false
    const timer = setTimeout(() => {
      timedOut = true
      this.cgroups.kill(name, leaf)
    }, timeoutMs)
    const output = (): Output => (keep === 'start' ? new Head(maxBytes) : new Tail(maxBytes))
    const [stdout, stderr] = [output(), output()]
    const reading = Promise.all([collect(child.stdout, stdout), collect(child.stderr, stderr)])
    const exitCode = await child.exited
    clearTimeout(timer)
    await Promise.race([reading, Bun.sleep(DRAIN_MS)])
    const result: ExecResult = {
      exitCode: timedOut ? EXIT_TIMEOUT : exitCode,
      stdout: stdout.text(),
      stderr: stderr.text(),
      truncated: stdout.truncated || stderr.truncated,
      timedOut,
      durationMs: Math.round(performance.now() - started),
    }
    stdout.close()
    stderr.close()
    return result
  }
}

/** Reads to the end; what comes after `close` is thrown away, so that a writer left behind is not ended by a full pipe. */
async function collect(stream: ReadableStream<Uint8Array>, output: Output): Promise<void> {
  for await (const chunk of stream) output.push(chunk)
}
