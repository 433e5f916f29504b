import { randomInt } from 'node:crypto'
import { OrbError } from '../errors.ts'
import type { LiveRequest } from '../runtime/commands.ts'
import type { LiveCommand, OutputStream } from '../runtime/live-command.ts'
import type { Runtime } from '../runtime/runtime.ts'
import type { ComputerRow } from '../store/types.ts'
import { baseEnvironment, type EnvironmentFacts } from './environment.ts'
import type { ExecEvent, ExecInput, Principal, Services } from './types.ts'

export interface ExecDeps {
  runtime: Pick<Runtime, 'exec' | 'execLive'>
  /** Throws `not_found`. */
  lookup: { computer(who: Principal, id: string): ComputerRow }
  environmentFacts(computer: ComputerRow): EnvironmentFacts
  /** Keeps the computer's agent, if it is awake, from being put to sleep as idle until the returned function is called. */
  lease(computer: ComputerRow): () => void
}

/** Limits of the Orb Cloud contract §8 and §20. */
const MAX_COMMAND_BYTES = 128 * 1024
const MAX_OUTPUT_BYTES = 1024 * 1024
const MAX_PARALLEL = 32

const WORKING_DIRECTORY = '/agent/data'
/** What the kernel takes as one argument, its NUL included: MAX_ARG_STRLEN, execve(2). */
const MAX_ARGUMENT_BYTES = 128 * 1024

const ID_ALPHABET = 'abcdefghijklmnopqrstuvwxyz0123456789'
const ID_LENGTH = 16

const ENDED = 'no such command, or it has ended'

/** Commands beside the agent (Orb Cloud contract §8). */
export function createExec(deps: ExecDeps): Services['exec'] {
  const running = new Map<string, number>()
  const interactive = new Map<string, LiveCommand>()

  /** Checks the limits and counts the command in. Returns what it is started with, and what counts it out. */
  function admit(who: Principal, id: string, { command, timeout_secs, stdin }: ExecInput) {
    const computer = deps.lookup.computer(who, id)
    if (Buffer.byteLength(command) > MAX_COMMAND_BYTES) {
      throw new OrbError('invalid_request', `command must be at most ${MAX_COMMAND_BYTES} bytes`)
    }
    const parallel = running.get(computer.id) ?? 0
    if (parallel >= MAX_PARALLEL) {
      throw new OrbError('too_many_sessions', `at most ${MAX_PARALLEL} commands may run in a computer at once`)
    }
    const request = {
      argv: shellCommand(command),
      env: baseEnvironment(deps.environmentFacts(computer)),
      cwd: WORKING_DIRECTORY,
      purpose: 'exec' as const,
      timeoutMs: timeout_secs * 1000,
      stdin: stdin === undefined ? undefined : new TextEncoder().encode(stdin),
    }
    running.set(computer.id, parallel + 1)
    const release = deps.lease(computer)
    const over = () => {
      release()
      const left = (running.get(computer.id) ?? 1) - 1
      if (left === 0) running.delete(computer.id)
      else running.set(computer.id, left)
    }
    return { computer, request, over }
  }

  async function start(computer: ComputerRow, request: LiveRequest, over: () => void): Promise<LiveCommand> {
    try {
      const command = await deps.runtime.execLive(computer, request)
      void command.ended.then(over)
      return command
    } catch (thrown) {
      over()
      throw thrown
    }
  }

  return {
    async run(who, id, input) {
      const { computer, request, over } = admit(who, id, input)
      try {
        const result = await deps.runtime.exec(computer, { ...request, maxBytes: MAX_OUTPUT_BYTES })
        return {
          stdout: result.stdout,
          stderr: result.stderr,
          exit_code: result.exitCode,
          timed_out: result.timedOut,
          truncated: result.truncated,
          duration_ms: result.durationMs,
        }
      } finally {
        over()
      }
    },

    async stream(who, id, input) {
      const { computer, request, over } = admit(who, id, input)
      const command = await start(computer, input.interactive ? { ...request, stdin: 'open' } : request, over)
      const execId = newId()
      if (input.interactive) {
        const key = keyOf(computer.id, execId)
        interactive.set(key, command)
        void command.ended.then(() => interactive.delete(key))
      }
      return { id: execId, events: eventsOf(command), stop: () => command.kill() }
    },

    async write(who, id, execId, body, last) {
      const computer = deps.lookup.computer(who, id)
      const command = interactive.get(keyOf(computer.id, execId))
      if (!command) throw new OrbError('not_found', ENDED)
      let written = 0
      const put = async (bytes: Uint8Array, isLast: boolean) => {
        if (!(await command.write(bytes, isLast))) throw new OrbError('not_found', `${ENDED}, or its input is closed`)
        written += bytes.byteLength
      }
      for await (const chunk of body ?? []) await put(chunk, false)
      if (last) await put(new Uint8Array(0), true)
      return { written, closed: last }
    },
  }
}

/** Output as text: a character whose bytes come apart stays whole, what is no UTF-8 becomes U+FFFD. */
async function* eventsOf(command: LiveCommand): AsyncGenerator<ExecEvent> {
  const decoders: Record<OutputStream, TextDecoder> = { stdout: new TextDecoder(), stderr: new TextDecoder() }
  for await (const { stream, bytes } of command.output()) {
    const text = decoders[stream].decode(bytes, { stream: true })
    if (text !== '') yield { event: stream, data: { text } }
  }
  for (const stream of ['stdout', 'stderr'] as const) {
    const rest = decoders[stream].decode()
    if (rest !== '') yield { event: stream, data: { text: rest } }
  }
  const { exitCode, timedOut, durationMs } = await command.ended
  yield { event: 'exit', data: { exit_code: exitCode, timed_out: timedOut, duration_ms: durationMs } }
}

const keyOf = (computerId: string, execId: string): string => `${computerId} ${execId}`

const newId = (): string =>
  `exec_${Array.from({ length: ID_LENGTH }, () => ID_ALPHABET[randomInt(ID_ALPHABET.length)]).join('')}`

/** The longest command allowed is one byte too long for one argument. */
function shellCommand(command: string): string[] {
  if (Buffer.byteLength(command) < MAX_ARGUMENT_BYTES) return ['bash', '-c', command]
  const characters = [...command]
  const middle = characters.length >> 1
  const halves = [characters.slice(0, middle).join(''), characters.slice(middle).join('')]
  return ['bash', '-c', 'set -- "$1$2"; eval "shift; $1"', 'bash', ...halves]
}
