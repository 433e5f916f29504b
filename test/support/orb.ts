/**
 * A real `orb serve` for the end-to-end tests, on a data directory and a subnet of its own: compiled where
 * `ORB_TEST_BINARY` names an executable, else from the sources. Needs root.
 */
import { existsSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import { computerList, computer as computerSchema, registered } from '../../src/api/cloud/schemas.ts'
import { Computer } from './computer.ts'
import { computersIn, networkRemains, remains, sweep, sweepNetwork, until } from './sweep.ts'

/** A ladder short enough for tests, long enough that its rungs can be told apart. */
export const FREEZE_AFTER_MS = 300
export const CHECKPOINT_AFTER_MS = 800

/** For `setDefaultTimeout`: bun's own 5 s a test are too short for suites that start real computers on a busy machine. */
export const TEST_TIMEOUT_MS = 90_000
const READY_TIMEOUT_MS = 30_000
/** Lines of orb's log that a failure shows, requests left out. */
const SHOWN_LOG_LINES = 40
const STOP_TIMEOUT_MS = 20_000
const MAIN = join(import.meta.dir, '../../src/main.ts')

export interface OrbOptions {
  env?: Record<string, string>
  /** Executable to run instead. */
  binary?: string
  /** Where its data directory is made. */
  parentDir?: string
  /** A module that is loaded ahead of orb's own; it is then run from the sources. */
  preload?: string
}

export interface Answer {
  status: number
  headers: Headers
  text: string
  /** The body, when it is a JSON object. */
  json: Record<string, unknown>
}

/** Text, bytes and streams go out as they are, the rest as JSON. */
export type Payload = string | Uint8Array<ArrayBuffer> | ReadableStream<Uint8Array> | object | undefined

type Child = ReturnType<typeof spawn>

const JsonObject = z.record(z.string(), z.unknown())

function spawn(command: string[], env: Record<string, string>) {
  return Bun.spawn(command, { env, stdin: 'ignore', stdout: 'pipe', stderr: 'pipe' })
}

export async function startOrb(options: OrbOptions = {}): Promise<Orb> {
  if (process.getuid?.() !== 0) throw new Error('the end-to-end tests need root')
  const dataDir = await mkdtemp(join(options.parentDir ?? tmpdir(), 'orb-test-'))
  const orb = new Orb(dataDir, options)
  try {
    await orb.start()
    await orb.register()
    return orb
  } catch (thrown) {
    await orb.stop().catch(() => undefined)
    throw thrown
  }
}

const anyOf = (from: number, to: number): number => from + Math.floor(Math.random() * (to - from + 1))

export class Orb {
  readonly gateway: string
  url = ''
  /** Of the organisation that was registered last. */
  key = ''
  orgId = ''
  email = ''
  private child: Child | null = null
  private readonly keys: string[] = []
  readonly env: Record<string, string>
  private readonly command: string[]
  private readonly output: string[] = []
  private readonly names = new Set<string>()

  constructor(
    readonly dataDir: string,
    options: OrbOptions,
  ) {
    const prefix = `10.${anyOf(64, 250)}.${anyOf(0, 255)}`
    this.gateway = `${prefix}.1`
    const binary = options.binary ?? process.env['ORB_TEST_BINARY']
    const fromSources = [process.execPath, ...(options.preload ? ['--preload', options.preload] : []), MAIN]
    this.command = binary && !options.preload ? [binary] : fromSources
    this.env = {
      PATH: process.env['PATH'] ?? '',
      HOME: process.env['HOME'] ?? '/root',
      ORB_DATA_DIR: dataDir,
      ORB_LISTEN: '127.0.0.1:0',
      ORB_SUBNET: `${prefix}.0/24`,
      ORB_ALLOW_PRIVATE: '127.0.0.0/8',
      ORB_FREEZE_AFTER: `${FREEZE_AFTER_MS}ms`,
      ORB_CHECKPOINT_AFTER: `${CHECKPOINT_AFTER_MS}ms`,
      // Of the short time before a freeze, the work of sending a request is a larger share than of a real ladder's.
      ORB_BUSY_CPU_PERCENT: '50',
      // Tests talk to agents by exec, which wakes nobody.
      ORB_IDLE_TIMEOUT: '1h',
      ...options.env,
    }
  }

  /** What it is started with. */
  get commandLine(): string[] {
    return [...this.command, 'serve']
  }

  /** What orb wrote to stderr so far: its log. */
  get log(): string {
    return this.output.join('')
  }

  private get lastWords(): string {
    const lines = this.log.split('\n').filter((line) => !line.includes(' info request '))
    return lines.slice(-SHOWN_LOG_LINES).join('\n')
  }

  get pid(): number {
    if (!this.child) throw new Error('orb does not run')
    return this.child.pid
  }

  /** Starts on the data directory as it is, and waits until orb says that it is ready. */
  async start(): Promise<void> {
    const child = spawn(this.commandLine, this.env)
    this.child = child
    void this.collect(child.stderr)
    const ready = await Promise.race([firstLine(child.stdout), Bun.sleep(READY_TIMEOUT_MS)])
    const url = /\bready: (\S+?),/.exec(ready ?? '')?.[1]
    if (!url) throw new Error(`orb did not start: ${ready ?? 'no ready line'}\n${this.lastWords}`)
    this.url = url
  }

  /** Kills orb as a power cut would, its children and agents aside. */
  async kill9(): Promise<void> {
    const child = this.child
    this.child = null
    child?.kill('SIGKILL')
    await child?.exited
  }

  /** Starts it again after `kill9` or `terminate`. */
  restart(): Promise<void> {
    return this.start()
  }

  /** Ends orb as a service manager would. Returns its exit code. */
  async terminate(): Promise<number> {
    const child = this.child
    if (!child) throw new Error('orb does not run')
    child.kill('SIGTERM')
    const code = await Promise.race([child.exited, Bun.sleep(STOP_TIMEOUT_MS)])
    this.child = null
    if (code !== undefined) return code
    child.kill('SIGKILL')
    throw new Error(`orb did not stop within ${STOP_TIMEOUT_MS} ms of SIGTERM`)
  }

  /** `orb down`: takes everything but the data away. Orb must not run. */
  async down(): Promise<void> {
    const command = [...this.command, 'down']
    const { exitCode, stderr } = Bun.spawnSync(command, { env: this.env, stderr: 'pipe', timeout: STOP_TIMEOUT_MS })
    if (exitCode !== 0) throw new Error(`orb down ended with exit code ${exitCode}: ${stderr}`)
  }

  /** What of it is on the machine though orb has ended and should have left nothing, one line each. */
  async remains(): Promise<string[]> {
    const all = () => [...remains(this.dataDir, [...this.names]), ...networkRemains(this.gateway)]
    await until(() => all().length === 0)
    return all()
  }

  /** Registers an organisation, whose key `call` then uses. */
  async register(email = `${crypto.randomUUID()}@example.com`): Promise<void> {
    const { json } = await this.call('POST', '/api/v1/auth/register', { email })
    const account = registered.parse(json)
    this.keys.push(account.api_key)
    this.key = account.api_key
    this.orgId = account.org_id
    this.email = account.email
  }

  /** Sends a request with the key of the organisation that was registered last, unless `headers` say otherwise. */
  async call(method: string, path: string, body?: Payload, headers: Record<string, string> = {}): Promise<Answer> {
    const raw = typeof body === 'string' || body instanceof Uint8Array || body instanceof ReadableStream
    const sent = body === undefined || raw ? body : JSON.stringify(body)
    const response = await fetch(`${this.url}${path}`, {
      method,
      headers: {
        ...(this.key ? { authorization: `Bearer ${this.key}` } : {}),
        ...(raw ? {} : { 'content-type': 'application/json' }),
        ...headers,
      },
      body: sent,
    })
    const text = await response.text()
    return { status: response.status, headers: response.headers, text, json: parsed(text) }
  }

  /** As `call`, for what must succeed: the body as `schema` reads it. */
  async ask<S extends z.ZodType>(schema: S, method: string, path: string, body?: Payload): Promise<z.output<S>> {
    const { status, text, json } = await this.call(method, path, body)
    if (status >= 300) throw new Error(`${method} ${path}: ${status} ${text}`)
    return schema.parse(json)
  }

  async computer(input: { name?: string; runtime_mb?: number; disk_mb?: number } = {}): Promise<Computer> {
    const made = await this.ask(computerSchema, 'POST', '/v1/computers', { name: 'test', disk_mb: 256, ...input })
    const computer = new Computer(this, made.id)
    this.names.add(computer.name)
    return computer
  }

  /**
   * Deletes every computer through the API, stops orb, and takes away what is left of it on the machine. Rejects, after
   * having done so, with what orb should have removed and did not.
   */
  async stop(): Promise<void> {
    const problems: string[] = []
    try {
      if (!this.child || this.child.exitCode !== null || this.child.signalCode !== null) await this.start()
      for (const name of computersIn(this.dataDir)) this.names.add(name)
      await this.deleteComputers()
      const code = await this.terminate()
      if (code !== 0) problems.push(`orb ended with exit code ${code}`)
      await this.down()
      problems.push(...(await this.remains()).map((thing) => `left behind: ${thing}`))
    } catch (thrown) {
      problems.push(thrown instanceof Error ? thrown.message : String(thrown))
    } finally {
      await this.kill9()
      await sweep(this.dataDir, [...this.names])
      sweepNetwork(this.gateway)
      await rm(this.dataDir, { recursive: true, force: true })
    }
    if (problems.length > 0) throw new Error(`${problems.join('\n')}\n--- orb's log:\n${this.lastWords}`)
  }

  private async deleteComputers(): Promise<void> {
    for (const key of this.keys) {
      this.key = key
      const { computers } = await this.ask(computerList, 'GET', '/v1/computers')
      for (const { id } of computers) {
        const { status, text } = await this.call('DELETE', `/v1/computers/${id}`)
        if (status !== 200) throw new Error(`a computer could not be deleted: ${status} ${text}`)
        if (existsSync(join(this.dataDir, 'computers', id)))
          throw new Error(`computer ${id} is deleted, its directory stays`)
      }
    }
  }

  private async collect(stream: ReadableStream<Uint8Array>): Promise<void> {
    const decoder = new TextDecoder()
    for await (const chunk of stream) this.output.push(decoder.decode(chunk, { stream: true }))
  }
}

function parsed(text: string): Record<string, unknown> {
  try {
    return JsonObject.parse(JSON.parse(text))
  } catch {
    return {}
  }
}

/** The first line of a stream, which is then read on so that its writer never waits; undefined if it ends before. */
function firstLine(stream: ReadableStream<Uint8Array>): Promise<string | undefined> {
  return new Promise((resolve) => {
    void (async () => {
      let text = ''
      for await (const chunk of stream) {
        text += Buffer.from(chunk).toString()
        if (text.includes('\n')) resolve(text.slice(0, text.indexOf('\n')))
      }
      resolve(undefined)
    })()
  })
}
