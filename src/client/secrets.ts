import { readFileSync } from 'node:fs'
import { parseEnv } from 'node:util'
import { messageOf } from '../errors.ts'
import { CommandFailure, UsageFailure } from './failure.ts'

export const SECRET_OPTIONS = {
  secret: { type: 'string', multiple: true, default: [] as string[] },
  'env-file': { type: 'string', multiple: true, default: [] as string[] },
} as const

export interface SecretSources {
  /** `NAME=VALUE`, or `NAME` for a variable of the environment. */
  secret: string[]
  'env-file': string[]
}

/**
 * Secrets by their names. What was named wins over files, a later file over an earlier one; places of orb.toml that
 * neither fills are filled from the environment, where that has them.
 */
export function collectSecrets(
  sources: SecretSources,
  places: string[],
  env: Record<string, string | undefined>,
): Record<string, string> {
  const secrets: Record<string, string> = {}
  for (const name of places) {
    const value = env[name]
    if (value !== undefined) secrets[name] = value
  }
  for (const file of sources['env-file']) Object.assign(secrets, readEnvFile(file))
  for (const word of sources.secret) {
    const at = word.indexOf('=')
    const name = at === -1 ? word : word.slice(0, at)
    if (name === '') throw new UsageFailure('--secret takes NAME=VALUE, or NAME for a variable of the environment')
    const value = at === -1 ? env[name] : word.slice(at + 1)
    if (value === undefined) throw new UsageFailure(`--secret ${name}: the environment has no ${name}`)
    secrets[name] = value
  }
  return secrets
}

function readEnvFile(file: string): Record<string, string> {
  try {
    return { ...parseEnv(readFileSync(file, 'utf8')) } as Record<string, string>
  } catch (thrown) {
    throw new CommandFailure(`--env-file ${file}: ${messageOf(thrown)}`)
  }
}
