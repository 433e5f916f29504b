import { readArguments } from '../arguments.ts'
import { COMMON_HELP, type Command } from '../command.ts'
import { CommandFailure, EXIT_OWN_FAILURE, withOwnFailures } from '../failure.ts'
import { connect, findComputer } from '../session.ts'
import { runTerminal } from '../terminal.ts'

export const ssh: Command = {
  name: 'ssh',
  summary: 'open a shell in a computer',
  help: `orb ssh COMPUTER        a login shell in your terminal, beside the agent, which it does not wake; its exit code is orb's,
                        255 is a failure of the connection. Enter, then ~. leaves at once
  --session NAME  a shell that outlives the connection by ten minutes; the same name returns to it

${COMMON_HELP}`,
  async run(argv) {
    const { values, positionals } = readArguments(argv, ['COMPUTER'], { session: { type: 'string' } })
    if (!process.stdin.isTTY || !process.stdout.isTTY) {
      throw new CommandFailure('orb ssh needs a terminal; orb exec runs a command without one', EXIT_OWN_FAILURE)
    }
    const api = connect(values)
    return withOwnFailures(async () => {
      const { id } = await findComputer(api, positionals[0] ?? '')
      return runTerminal(api, id, values.session)
    })
  },
}
