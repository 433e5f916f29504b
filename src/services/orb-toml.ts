import { createHash } from 'node:crypto'
import { parse, TomlDate, TomlError } from 'smol-toml'
import { z } from 'zod'
import { OrbError } from '../errors.ts'
import type { PlainHttpAllowed } from './config/fields.ts'
import { type Language, type OrbToml, orbTomlSchema, type Provider, tomlNumber } from './config/schema.ts'
import type { ConfigSummary } from './types.ts'

/** A value of `[agent.env]`: as it stands, or to be filled from the secret of that name. */
export type EnvValue = { literal: string } | { secret: string }

/** A validated orb.toml, the same whatever era's spelling it came in (Orb Cloud contract §4). */
export interface OrbConfig {
  agent: { name: string; lang: Language; entry: string; args: string[]; env: Record<string, EnvValue> }
  source: { git: string; branch: string } | null
  build: { steps: string[]; workingDir: string } | null
  llm: { baseUrl: string | null; provider: Provider }
  /** The first is the one of the subdomain. */
  ports: number[]
  /** Advice only: the limits of a computer are set when it is created. */
  resources: { runtimeMb: number | null; diskMb: number | null }
  /** `idleTimeoutMs`: 0 = no idle sleep, null = the server's default. */
  lifecycle: { sleep: 'auto' | 'never'; idleTimeoutMs: number | null }
  network: {
    /** Hosts, `*.host`, IPs and CIDRs in lower case; [] = nothing, null = the whole internet. */
    outbound: string[] | null
  }
  /** What was sent, as JSON can hold it. */
  raw: Record<string, unknown>
}

export interface ParsedConfig {
  config: OrbConfig
  warnings: string[]
}

type Invalid = 'invalid_toml' | 'invalid_config'

/** Orb Cloud contract §20. */
const MAX_DEPTH = 32
/** Never names of a setting, and harmful as keys of an object (Orb Cloud contract §21). */
const DROPPED_KEYS = new Set(['__proto__', 'constructor', 'prototype'])
const SECRET = /^\$\{([A-Za-z_][A-Za-z0-9_]*)\}$/

/** Reads orb.toml. Throws OrbError `invalid_toml`: the first problem as message, all of them in `details`. */
export function parseToml(raw: Uint8Array, plainHttpAllowed: PlainHttpAllowed): ParsedConfig {
  return validate(tomlTable(utf8(raw)), 'invalid_toml', plainHttpAllowed)
}

/** Reads the same structure as JSON gives it. Throws OrbError `invalid_config` in the same way. */
export function parseInline(json: unknown, plainHttpAllowed: PlainHttpAllowed): ParsedConfig {
  if (!isTable(json)) throw failure('invalid_config', ['the configuration must be an object'])
  return validate(json, 'invalid_config', plainHttpAllowed)
}

/** For the store: what was sent. */
export const toJson = (config: OrbConfig): string => JSON.stringify(config.raw)

/** The counterpart of `toJson`. What was accepted once stays valid though rules and limits may have changed. */
export const fromJson = (json: string): OrbConfig =>
  validate(Stored.parse(JSON.parse(json)), 'invalid_config', () => true, Number.POSITIVE_INFINITY).config

const Stored = z.record(z.string(), z.unknown())

/** Orb Cloud contract §5. */
export const summary = ({ agent, llm, ports }: OrbConfig): ConfigSummary => ({
  agent: { name: agent.name, lang: agent.lang, entry: agent.entry },
  backend: { provider: llm.provider },
  llm: { base_url: llm.baseUrl },
  ports: { expose: ports },
})

/** The same for two configurations exactly if a build does the same for both: a hash of [source] and [build]. */
export function buildFingerprint({ source, build }: OrbConfig): string {
  const parts = [source && [source.git, source.branch], build && [build.steps, build.workingDir]]
  return createHash('sha256').update(JSON.stringify(parts)).digest('hex')
}

const failure = (code: Invalid, problems: string[]): OrbError =>
  new OrbError(code, problems[0] ?? 'the configuration is not valid', { details: [...new Set(problems)] })

const utf8 = (raw: Uint8Array): string => {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(raw)
  } catch {
    throw failure('invalid_toml', ['orb.toml is not UTF-8'])
  }
}

const tomlTable = (text: string): Record<string, unknown> => {
  if (text.trim() === '') throw failure('invalid_toml', ['orb.toml is empty'])
  try {
    return parse(text, { integersAsBigInt: 'asNeeded', maxDepth: MAX_DEPTH })
  } catch (thrown) {
    if (!(thrown instanceof TomlError)) throw thrown
    const reason = thrown.message.split('\n')[0]?.replace('Invalid TOML document: ', '')
    throw failure('invalid_toml', [`TOML parse error at line ${thrown.line}, column ${thrown.column}: ${reason}`])
  }
}

const isTable = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof TomlDate)

const validate = (
  sent: Record<string, unknown>,
  code: Invalid,
  plainHttpAllowed: PlainHttpAllowed,
  maxOutbound?: number,
): ParsedConfig => {
  if (isTooDeep(sent, MAX_DEPTH)) throw failure(code, [`the configuration is nested deeper than ${MAX_DEPTH} levels`])
  const parsed = orbTomlSchema(plainHttpAllowed, maxOutbound).safeParse(cleaned(sent))
  if (!parsed.success) {
    throw failure(
      code,
      parsed.error.issues.map(({ message }) => message),
    )
  }
  return normalised(parsed.data, sent)
}

const isTooDeep = (value: unknown, levels: number): boolean =>
  typeof value === 'object' &&
  value !== null &&
  (levels === 0 || Object.values(value).some((inner) => isTooDeep(inner, levels - 1)))

/** Without harmful keys, and without nulls, which mean absent. */
const cleaned = (value: unknown): unknown => {
  if (Array.isArray(value)) return value.map(cleaned)
  if (!isTable(value)) return value
  const kept = Object.entries(value).filter(([key, inner]) => !DROPPED_KEYS.has(key) && inner !== null)
  return Object.fromEntries(kept.map(([key, inner]) => [key, cleaned(inner)]))
}

const jsonTable = (table: Record<string, unknown>): Record<string, unknown> =>
  Object.fromEntries(
    Object.entries(table).flatMap(([key, inner]) => (DROPPED_KEYS.has(key) ? [] : [[key, jsonValue(inner)]])),
  )

/** Dates, numbers beyond JSON's and the like become strings. */
const jsonValue = (value: unknown): unknown => {
  if (Array.isArray(value)) return value.map(jsonValue)
  if (value instanceof TomlDate) return value.toISOString()
  if (isTable(value)) return jsonTable(value)
  if (typeof value === 'number' && !Number.isFinite(value)) return tomlNumber(value)
  return typeof value === 'bigint' ? String(value) : value
}

const normalised = (toml: OrbToml, sent: Record<string, unknown>): ParsedConfig => {
  const { agent, source, build, llm, ports, resources, lifecycle, backend, network } = toml
  const url = llm?.base_url ?? backend?.api_base ?? null
  const config: OrbConfig = {
    agent: {
      name: agent.name,
      lang: agent.lang,
      entry: agent.entry,
      args: agent.args,
      env: Object.fromEntries(agent.env.map(([name, value]) => [name, envValue(value)])),
    },
    source: source ?? null,
    build: build ? { steps: build.steps, workingDir: build.working_dir } : null,
    llm: { baseUrl: url, provider: backend?.provider ?? (url === null ? 'multi' : 'custom') },
    ports: [...new Set(ports?.expose)],
    resources: {
      runtimeMb: resources?.runtime ?? resources?.runtime_mb ?? null,
      diskMb: resources?.disk ?? resources?.disk_mb ?? null,
    },
    lifecycle: {
      sleep: lifecycle?.sleep ?? 'auto',
      idleTimeoutMs: lifecycle?.idle_timeout ?? agent.idle_timeout ?? toml.idle_timeout ?? null,
    },
    network: { outbound: network?.outbound?.map((host) => host.toLowerCase()) ?? null },
    raw: jsonTable(sent),
  }
  return { config, warnings: agent.env.flatMap(([name, value]) => envWarning(name, value) ?? []) }
}

const envValue = (value: string): EnvValue => {
  const secret = SECRET.exec(value)?.[1]
  return secret === undefined ? { literal: value } : { secret }
}

const envWarning = (name: string, value: string): string | null =>
  value.includes('${') && !SECRET.test(value)
    ? `agent.env.${name} is used literally: only a value that is exactly \${NAME} is replaced by a secret`
    : null
