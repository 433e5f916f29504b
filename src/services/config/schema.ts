import { z } from 'zod'
import {
  baseUrl,
  checked,
  duration,
  gitUrl,
  invalid,
  isDestination,
  megabytes,
  needs,
  oneOf,
  type PlainHttpAllowed,
  requiredText,
  size,
  table,
  text,
  textList,
} from './fields.ts'

const LANGUAGES = ['node', 'python', 'go', 'rust', 'binary'] as const
const PROVIDERS = ['anthropic', 'openai', 'google', 'multi', 'custom'] as const

const DEFAULT_BRANCH = 'main'
const DEFAULT_WORKING_DIR = '/agent/code'

/** Orb Cloud contract §20. */
const MAX_ENV_NAMES = 200
const MAX_VALUE_BYTES = 128 * 1024
const MAX_STEPS = 100
const MAX_STEP_BYTES = 64 * 1024
const MAX_PORTS = 16
const MAX_PORT = 65_535
/** All lists of networks share one set of the kernel, whose changes take time with its size. */
const MAX_OUTBOUND = 256

/** Orb Cloud contract §6. */
const BRANCH = /^[A-Za-z0-9_][A-Za-z0-9._/-]{0,254}$/

const tooMany = (key: string, count: number, most: number, what: string): string | null =>
  count > most ? invalid(key, `${count} ${what}`, `at most ${most}`) : null

const envProblem = (name: string, value: string): string | null => {
  if (!/^[^=\0]+$/.test(name)) return invalid('agent.env', JSON.stringify(name), 'a name without = and NUL')
  // The value may be a secret that was written down: it is never repeated.
  if (value.includes('\0')) return `agent.env.${name} must not contain a NUL character`
  return tooMany(`agent.env.${name}`, Buffer.byteLength(value), MAX_VALUE_BYTES, 'bytes')
}

/** A number, boolean or string as the environment holds it; null for anything else. */
const envText = (value: unknown): string | null => {
  if (typeof value === 'string') return value
  if (typeof value === 'number' && !Number.isFinite(value)) return tomlNumber(value)
  return typeof value === 'number' || typeof value === 'bigint' || typeof value === 'boolean' ? String(value) : null
}

/** The words of TOML 1.0 for what is not finite. */
export const tomlNumber = (value: number): string => {
  if (Number.isNaN(value)) return 'nan'
  return value > 0 ? 'inf' : '-inf'
}

const env = z.record(z.string(), z.unknown(), 'agent.env must be a table').transform((values, context) => {
  const problem = (message: string | null): void => {
    if (message !== null) context.addIssue({ code: 'custom', message })
  }
  const entries = Object.entries(values)
  problem(tooMany('agent.env', entries.length, MAX_ENV_NAMES, 'names'))
  return entries.map(([name, value]): [string, string] => {
    const read = envText(value)
    problem(read === null ? `agent.env.${name} must be a string, a number or a boolean` : envProblem(name, read))
    return [name, read ?? '']
  })
})

const steps = checked(textList('build.steps'), (values) => {
  if (values.length === 0) return 'build.steps must have at least one step'
  const long = values.findIndex((step) => Buffer.byteLength(step) > MAX_STEP_BYTES)
  if (long === -1) return tooMany('build.steps', values.length, MAX_STEPS, 'steps')
  return tooMany(`build.steps[${long}]`, Buffer.byteLength(values[long] ?? ''), MAX_STEP_BYTES, 'bytes')
})

const ports = checked(
  z.array(z.int('ports.expose must be a list of integers'), needs('ports.expose', 'a list of integers')),
  (values) => {
    const wrong = values.find((port) => port < 1 || port > MAX_PORT)
    if (wrong !== undefined) return invalid('ports.expose', wrong, `ports from 1 to ${MAX_PORT}`)
    return tooMany('ports.expose', values.length, MAX_PORTS, 'ports')
  },
)

/** Whether it may be the name of a branch here: no option, no pattern, no path that climbs. */
export const isBranch = (value: string): boolean => BRANCH.test(value) && !value.includes('..')

const branch = checked(text('source.branch'), (value) =>
  isBranch(value) ? null : invalid('source.branch', value, 'a branch name such as main'),
)

const workingDir = checked(text('build.working_dir'), (value) =>
  value.startsWith('/') ? null : invalid('build.working_dir', value, 'an absolute path such as /agent/code'),
)

const outbound = (most: number) =>
  checked(textList('network.outbound'), (values) => {
    const wrong = values.find((value) => !isDestination(value))
    if (wrong !== undefined) return invalid('network.outbound', wrong, 'a host, *.host, an IP or a CIDR')
    return tooMany('network.outbound', values.length, most, 'entries')
  })

/**
 * The whole of orb.toml, every era's spelling (Orb Cloud contract §4). Unknown keys are ignored; absent values must be
 * undefined. Messages are the contract's.
 */
export const orbTomlSchema = (plainHttpAllowed: PlainHttpAllowed, maxOutbound = MAX_OUTBOUND) =>
  z.object({
    agent: z.object(
      {
        name: requiredText('agent.name'),
        lang: oneOf('agent.lang', LANGUAGES, 'lang'),
        entry: requiredText('agent.entry'),
        args: textList('agent.args').default([]),
        env: env.default([]),
        idle_timeout: duration('agent.idle_timeout').optional(),
      },
      {
        error: (issue) => (issue.input === undefined ? 'missing [agent] section' : 'agent must be a table'),
      },
    ),
    source: table('source', {
      git: gitUrl('source.git', plainHttpAllowed),
      branch: branch.default(DEFAULT_BRANCH),
    }).optional(),
    build: table('build', { steps, working_dir: workingDir.default(DEFAULT_WORKING_DIR) }).optional(),
    llm: table('llm', {
      base_url: baseUrl('llm.base_url', plainHttpAllowed).optional(),
      model: text('llm.model').optional(),
    }).optional(),
    ports: table('ports', { expose: ports.default([]) }).optional(),
    resources: table('resources', {
      runtime: size('resources.runtime').optional(),
      disk: size('resources.disk').optional(),
      runtime_mb: megabytes('resources.runtime_mb').optional(),
      disk_mb: megabytes('resources.disk_mb').optional(),
    }).optional(),
    lifecycle: table('lifecycle', {
      sleep: oneOf('lifecycle.sleep', ['auto', 'never']).default('auto'),
      idle_timeout: duration('lifecycle.idle_timeout').optional(),
    }).optional(),
    idle_timeout: duration('idle_timeout').optional(),
    backend: table('backend', {
      provider: oneOf('backend.provider', PROVIDERS).optional(),
      api_base: baseUrl('backend.api_base', plainHttpAllowed).optional(),
      routes: textList('backend.routes').optional(),
      forward_headers: textList('backend.forward_headers').optional(),
      additional_domains: textList('backend.additional_domains').optional(),
    }).optional(),
    network: table('network', { outbound: outbound(maxOutbound).optional() }).optional(),
  })

export type OrbToml = z.output<ReturnType<typeof orbTomlSchema>>
export type Language = (typeof LANGUAGES)[number]
export type Provider = (typeof PROVIDERS)[number]
