import type { Command } from './command.ts'
import { computers } from './commands/computers.ts'
import { cron } from './commands/cron.ts'
import { deploy } from './commands/deploy.ts'
import { exec } from './commands/exec.ts'
import { files } from './commands/files.ts'
import { keys } from './commands/keys.ts'
import { login, logout } from './commands/login.ts'
import { logs } from './commands/logs.ts'
import { sleep, wake } from './commands/sleep.ts'
import { ssh } from './commands/ssh.ts'
import { swarm } from './commands/swarm.ts'
import { stats, usage } from './commands/usage.ts'
import { CommandFailure, UsageFailure } from './failure.ts'
import { note } from './output.ts'

/** In the order in which a user comes to need them. */
const COMMANDS: Command[] = [
  login,
  deploy,
  computers,
  logs,
  exec,
  ssh,
  sleep,
  wake,
  files,
  swarm,
  cron,
  usage,
  stats,
  keys,
  logout,
]

const NAME_WIDTH = 12
/** As of a process that SIGPIPE ended. */
const EXIT_BROKEN_PIPE = 141
const HELP_WORDS = ['-h', '--help', 'help']

const find = (name: string | undefined): Command | undefined => COMMANDS.find((command) => command.name === name)

export const isClientCommand = (name: string | undefined): boolean => find(name) !== undefined

/** A line for each command. */
export const clientSummaries = (): string =>
  COMMANDS.map(({ name, summary }) => `  orb ${name.padEnd(NAME_WIDTH)}${summary}`).join('\n')

/** Null for what is no command of the client. */
export const clientHelp = (name: string): string | null => find(name)?.help ?? null

/** Runs a command that speaks to a server. Returns the exit code; what went wrong is on stderr by then. */
export async function runClient([name, ...argv]: string[]): Promise<number> {
  const command = find(name)
  if (!command) throw new Error(`${name} is no command of the client`)
  // Further on it may belong to what `exec` runs.
  if (HELP_WORDS.includes(argv[0] ?? '')) {
    console.log(command.help)
    return 0
  }
  // Whoever read the answer has read enough: `orb logs -f … | head`.
  process.stdout.on('error', () => process.exit(EXIT_BROKEN_PIPE))
  try {
    return await command.run(argv)
  } catch (thrown) {
    if (!(thrown instanceof CommandFailure)) throw thrown
    const usage = thrown instanceof UsageFailure ? `; see orb help ${command.name}` : ''
    note(`orb: ${thrown.message}${usage}`)
    return thrown.exitCode
  }
}
