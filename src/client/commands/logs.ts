import { LogLine, Logs } from '../answers.ts'
import { type Api, computerPath } from '../api.ts'
import { integerOption, readArguments } from '../arguments.ts'
import { COMMON_HELP, type Command } from '../command.ts'
import { readEvents } from '../events.ts'
import { CommandFailure } from '../failure.ts'
import { write } from '../output.ts'
import { connect, findComputer } from '../session.ts'

export const logs: Command = {
  name: 'logs',
  summary: 'show the log of an agent, and follow it',
  help: `orb logs COMPUTER       the agent's output and orb's own lines; reading wakes nobody
  -f, --follow    go on with each new line
  --tail N        begin with the last N lines                  [100]
  --stream S      stdout, stderr, orb or all                   [all]
  -t, --time      put the time before each line

With --json each line is an object of its own.
${COMMON_HELP}`,
  async run(argv) {
    const { values, positionals } = readArguments(argv, ['COMPUTER'], {
      follow: { type: 'boolean', short: 'f', default: false },
      tail: { type: 'string' },
      stream: { type: 'string' },
      time: { type: 'boolean', short: 't', default: false },
    })
    const query = { tail: integerOption('tail', values.tail, 0), stream: values.stream }
    const api = connect(values)
    const { id } = await findComputer(api, positionals[0] ?? '')
    const show = (line: LogLine) => write(`${values.json ? JSON.stringify(line) : lineText(line, values.time)}\n`)
    if (!values.follow) {
      const { lines } = await api.ask(Logs, 'GET', logsPath(id, query))
      for (const line of lines) show(line)
      return 0
    }
    for await (const line of await followLogs(api, id, query)) show(line)
    throw new CommandFailure('the log has ended: the computer was deleted, or the server stopped')
  },
}

interface LogQuery {
  tail?: number | undefined
  stream?: string | undefined
}

const logsPath = (id: string, { tail, stream }: LogQuery, follow = false): string => {
  const query = new URLSearchParams()
  if (follow) query.set('follow', 'true')
  if (tail !== undefined) query.set('tail', String(tail))
  if (stream !== undefined) query.set('stream', stream)
  return `${computerPath(id, 'logs')}?${query}`
}

const lineText = ({ ts, stream, line }: LogLine, withTime: boolean): string =>
  `${withTime ? `${ts} ` : ''}${stream === 'orb' ? '[orb] ' : ''}${line}`

/** The last `tail` lines, then each new one. Resolves once the server has begun to answer. */
export async function followLogs(
  api: Api,
  id: string,
  query: LogQuery,
  signal?: AbortSignal,
): Promise<AsyncGenerator<LogLine>> {
  const response = await api.send('GET', logsPath(id, query, true), {
    headers: { accept: 'text/event-stream' },
    signal,
  })
  return linesOf(response)
}

async function* linesOf(response: Response): AsyncGenerator<LogLine> {
  for await (const { data } of readEvents(response.body)) {
    const line = LogLine.safeParse(JSON.parse(data))
    if (line.success) yield line.data
  }
}

export const asText = (line: LogLine): string => lineText(line, false)
