import { Demoted, Promoted } from '../answers.ts'
import { computerPath } from '../api.ts'
import { readArguments } from '../arguments.ts'
import { COMMON_HELP, type Command } from '../command.ts'
import { answer, printable, secondsText, sizeText } from '../output.ts'
import { connect, findComputer } from '../session.ts'

export const sleep: Command = {
  name: 'sleep',
  summary: 'put an agent to sleep on disk',
  help: `orb sleep COMPUTER      write the agent to disk and free its memory; an LLM's answer, a visitor or orb wake bring it back

${COMMON_HELP}`,
  async run(argv) {
    const { values, positionals } = readArguments(argv, ['COMPUTER'], {})
    const api = connect(values)
    const { id, name } = await findComputer(api, positionals[0] ?? '')
    const done = await api.ask(Demoted, 'POST', computerPath(id, 'agents', 'demote'))
    const figures = [
      ...(done.size_bytes ? [sizeText(done.size_bytes)] : []),
      ...(done.duration_ms ? [secondsText(done.duration_ms)] : []),
    ]
    answer(values.json, done, () => `${printable(name)} sleeps${figures.length > 0 ? `: ${figures.join(' in ')}` : ''}`)
    return 0
  },
}

export const wake: Command = {
  name: 'wake',
  summary: 'wake an agent that sleeps',
  help: `orb wake COMPUTER       bring the agent back into memory, with everything that it had there

${COMMON_HELP}`,
  async run(argv) {
    const { values, positionals } = readArguments(argv, ['COMPUTER'], {})
    const api = connect(values)
    const { id, name } = await findComputer(api, positionals[0] ?? '')
    const done = await api.ask(Promoted, 'POST', computerPath(id, 'agents', 'promote'))
    const time = done.restore_ms ? `, restored in ${secondsText(done.restore_ms)}` : ''
    answer(values.json, done, () => `${printable(name)} is awake${time}`)
    return 0
  },
}
