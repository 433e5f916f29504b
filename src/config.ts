import { existsSync, readFileSync } from 'node:fs'
import { isAbsolute } from 'node:path'
import { parseArgs } from 'node:util'
import { parse as parseToml } from 'smol-toml'
import { z } from 'zod'
import { type AllowEntry, parseAllowList } from './addresses.ts'
import { type Cidr, parseCidr } from './cidr.ts'
import { messageOf } from './errors.ts'
import { parseDuration } from './time.ts'

export const DEFAULT_CONFIG_FILE = '/etc/orb/config.toml'

/** Blocks smaller than this could not hold a computer and its gateway. */
const LONGEST_SUBNET_PREFIX = 30

export type Listen = { kind: 'tcp'; host: string; port: number } | { kind: 'unix'; path: string }

/** Every setting of the Orb Cloud contract §1.1, validated. */
export type Settings = ReturnType<typeof toSettings>

export interface Flags {
  listen?: string
  domain?: string
  dataDir?: string
  publicUrl?: string
  /** Path of the configuration file; unlike the default path it must exist. */
  config?: string
}

/** Reads `--listen --domain --data-dir --public-url --config`. Throws an error of one line for anything else. */
export function readFlags(argv: string[]): Flags {
  const { values } = parseArgs({
    args: argv,
    options: {
      listen: { type: 'string' },
      domain: { type: 'string' },
      'data-dir': { type: 'string' },
      'public-url': { type: 'string' },
      config: { type: 'string' },
    },
  })
  return {
    listen: values.listen,
    domain: values.domain,
    dataDir: values['data-dir'],
    publicUrl: values['public-url'],
    config: values.config,
  }
}

/** Settings of the file, overridden by the environment, overridden by flags. Throws an error of one line that names the setting. */
export function loadSettings(from: { flags: Flags; env: Record<string, string | undefined>; file?: string }): Settings {
  const path = from.flags.config ?? from.file ?? DEFAULT_CONFIG_FILE
  const raw: Record<string, string> = readFile(path, from.flags.config !== undefined)
  for (const key of Object.keys(SETTINGS.shape)) {
    const value = from.env[variable(key)]
    if (value) raw[key] = value
  }
  const flags = {
    listen: from.flags.listen,
    domain: from.flags.domain,
    data_dir: from.flags.dataDir,
    public_url: from.flags.publicUrl,
  }
  for (const [key, value] of Object.entries(flags)) if (value !== undefined) raw[key] = value

  const parsed = SETTINGS.safeParse(raw)
  if (parsed.success) return toSettings(parsed.data)
  const issue = parsed.error.issues[0]
  const key = String(issue?.path[0] ?? '')
  // A token is the one setting whose value must not be repeated.
  const value = key === 'metrics_token' ? '' : ` ${JSON.stringify(raw[key])}`
  throw new Error(`invalid ${variable(key)}:${value} (${issue?.message})`)
}

const variable = (key: string): string => `ORB_${key.toUpperCase()}`

function readFile(path: string, required: boolean): Record<string, string> {
  if (!required && !existsSync(path)) return {}
  const table = parseFile(path)
  const raw: Record<string, string> = {}
  for (const [key, value] of Object.entries(table)) {
    if (!(key in SETTINGS.shape)) throw new Error(`unknown setting in ${path}: ${key}`)
    raw[key] = Array.isArray(value) ? value.map(scalar).join(',') : scalar(value)
  }
  return raw
}

function parseFile(path: string): Record<string, unknown> {
  try {
    return parseToml(readFileSync(path, 'utf8'))
  } catch (error) {
    throw new Error(`cannot read ${path}: ${messageOf(error).split('\n')[0]}`)
  }
}

const scalar = (value: unknown): string => (typeof value === 'boolean' ? String(Number(value)) : String(value))

/** A setting written as text: `read` gives null for what `expected` does not describe. */
function setting<T>(fallback: string, expected: string, read: (text: string) => T | null) {
  return z
    .string()
    .default(fallback)
    .transform((text, context) => {
      const value = read(text.trim())
      if (value !== null) return value
      context.addIssue({ code: 'custom', message: `expected ${expected}` })
      return z.NEVER
    })
}

const duration = (fallback: string) => setting(fallback, '500ms, 30s, 10m, 1h or a number of seconds', parseDuration)

const whole = (fallback: number, min: number) =>
  setting(String(fallback), `a whole number of at least ${min}`, (text) => {
    const value = /^\d{1,9}$/.test(text) ? Number(text) : -1
    return value >= min ? value : null
  })

const decimal = (fallback: string, max: number) =>
  setting(fallback, `a number from 0 to ${max}`, (text) => {
    const value = /^\d+(\.\d+)?$/.test(text) ? Number(text) : -1
    return value >= 0 && value <= max ? value : null
  })

const text = (fallback: string) => setting(fallback, 'a text', (value) => value)

const list = <T>(expected: string, read: (text: string) => T | null) =>
  setting('', expected, (value) => {
    const items = value.split(',').flatMap((part) => (part.trim() === '' ? [] : [read(part.trim())]))
    const valid = items.filter((item) => item !== null)
    return valid.length === items.length ? valid : null
  })

const path = (fallback: string) =>
  setting(fallback, 'an absolute path', (value) => (value === '' || isAbsolute(value) ? value : null))

const httpUrl = (fallback: string) =>
  setting(fallback, 'a URL such as https://orb.example.com', (value) => {
    if (value === '') return value
    const url = URL.parse(value)
    if (!url || !/^https?:$/.test(url.protocol) || url.username || url.search || url.hash) return null
    return value.replace(/\/+$/, '')
  })

const hostname = (fallback: string) =>
  setting(fallback, 'a host name such as orb.example.com', (value) =>
    /^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?(:\d{1,5})?$/i.test(value) ? value.toLowerCase() : null,
  )

const SETTINGS = z.object({
  listen: setting('127.0.0.1:8787', 'HOST:PORT or unix:PATH', parseListen),
  domain: hostname('orb.localhost'),
  public_url: httpUrl(''),
  tls_cert: path(''),
  tls_key: path(''),
  trust_proxy: setting('0', '0 or 1', (value) => (/^[01]$/.test(value) ? value === '1' : null)),
  data_dir: path('/var/lib/orb'),
  base: setting('host', 'host or an absolute path', (value) => (value === 'host' || isAbsolute(value) ? value : null)),
  subnet: setting('10.42.0.0/16', 'an IPv4 block such as 10.42.0.0/16', parseSubnet),
  registration: setting('open', 'open or closed', (value) => (value === 'open' || value === 'closed' ? value : null)),
  freeze_after: duration('2s'),
  checkpoint_after: duration('5s'),
  idle_timeout: duration('120s'),
  busy_cpu_percent: decimal('25', 100),
  idle_cpu_percent: decimal('1', 100),
  wake_timeout: duration('30s'),
  llm_timeout: duration('3600s'),
  replay_ttl: duration('600s'),
  clone_timeout: duration('300s'),
  build_step_timeout: duration('600s'),
  build_timeout: duration('3600s'),
  exec_timeout: duration('30s'),
  memory_multiplier: setting('3', 'a number from 1 to 100', (value) =>
    /^\d+(\.\d+)?$/.test(value) && Number(value) >= 1 && Number(value) <= 100 ? Number(value) : null,
  ),
  max_runtime_mb: whole(65_536, 64),
  max_disk_mb: whole(1_048_576, 64),
  max_computers: whole(1000, 1),
  swap_gb: decimal('0', 16_384),
  allow_private: setting('', 'a comma list of CIDR, host, host:port or *', allowListOrNull),
  sandbox_allow: list('a comma list of CIDR', parseCidr),
  github_api: httpUrl('https://api.github.com'),
  github_host: hostname('github.com'),
  rate_runtime: decimal('0.005', 1000),
  rate_disk: decimal('0.05', 1000),
  metrics_token: text(''),
})

function toSettings(raw: z.output<typeof SETTINGS>) {
  if ((raw.tls_cert === '') !== (raw.tls_key === '')) {
    throw new Error(
      `invalid ${raw.tls_cert === '' ? 'ORB_TLS_CERT' : 'ORB_TLS_KEY'}: missing (both or neither are set)`,
    )
  }
  if (raw.data_dir === '') throw new Error('invalid ORB_DATA_DIR: "" (expected an absolute path)')
  const tls = raw.tls_cert === '' ? null : { certFile: raw.tls_cert, keyFile: raw.tls_key }
  return {
    listen: raw.listen,
    domain: raw.domain,
    publicUrl: raw.public_url || defaultPublicUrl(raw.listen, tls !== null),
    tls,
    trustProxy: raw.trust_proxy,
    dataDir: raw.data_dir,
    base: raw.base,
    subnet: raw.subnet,
    registration: raw.registration,
    freezeAfterMs: raw.freeze_after,
    checkpointAfterMs: raw.checkpoint_after,
    idleTimeoutMs: raw.idle_timeout,
    busyCpuPercent: raw.busy_cpu_percent,
    idleCpuPercent: raw.idle_cpu_percent,
    wakeTimeoutMs: raw.wake_timeout,
    llmTimeoutMs: raw.llm_timeout,
    replayTtlMs: raw.replay_ttl,
    cloneTimeoutMs: raw.clone_timeout,
    buildStepTimeoutMs: raw.build_step_timeout,
    buildTimeoutMs: raw.build_timeout,
    execTimeoutMs: raw.exec_timeout,
    memoryMultiplier: raw.memory_multiplier,
    maxRuntimeMb: raw.max_runtime_mb,
    maxDiskMb: raw.max_disk_mb,
    maxComputers: raw.max_computers,
    swapBytes: Math.floor(raw.swap_gb * 1024) * 1024 * 1024,
    allowPrivate: raw.allow_private,
    sandboxAllow: raw.sandbox_allow,
    githubApi: raw.github_api,
    githubHost: raw.github_host,
    rateRuntime: raw.rate_runtime,
    rateDisk: raw.rate_disk,
    metricsToken: raw.metrics_token || null,
  }
}

function allowListOrNull(value: string): AllowEntry[] | null {
  try {
    return parseAllowList(value)
  } catch {
    return null
  }
}

function defaultPublicUrl(listen: Listen, tls: boolean): string {
  if (listen.kind === 'unix') return 'http://localhost'
  const host = listen.host.includes(':') ? `[${listen.host}]` : listen.host
  return `${tls ? 'https' : 'http'}://${host}:${listen.port}`
}

function parseListen(value: string): Listen | null {
  if (value.startsWith('unix:')) {
    const socket = value.slice('unix:'.length)
    return isAbsolute(socket) ? { kind: 'unix', path: socket } : null
  }
  const split = splitHostPort(value)
  return split?.port === undefined ? null : { kind: 'tcp', host: split.host, port: split.port }
}

function parseSubnet(value: string): Cidr | null {
  const cidr = parseCidr(value)
  return cidr?.family === 4 && cidr.prefix <= LONGEST_SUBNET_PREFIX ? cidr : null
}

/** `host`, `host:port`, `[v6]:port`; the brackets are dropped. */
function splitHostPort(value: string): { host: string; port?: number } | null {
  const match = /^(?:\[([0-9a-f:.]+)\]|([a-z0-9._-]+))(?::(\d{1,5}))?$/i.exec(value)
  const host = match?.[1] ?? match?.[2]
  const port = match?.[3] === undefined ? undefined : Number(match[3])
  if (host === undefined || (port !== undefined && port > 65_535)) return null
  return { host, port }
}
