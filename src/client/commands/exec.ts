import { z } from 'zod'
import { Executed } from '../answers.ts'
import { type Api, computerPath } from '../api.ts'
import { integerOption, readArguments, splitAfterFirst } from '../arguments.ts'
import { COMMON_HELP, type Command } from '../command.ts'
import { readEvents } from '../events.ts'
import { CommandFailure, EXIT_OWN_FAILURE, UsageFailure, withOwnFailures } from '../failure.ts'
import { note, write } from '../output.ts'
import { connect, findComputer } from '../session.ts'
import { quoted } from '../transfer.ts'

const OPTIONS = {
  timeout: { type: 'string' },
  interactive: { type: 'boolean', short: 'i', default: false },
} as const

const Started = z.looseObject({ exec_id: z.string() })
const Text = z.looseObject({ text: z.string() })
const Ended = z.looseObject({ exit_code: z.number(), timed_out: z.boolean().default(false) })

export const exec: Command = {
  name: 'exec',
  summary: 'run a command in a computer',
  help: `orb exec [OPTIONS] COMPUTER COMMAND [ARGUMENT...]
                        run it as root in /agent/data, beside the agent, which it does not wake. One word is a line for the shell,
                        several are a program and its arguments. Output comes as it is written; the exit code is that
                        of the command, 124 after a timeout, 255 where orb itself failed. Ctrl-C ends the command
  -i, --interactive   pass standard input on
  --timeout N     seconds that it may take, up to 600          [30]

With --json the answer comes at the end: stdout, stderr, exit_code.
orb exec first 'ps aux | head'
orb exec first ls -la /agent/code
orb exec -i first tar -x -C /agent/data < data.tar

${COMMON_HELP}`,
  async run(argv) {
    const [own, rest] = splitAfterFirst(argv, OPTIONS)
    const { values, positionals } = readArguments(own, ['COMPUTER'], OPTIONS)
    if (rest.length === 0) throw new UsageFailure('COMMAND is missing')
    const timeout = integerOption('timeout', values.timeout, 1)
    if (values.json && values.interactive) throw new UsageFailure('--json and --interactive do not go together')
    const api = connect(values)
    const input = { command: rest.length === 1 ? (rest[0] ?? '') : rest.map(quoted).join(' '), timeout_secs: timeout }
    return withOwnFailures(async () => {
      const { id } = await findComputer(api, positionals[0] ?? '')
      return values.json ? await runAtOnce(api, id, input) : await runLive(api, id, input, values.interactive)
    })
  },
}

interface Input {
  command: string
  timeout_secs: number | undefined
}

async function runAtOnce(api: Api, id: string, input: Input): Promise<number> {
  const done = await api.ask(Executed, 'POST', computerPath(id, 'exec'), input)
  write(`${JSON.stringify(done, null, 2)}\n`)
  return done.exit_code
}

async function runLive(api: Api, id: string, input: Input, interactive: boolean): Promise<number> {
  const response = await api.send('POST', computerPath(id, 'exec'), {
    body: { ...input, stream: true, ...(interactive ? { interactive } : {}) },
    headers: { accept: 'text/event-stream' },
  })
  if (response.headers.get('content-type')?.startsWith('text/event-stream'))
    return readLive(api, id, response, interactive)
  // A server that does not stream.
  if (interactive) throw new CommandFailure(`${api.target.url} takes no standard input for commands`)
  const done = await api.read(Executed, response)
  write(done.stdout)
  process.stderr.write(done.stderr)
  if (done.truncated) note('orb: only the end of the output is shown')
  return exitCode(done)
}

async function readLive(api: Api, id: string, response: Response, interactive: boolean): Promise<number> {
  for await (const { event, data } of readEvents(response.body)) {
    const content: unknown = JSON.parse(data)
    switch (event) {
      case 'start':
        if (interactive) void passInput(api, id, Started.parse(content).exec_id)
        break
      case 'stdout':
        await written(process.stdout, Text.parse(content).text)
        break
      case 'stderr':
        await written(process.stderr, Text.parse(content).text)
        break
      case 'exit':
        return exitCode(Ended.parse(content))
    }
  }
  throw new CommandFailure('the connection was lost before the command had ended')
}

function exitCode({ exit_code, timed_out }: { exit_code: number; timed_out: boolean }): number {
  if (timed_out) note('orb: the command took too long and was ended; --timeout gives it more time')
  return exit_code
}

/** Waits where the reader is slow: the server then lets the command wait. */
async function written(stream: NodeJS.WriteStream, text: string): Promise<void> {
  if (!stream.write(text)) await new Promise((resolve) => stream.once('drain', resolve))
}

/** Chunk by chunk, in their order, until the input or the command ends. */
async function passInput(api: Api, id: string, execId: string): Promise<void> {
  const path = computerPath(id, 'exec', execId, 'stdin')
  const send = async (query: string, body?: Uint8Array<ArrayBuffer>) => {
    const answer = await api.send('POST', `${path}${query}`, {
      body,
      headers: { 'content-type': 'application/octet-stream' },
      // The command has ended, or takes no more.
      alsoFine: [404],
    })
    await answer.body?.cancel()
    return answer.ok
  }
  try {
    for await (const chunk of Bun.stdin.stream()) if (!(await send('', chunk))) return
    await send('?close=true')
  } catch (thrown) {
    // Without its input the command would wait for ever.
    note(`orb: standard input could not be passed on: ${thrown instanceof Error ? thrown.message : thrown}`)
    process.exit(EXIT_OWN_FAILURE)
  }
}
