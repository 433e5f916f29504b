import { closeSync } from 'node:fs'
import { posix } from 'node:path'
import { OrbError } from '../../errors.ts'
import { openJudged, withRoot } from '../../runtime/rootfs.ts'
import type { AgentStart } from '../../runtime/runtime.ts'
import type { Environment } from '../environment.ts'
import type { OrbConfig } from '../orb-toml.ts'

const CODE_DIR = '/agent/code'
const EXECUTE_BITS = 0o111

/** The interpreter of each language; the others are executables of their own (Orb Cloud contract §4). */
const INTERPRETERS: Partial<Record<OrbConfig['agent']['lang'], string>> = { node: 'node', python: 'python3' }

/** What the kernel takes as one variable, `NAME=value` and its NUL: MAX_ARG_STRLEN, execve(2). */
const MAX_VARIABLE_BYTES = 128 * 1024

/** How the agent is started: relative entries lie in /agent/code or the build's directory, which then is where it runs. */
export async function agentStart(rootfs: string, config: OrbConfig, env: Environment): Promise<AgentStart> {
  const { entry, args, lang } = config.agent
  const interpreter = INTERPRETERS[lang]
  const places = [CODE_DIR, ...(config.build ? [config.build.workingDir] : [])]
  const home = await firstHolding(rootfs, places, entry)
  const cwd = posix.isAbsolute(entry) ? CODE_DIR : (home ?? CODE_DIR)
  if (interpreter) return { argv: [interpreter, entry, ...args], env, cwd }
  // Without a slash the shell's rule would look on PATH alone, though the file lies right here.
  const program = home && !entry.includes('/') ? `./${entry}` : entry
  return { argv: [program, ...args], env, cwd }
}

/**
 * Refuses an executable that is certain not to start, while the agent that it would replace still runs.
 * @throws OrbError spawn_failed
 */
export async function checkExecutable(rootfs: string, config: OrbConfig, start: AgentStart): Promise<void> {
  if (INTERPRETERS[config.agent.lang]) return
  const program = start.argv[0] ?? ''
  if (!program.includes('/')) return
  const path = posix.resolve(start.cwd, program)
  const stat = await statInside(rootfs, path)
  if (!stat) throw new OrbError('spawn_failed', `agent.entry: ${config.agent.entry} does not exist in the computer`)
  if (stat.kind !== 'file' || (stat.mode & EXECUTE_BITS) === 0) {
    throw new OrbError('spawn_failed', `agent.entry: ${config.agent.entry} is not executable`)
  }
}

/** Refuses an environment that no program can be started with, for the same reason. @throws OrbError spawn_failed */
export function checkEnvironment(env: Environment): void {
  const long = Object.entries(env).find(
    ([name, value]) => Buffer.byteLength(name) + Buffer.byteLength(value) + 2 > MAX_VARIABLE_BYTES,
  )
  if (!long) return
  const message = `agent.env.${long[0]} is too long: Linux takes ${MAX_VARIABLE_BYTES} bytes, the name among them`
  throw new OrbError('spawn_failed', message)
}

async function firstHolding(rootfs: string, places: string[], entry: string): Promise<string | null> {
  for (const place of places) if (await statInside(rootfs, posix.join(place, entry))) return place
  return null
}

/** Null for anything that cannot be looked at: starting it will say why. */
const statInside = (rootfs: string, path: string) =>
  withRoot(rootfs, (root) => {
    const { fd, stat } = openJudged(root, path, () => undefined)
    closeSync(fd)
    return stat
  }).catch(() => null)
