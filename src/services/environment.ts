import { OrbError } from '../errors.ts'
import type { OrbConfig } from './orb-toml.ts'

export type Environment = Record<string, string>

/** What the environment says of the computer itself (Orb Cloud contract §10). */
export interface EnvironmentFacts {
  computerId: string
  /** `http://<gateway>:<port>` of the computer's LLM proxy, without a path. */
  proxyUrl: string
  /** `http://<gateway>:<listen port>`: the API as seen from inside. */
  apiUrl: string
  /** Exposed ports, the first is the one of the subdomain. */
  ports: number[]
  /** Null outside swarms. */
  replica: { index: number; count: number } | null
}

/** The port that clients of Orb Cloud know as taken. */
const RESERVED_PORT = '20001'

const ALWAYS_DEFAULTS: Environment = {
  HOME: '/root',
  USER: 'root',
  LANG: 'C.UTF-8',
  NPM_CONFIG_PREFIX: '/root/.npm-global',
  PIP_BREAK_SYSTEM_PACKAGES: '1',
  // A process that uses io_uring cannot be checkpointed.
  UV_USE_IO_URING: '0',
  PATH: '/root/.npm-global/bin:/root/.local/bin:/agent/packages/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
}

/** The environment of exec: nothing of the user's. */
export const baseEnvironment = (facts: EnvironmentFacts): Environment => agentEnvironment(facts, {})

/** The environment of build steps (Orb Cloud contract §6). */
export const buildEnvironment = (facts: EnvironmentFacts): Environment => ({
  ...baseEnvironment({ ...facts, replica: null }),
  DEBIAN_FRONTEND: 'noninteractive',
})

/** The environment of the agent, the terminal and, with the job's own variables added to `user`, of cron. */
export const agentEnvironment = (facts: EnvironmentFacts, user: Environment): Environment => ({
  ...ALWAYS_DEFAULTS,
  OPENAI_BASE_URL: facts.proxyUrl,
  ORB_COMPUTER_ID: facts.computerId,
  ORB_API_URL: facts.apiUrl,
  ...(facts.ports[0] === undefined ? {} : { PORT: String(facts.ports[0]) }),
  ...user,
  ORB_PROXY_URL: facts.proxyUrl,
  ANTHROPIC_BASE_URL: facts.proxyUrl,
  ORB_PORT: RESERVED_PORT,
  ...(facts.replica && {
    ORB_REPLICA_INDEX: String(facts.replica.index),
    ORB_REPLICA_COUNT: String(facts.replica.count),
  }),
})

/** `[agent.env]` for what runs beside the agent: a placeholder without a secret is empty there, no reason to fail. */
export const shellVariables = (config: OrbConfig | null, stored: Readonly<Record<string, string>>): Environment =>
  config ? filled(config, new Map(Object.entries(stored))) : {}

const filled = (config: OrbConfig, values: ReadonlyMap<string, string>): Environment =>
  Object.fromEntries(
    Object.entries(config.agent.env).map(([name, value]) => [
      name,
      'secret' in value ? (values.get(value.secret) ?? '') : value.literal,
    ]),
  )

export interface ResolvedSecrets {
  /** `[agent.env]` with every placeholder filled. */
  env: Environment
  warnings: string[]
}

/**
 * Fills the placeholders of `[agent.env]` from the stored secrets and those sent now, which win. What stays open is an error
 * for a request that sent some or a computer that has none, and an empty string with a warning otherwise. Throws OrbError
 * `missing_secrets`. Orb Cloud contract §7.2.
 */
export function resolveSecrets(
  config: OrbConfig,
  stored: Readonly<Record<string, string>>,
  sent: Readonly<Record<string, string>> | undefined,
): ResolvedSecrets {
  const values = new Map([...Object.entries(stored), ...Object.entries(sent ?? {})])
  const entries = Object.entries(config.agent.env)
  const open = new Set(
    entries.flatMap(([, value]) => ('secret' in value && !values.has(value.secret) ? value.secret : [])),
  )
  const sentSome = Object.keys(sent ?? {}).length > 0
  const storedSome = Object.keys(stored).length > 0
  if (open.size > 0 && (sentSome || !storedSome)) {
    throw new OrbError('missing_secrets', `missing org_secrets: ${[...open].join(', ')}`)
  }
  return {
    env: filled(config, values),
    warnings: [...open].map((name) => `org_secrets.${name} has no value: an empty string is used`),
  }
}
