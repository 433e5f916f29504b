import { chmodSync, existsSync, mkdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { homedir } from 'node:os'
import { dirname, join } from 'node:path'
import { z } from 'zod'
import { messageOf } from '../errors.ts'
import { CommandFailure, UsageFailure } from './failure.ts'

const DEFAULT_URL = 'http://127.0.0.1:8787'
const DIRECTORY_MODE = 0o700
const FILE_MODE = 0o600
/** Permission bits of group and others. */
const OTHERS = 0o077

const Credentials = z.object({
  /** The server that was logged in to last. */
  default: z.string().optional(),
  servers: z.record(z.string(), z.object({ api_key: z.string(), email: z.string().optional() })).default({}),
})
type Credentials = z.output<typeof Credentials>

export interface Target {
  /** Without a slash at its end. */
  url: string
  key: string | null
}

type Environment = Record<string, string | undefined>

export const credentialsFile = (env: Environment): string => join(env['HOME'] || homedir(), '.orb', 'credentials')

/** A base URL in the one form that credentials are kept under. */
export function normalUrl(text: string): string {
  const url = URL.parse(text)
  if (!url || !/^https?:$/.test(url.protocol)) {
    throw new UsageFailure(`${text} is no base URL; it looks like https://orb.example.com`)
  }
  if (url.username || url.password || url.search || url.hash) {
    throw new UsageFailure('a base URL has neither user, nor password, query or fragment')
  }
  return url.href.replace(/\/+$/, '')
}

/** The server and the key to use: option, then environment, then ~/.orb/credentials, then the local default. */
export function findTarget(urlOption: string | undefined, env: Environment): Target {
  const kept = readCredentials(env)
  const url = normalUrl(urlOption ?? (env['ORB_URL'] || undefined) ?? kept.default ?? DEFAULT_URL)
  return { url, key: (env['ORB_API_KEY'] || undefined) ?? kept.servers[url]?.api_key ?? null }
}

/** Keeps a key for a server, which becomes the default. */
export function keepKey(url: string, account: { api_key: string; email?: string }, env: Environment): void {
  const kept = readCredentials(env)
  writeCredentials({ default: url, servers: { ...kept.servers, [url]: account } }, env)
}

/** Returns whether there was a key. */
export function forgetKey(url: string, env: Environment): boolean {
  const { servers, default: usual } = readCredentials(env)
  if (!(url in servers)) return false
  const { [url]: _, ...others } = servers
  writeCredentials({ servers: others, ...(usual !== undefined && usual !== url ? { default: usual } : {}) }, env)
  return true
}

function readCredentials(env: Environment): Credentials {
  const file = credentialsFile(env)
  if (!existsSync(file)) return { servers: {} }
  if ((statSync(file).mode & OTHERS) !== 0) {
    throw new CommandFailure(`others may read ${file}: chmod 600 it, and make new keys if others did`)
  }
  try {
    return Credentials.parse(JSON.parse(readFileSync(file, 'utf8')))
  } catch (thrown) {
    const why = thrown instanceof z.ZodError ? z.prettifyError(thrown) : messageOf(thrown)
    throw new CommandFailure(`${file} cannot be read: ${why}`)
  }
}

function writeCredentials(credentials: Credentials, env: Environment): void {
  const file = credentialsFile(env)
  mkdirSync(dirname(file), { recursive: true, mode: DIRECTORY_MODE })
  const next = `${file}.${process.pid}`
  writeFileSync(next, `${JSON.stringify(credentials, null, 2)}\n`, { mode: FILE_MODE })
  // The mode above counts only for a new file, and only less the umask.
  chmodSync(next, FILE_MODE)
  renameSync(next, file)
}
