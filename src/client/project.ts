import { readFileSync, statSync } from 'node:fs'
import { basename, join, resolve } from 'node:path'
import { parse } from 'smol-toml'
import { z } from 'zod'
import { messageOf } from '../errors.ts'
import { CommandFailure } from './failure.ts'

const CONFIG_FILE = 'orb.toml'
/** A value of `[agent.env]` that is a secret's place (Orb Cloud contract §4). */
const PLACEHOLDER = /^\$\{([^}]+)\}$/
const SIZE = /^\s*(\d+(?:\.\d+)?)\s*(MB|GB)?\s*$/i
const MB_PER_GB = 1024

const size = z.union([z.string(), z.number()]).optional().catch(undefined)

/** Only what the client goes by; whether the rest is right is the server's to say. */
const OrbToml = z.looseObject({
  agent: z
    .looseObject({ env: z.record(z.string(), z.unknown()).default({}).catch({}) })
    .optional()
    .catch(undefined),
  source: z.unknown().optional(),
  build: z.unknown().optional(),
  resources: z.looseObject({ runtime: size, runtime_mb: size, disk: size, disk_mb: size }).optional().catch(undefined),
})

/** A folder with an orb.toml. */
export interface Project {
  folder: string
  /** The folder's own name. */
  name: string
  toml: string
  /** What orb.toml holds, as `orb_config` takes it. */
  config: Record<string, unknown>
  /** Names of the secrets that `[agent.env]` has places for. */
  secretNames: string[]
  hasSource: boolean
  hasBuild: boolean
  /** What `[resources]` asks for. */
  runtimeMb: number | undefined
  diskMb: number | undefined
}

export function readProject(path: string): Project {
  const folder = resolve(path)
  const toml = readToml(folder)
  const config = parseToml(toml, join(path, CONFIG_FILE))
  const { agent, source, build, resources } = OrbToml.parse(config)
  const places = Object.values(agent?.env ?? {}).flatMap((value) => PLACEHOLDER.exec(String(value))?.[1] ?? [])
  return {
    folder,
    name: basename(folder),
    toml,
    config,
    secretNames: [...new Set(places)],
    hasSource: source !== undefined,
    hasBuild: build !== undefined,
    runtimeMb: megabytes(resources?.runtime_mb ?? resources?.runtime),
    diskMb: megabytes(resources?.disk_mb ?? resources?.disk),
  }
}

function readToml(folder: string): string {
  const file = join(folder, CONFIG_FILE)
  if (!statSync(folder, { throwIfNoEntry: false })?.isDirectory()) throw new CommandFailure(`${folder} is no folder`)
  if (!statSync(file, { throwIfNoEntry: false })?.isFile()) {
    throw new CommandFailure(`${folder} has no ${CONFIG_FILE}; docs/orb-toml.md says what belongs in it`)
  }
  return readFileSync(file, 'utf8')
}

function parseToml(toml: string, shown: string): Record<string, unknown> {
  try {
    return parse(toml)
  } catch (thrown) {
    throw new CommandFailure(`${shown}: ${messageOf(thrown)}`)
  }
}

/** `"2GB"`, `"512MB"`, or a number of MB; undefined for anything else. */
function megabytes(value: string | number | undefined): number | undefined {
  const [, amount, unit] = SIZE.exec(String(value ?? '')) ?? []
  if (amount === undefined) return undefined
  return Math.round(Number(amount) * (unit?.toUpperCase() === 'GB' ? MB_PER_GB : 1))
}
