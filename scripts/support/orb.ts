/** An orb of its own for the demo and the benchmarks: data directory, subnet and port that nobody else uses. */
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { stringify } from 'smol-toml'
import { z } from 'zod'
import { computer as computerSchema, registered } from '../../src/api/cloud/schemas.ts'

export const ORB = join(import.meta.dir, '../../dist/orb')

const READY_TIMEOUT_MS = 30_000
/** orb itself gives open requests 10 s. */
const STOP_TIMEOUT_MS = 15_000
const RECOVERED_TIMEOUT_MS = 120_000
const POLL_MS = 5
/** Subnets that are tried are 10.N.0.0/16. */
const FIRST_SUBNET = 200
const LAST_SUBNET = 254

/** Text and bytes go out as they are, anything else as JSON. */
type Body = string | Uint8Array<ArrayBuffer> | Record<string, unknown>

export interface PrivateOrb {
  url: string
  readonly pid: number
  dataDir: string
  /** API key of its one account. */
  key: string
  computer(name: string, runtimeMb: number, diskMb: number): Promise<Computer>
  /** The answer to its account as `schema` reads it. @throws Error for an error */
  ask<S extends z.ZodType>(schema: S, method: string, path: string, body?: Body): Promise<z.output<S>>
  /** Stops it; whatever is asleep or awake stays so. */
  stop(): Promise<void>
  /** Ends it and starts it anew, on the same port: ms from exec until it is ready, and what looking after all agents took. */
  restart(signal: 'SIGTERM' | 'SIGKILL'): Promise<{ readyMs: number; recoveredMs: number }>
}

/** Files that say how a private orb is reached again, by a later run too. */
const configFile = (dataDir: string): string => join(dataDir, 'config.toml')
const pidFile = (dataDir: string): string => join(dataDir, 'orb.pid')
export const logFile = (dataDir: string): string => join(dataDir, 'orb.log')

/**
 * Starts `orb serve` and waits until it is ready. `settings` are those of the configuration file. The process has a
 * session of its own, so that Ctrl-C reaches only the caller. @throws Error with the end of orb's log
 */
export async function startOrb(dataDir: string, settings: Record<string, unknown>): Promise<PrivateOrb> {
  mkdirSync(dataDir, { recursive: true, mode: 0o700 })
  const config = { listen: `127.0.0.1:${await freePort()}`, data_dir: dataDir, subnet: freeSubnet(), ...settings }
  writeFileSync(configFile(dataDir), stringify(config))
  const url = await launch(dataDir)
  const key = registered.parse(
    await call(url, '', 'POST', '/v1/auth/register', { email: 'someone@example.com' }),
  ).api_key
  return {
    url,
    dataDir,
    key,
    get pid() {
      return runningPid(dataDir) ?? 0
    },
    computer: async (name, runtime_mb, disk_mb) => {
      const made = computerSchema.parse(await call(url, key, 'POST', '/v1/computers', { name, runtime_mb, disk_mb }))
      return new Computer(url, key, made.id, made.short_id)
    },
    ask: async (schema, method, path, body) => schema.parse(await call(url, key, method, path, body)),
    stop: () => stopOrb(dataDir),
    async restart(signal) {
      if (signal === 'SIGKILL') process.kill(runningPid(dataDir) ?? 0, signal)
      await stopOrb(dataDir)
      const began = performance.now()
      await launch(dataDir)
      const readyMs = performance.now() - began
      return { readyMs, recoveredMs: await recoveredMs(dataDir) }
    },
  }
}

/** Starts the orb of a data directory; returns its URL once it is ready. */
async function launch(dataDir: string): Promise<string> {
  const output = openSync(logFile(dataDir), 'w')
  const child = Bun.spawn([ORB, 'serve', '--config', configFile(dataDir)], {
    env: ownEnvironment(),
    stdio: ['ignore', output, output],
    detached: true,
  })
  child.unref()
  writeFileSync(pidFile(dataDir), String(child.pid))
  closeSync(output)
  return readyUrl(dataDir, () => child.exitCode === null)
}

/** One computer, through the API; what the API does not say is read from the kernel. */
export class Computer {
  constructor(
    readonly url: string,
    readonly key: string,
    readonly id: string,
    readonly shortId: string,
  ) {}

  /** The answer as `schema` reads it. @throws Error for an error */
  async ask<S extends z.ZodType>(schema: S, method: string, path: string, body?: Body): Promise<z.output<S>> {
    return schema.parse(await call(this.url, this.key, method, `/v1/computers/${this.id}${path}`, body))
  }

  async put(path: string, content: string | Uint8Array<ArrayBuffer>): Promise<void> {
    await this.ask(z.unknown(), 'PUT', `/files/${path}`, content)
  }

  /** The agent's log as it is written, from its beginning, until `signal` aborts. */
  async *follow(signal: AbortSignal): AsyncGenerator<{ stream: string; line: string }> {
    const address = `${this.url}/v1/computers/${this.id}/logs?follow=1&tail=10000`
    const response = await fetch(address, { headers: { authorization: `Bearer ${this.key}` }, signal })
    if (!response.ok || !response.body) throw new Error(`the log cannot be followed: ${response.status}`)
    const decoder = new TextDecoder()
    let rest = ''
    for await (const chunk of response.body) {
      const lines = (rest + decoder.decode(chunk, { stream: true })).split('\n')
      rest = lines.pop() ?? ''
      for (const line of lines)
        if (line.startsWith('data: ')) yield LogLine.parse(JSON.parse(line.slice('data: '.length)))
    }
  }

  /** Its IPv4 address, to which the host has a route of its own. */
  addressInside(): string {
    const { stdout } = Bun.spawnSync(['ip', '-4', '-o', 'route', 'show', 'dev', `orb-${this.shortId}`])
    return stdout.toString().split(' ')[0] ?? ''
  }

  /** Bytes of RAM that the kernel charges the agent for; where memory is on cgroup v1, those of the computer. */
  memoryBytes(): number {
    const cgroup = join('orb', `orb-${this.shortId}`)
    const v1 = join('/sys/fs/cgroup/memory', cgroup, 'memory.usage_in_bytes')
    const v2 = join('/sys/fs/cgroup', cgroup, 'agent/memory.current')
    return Number(readFileSync(existsSync(v1) ? v1 : v2, 'utf8'))
  }

  /** Number of processes of the agent's tree. */
  processes(): number {
    return this.pidsIn('agent').length
  }

  /** Host pids of the computer's own, without its agent's. */
  standing(): number[] {
    return this.pidsIn('init')
  }

  private pidsIn(leaf: string): number[] {
    const roots = ['/sys/fs/cgroup/unified', '/sys/fs/cgroup']
    const dir = roots.map((root) => join(root, 'orb', `orb-${this.shortId}`, leaf)).find((path) => existsSync(path))
    return dir ? readFileSync(join(dir, 'cgroup.procs'), 'utf8').split('\n').filter(Boolean).map(Number) : []
  }
}

const LogLine = z.object({ stream: z.string(), line: z.string() })

/**
 * Stops the orb of a data directory, ends all that it started, takes its mounts and network away, removes the directory.
 * Nothing there is no error. @throws Error when something stays
 */
export async function removeOrb(dataDir: string): Promise<void> {
  if (!existsSync(dataDir)) return
  if (!existsSync(pidFile(dataDir))) throw new Error(`${dataDir} is there and was not made by this program`)
  await stopOrb(dataDir)
  if (existsSync(join(dataDir, 'orb.db'))) {
    const command = [ORB, 'down', '--config', configFile(dataDir)]
    const down = Bun.spawnSync(command, { env: ownEnvironment(), stdout: 'ignore', stderr: 'pipe' })
    if (down.exitCode !== 0) throw new Error(`\`${command.join(' ')}\` failed: ${down.stderr.toString().trim()}`)
  }
  await rm(dataDir, { recursive: true, force: true })
}

/** The last lines that orb logged. */
export function logTail(dataDir: string, lines = 20): string {
  return existsSync(logFile(dataDir))
    ? readFileSync(logFile(dataDir), 'utf8').trimEnd().split('\n').slice(-lines).join('\n')
    : ''
}

/** Whether the orb of this directory runs. */
export function isServed(dataDir: string): boolean {
  return runningPid(dataDir) !== null
}

/** A pid alone may be another process's by now: its command line must name the directory. */
function runningPid(dataDir: string): number | null {
  if (!existsSync(pidFile(dataDir))) return null
  const pid = Number(readFileSync(pidFile(dataDir), 'utf8'))
  const commandLine = `/proc/${pid}/cmdline`
  if (!existsSync(commandLine)) return null
  return readFileSync(commandLine, 'utf8').split('\0').includes(configFile(dataDir)) ? pid : null
}

async function stopOrb(dataDir: string): Promise<void> {
  const pid = runningPid(dataDir)
  if (pid === null) return
  process.kill(pid, 'SIGTERM')
  const deadline = performance.now() + STOP_TIMEOUT_MS
  while (runningPid(dataDir) !== null && performance.now() < deadline) await Bun.sleep(POLL_MS)
  if (runningPid(dataDir) !== null) process.kill(pid, 'SIGKILL')
  while (runningPid(dataDir) !== null) await Bun.sleep(POLL_MS)
}

async function call(url: string, key: string, method: string, path: string, body?: Body): Promise<unknown> {
  const raw = typeof body === 'string' || body instanceof Uint8Array ? body : JSON.stringify(body)
  const response = await fetch(`${url}${path}`, {
    method,
    headers: key ? { authorization: `Bearer ${key}` } : {},
    body: raw,
    // A build may take minutes.
    timeout: false,
  })
  const text = await response.text()
  if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${text}`)
  return JSON.parse(text)
}

/** Settings in the caller's environment would win over those of the file. */
function ownEnvironment(): Record<string, string> {
  const entries = Object.entries(process.env).flatMap(([name, value]): [string, string][] =>
    value === undefined || name.startsWith('ORB_') ? [] : [[name, value]],
  )
  return Object.fromEntries(entries)
}

/** Chosen here and not by orb: after a restart it is to be found at the same. */
async function freePort(): Promise<number> {
  const { promise, resolve } = Promise.withResolvers<number>()
  const server = createServer().listen(0, '127.0.0.1', () => {
    const address = server.address()
    server.close(() => resolve(address !== null && typeof address === 'object' ? address.port : 0))
  })
  return promise
}

/** A subnet of which neither an address nor a route is known to this machine. */
export function freeSubnet(): string {
  const used = ['addr', 'route'].map((what) => Bun.spawnSync(['ip', '-o', '-4', what]).stdout.toString()).join('\n')
  for (let second = FIRST_SUBNET; second <= LAST_SUBNET; second++) {
    if (!used.includes(` 10.${second}.`) && !used.includes(`\n10.${second}.`)) return `10.${second}.0.0/16`
  }
  throw new Error(`every subnet from 10.${FIRST_SUBNET}.0.0/16 to 10.${LAST_SUBNET}.0.0/16 is in use on this machine`)
}

/** What orb itself says that it took, in ms, once every agent is looked after. */
async function recoveredMs(dataDir: string): Promise<number> {
  const deadline = performance.now() + RECOVERED_TIMEOUT_MS
  while (performance.now() < deadline) {
    const ms = / all agents are looked after .*\bms=(\d+)/.exec(readFileSync(logFile(dataDir), 'utf8'))?.[1]
    if (ms) return Number(ms)
    await Bun.sleep(POLL_MS)
  }
  throw new Error(`orb has not looked after every agent:\n${logTail(dataDir)}`)
}

async function readyUrl(dataDir: string, runs: () => boolean): Promise<string> {
  const deadline = performance.now() + READY_TIMEOUT_MS
  while (runs() && performance.now() < deadline) {
    const url = /^orb .* ready: (\S+),/m.exec(readFileSync(logFile(dataDir), 'utf8'))?.[1]
    if (url) return url
    await Bun.sleep(POLL_MS)
  }
  throw new Error(`orb did not start:\n${logTail(dataDir)}`)
}
