import type { ExecResult } from '../../runtime/commands.ts'
import type { Environment } from '../environment.ts'
import { sameRepository } from './git.ts'
import { type BuildShell, lastBytes, OutOfTime } from './shell.ts'

/** The clone or update failed; the message says why, for the user. */
export class CloneError extends Error {
  override name = 'CloneError'
}

export interface Source {
  git: string
  branch: string
}

const CODE = '/agent/code'
const GIT_DIR = `${CODE}/.git`
/** Where a first clone is fetched to, so that a failed one leaves the code as it was. */
const NEW_CLONE = '/agent/.orb/clone'
const MAX_MESSAGE_BYTES = 2048
/** Lock files of git older than this were left by a git that was killed. */
const STALE_LOCK_MINUTES = 1
const REMOVE_LOCKS_MS = 10_000

/**
 * Brings /agent/code to the newest commit of the branch, inside the computer (Orb Cloud contract §6): fetch and hard reset
 * where the same repository is there already, a fresh clone after `source.git` changed, and otherwise the repository laid
 * over what is there. Returns the commit, 40 hex digits. Throws CloneError, Cancelled.
 */
export async function fetchSource(
  shell: BuildShell,
  source: Source,
  env: Environment,
  timeoutMs: number,
): Promise<string> {
  const deadline = performance.now() + timeoutMs
  const run = async (argv: string[]): Promise<ExecResult> => {
    const left = deadline - performance.now()
    const result = left <= 0 ? null : await shell.run({ argv, env, cwd: '/', timeoutMs: left })
    if (result && !result.timedOut) return result
    await removeLocks(shell, env)
    throw new CloneError(`the clone took longer than ${Math.round(timeoutMs / 1000)} s`)
  }
  const must = async (argv: string[]): Promise<string> => {
    const result = await run(argv)
    if (result.exitCode === 0) return result.stdout.trim()
    throw new CloneError(explain(argv, result))
  }
  const git = (...args: string[]) => must(['git', `--git-dir=${GIT_DIR}`, `--work-tree=${CODE}`, ...args])

  try {
    await must(['mkdir', '-p', '--', CODE])
    const origin = (
      await run(['git', `--git-dir=${GIT_DIR}`, 'config', '--local', '--get', 'remote.origin.url'])
    ).stdout.trim()
    if (sameRepository(origin, source.git)) {
      await must(['find', GIT_DIR, '-name', '*.lock', '-type', 'f', '-mmin', `+${STALE_LOCK_MINUTES}`, '-delete'])
      await git('remote', 'set-url', 'origin', source.git)
      await must(fetchCommand(GIT_DIR, source.branch))
    } else {
      await must(['rm', '-rf', '--', NEW_CLONE])
      // An empty template: none of the base's hooks.
      await must(['git', 'init', '--quiet', '--template=', '--', NEW_CLONE])
      await must(['git', `--git-dir=${NEW_CLONE}/.git`, 'remote', 'add', 'origin', source.git])
      await must(fetchCommand(`${NEW_CLONE}/.git`, source.branch))
      // Without a former address the files are nobody's clone: they stay, the repository comes on top.
      if (origin === '') await must(['rm', '-rf', '--', GIT_DIR])
      else await must(['find', CODE, '-mindepth', '1', '-maxdepth', '1', '-exec', 'rm', '-rf', '--', '{}', '+'])
      await must(['mv', '--', `${NEW_CLONE}/.git`, GIT_DIR])
      await must(['rm', '-rf', '--', NEW_CLONE])
    }
    await git('symbolic-ref', 'HEAD', `refs/heads/${source.branch}`)
    await git('reset', '--quiet', '--hard', 'FETCH_HEAD')
    return await git('rev-parse', 'HEAD')
  } catch (thrown) {
    if (thrown instanceof OutOfTime) throw new CloneError('the time for the whole build ran out')
    throw thrown
  }
}

const fetchCommand = (gitDir: string, branch: string): string[] => [
  'git',
  `--git-dir=${gitDir}`,
  'fetch',
  '--quiet',
  '--depth=1',
  '--no-tags',
  '--no-recurse-submodules',
  'origin',
  `+refs/heads/${branch}:refs/remotes/origin/${branch}`,
]

/** A git that was killed leaves its locks, and they would fail every later update. */
async function removeLocks(shell: BuildShell, env: Environment): Promise<void> {
  const argv = ['find', GIT_DIR, '-name', '*.lock', '-type', 'f', '-delete']
  await shell.run({ argv, env, cwd: '/', timeoutMs: REMOVE_LOCKS_MS }).catch((thrown: unknown) => {
    if (!(thrown instanceof OutOfTime)) throw thrown
  })
}

function explain(argv: string[], { exitCode, stderr }: ExecResult): string {
  const command = argv.find((arg, index) => (index === 0 ? arg !== 'git' : !arg.startsWith('-'))) ?? 'git'
  const said = lastBytes(stderr.trim(), MAX_MESSAGE_BYTES)
  const locked = /could not read (Username|Password)|Authentication failed/i.test(said)
  const hint = locked ? '\nThe repository is private or does not exist: send a valid org_secrets.GITHUB_TOKEN.' : ''
  return `${command} failed with exit code ${exitCode}${said ? `: ${said}` : ''}${hint}`
}
