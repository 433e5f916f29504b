import { Stats, Usage } from '../answers.ts'
import { computerPath } from '../api.ts'
import { readArguments } from '../arguments.ts'
import { COMMON_HELP, type Command } from '../command.ts'
import { answer, type Cell, fields } from '../output.ts'
import { connect, findComputer } from '../session.ts'

export const usage: Command = {
  name: 'usage',
  summary: 'show what was used in a period',
  help: `orb usage               GB-hours of memory and disk in the last 30 days
  --start T       since then, 2026-04-19 or 2026-04-19T04:05:00Z
  --end T         until then                                   [now]
  --computer C    of one computer alone

${COMMON_HELP}`,
  async run(argv) {
    const { values } = readArguments(argv, [], {
      start: { type: 'string' },
      end: { type: 'string' },
      computer: { type: 'string' },
    })
    const api = connect(values)
    const query = new URLSearchParams()
    if (values.start !== undefined) query.set('start', values.start)
    if (values.end !== undefined) query.set('end', values.end)
    if (values.computer !== undefined) query.set('computer', (await findComputer(api, values.computer)).id)
    const used = await api.ask(Usage, 'GET', `/v1/usage?${query}`)
    answer(values.json, used, () => allFields(used))
    return 0
  },
}

export const stats: Command = {
  name: 'stats',
  summary: 'show how a computer slept, worked and what it cost',
  help: `orb stats COMPUTER      time in memory and asleep, LLM calls, checkpoints, cost
  --window W      30d or lifetime                              [30d]

${COMMON_HELP}`,
  async run(argv) {
    const { values, positionals } = readArguments(argv, ['COMPUTER'], { window: { type: 'string' } })
    const api = connect(values)
    const { id } = await findComputer(api, positionals[0] ?? '')
    const query = values.window === undefined ? '' : `?${new URLSearchParams({ window: values.window })}`
    const found = await api.ask(Stats, 'GET', `${computerPath(id, 'stats')}${query}`)
    answer(values.json, found, () => allFields(found))
    return 0
  },
}

const allFields = (view: Record<string, unknown>): string =>
  fields(
    Object.entries(view).flatMap(([name, value]): [string, Cell][] =>
      typeof value === 'object' && value !== null ? [] : [[name.replaceAll('_', ' '), toCell(value)]],
    ),
  )

const toCell = (value: unknown): Cell =>
  typeof value === 'string' || typeof value === 'number' || typeof value === 'boolean' ? value : null
