import { OrbError } from '../errors.ts'
import type { Runtime } from '../runtime/runtime.ts'
import type { ComputerRow } from '../store/types.ts'
import { baseEnvironment, type EnvironmentFacts } from './environment.ts'
import type { Principal, Services } from './types.ts'

export interface ExecDeps {
  runtime: Pick<Runtime, 'exec'>
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

/** Commands beside the agent (Orb Cloud contract §8). */
export function createExec(deps: ExecDeps): Services['exec'] {
  const running = new Map<string, number>()

  return {
    async run(who, id, { command, timeout_secs }) {
      const computer = deps.lookup.computer(who, id)
      if (Buffer.byteLength(command) > MAX_COMMAND_BYTES) {
        throw new OrbError('invalid_request', `command must be at most ${MAX_COMMAND_BYTES} bytes`)
      }
      const parallel = running.get(computer.id) ?? 0
      if (parallel >= MAX_PARALLEL) {
        throw new OrbError('too_many_sessions', `at most ${MAX_PARALLEL} commands may run in a computer at once`)
      }
      running.set(computer.id, parallel + 1)
      const release = deps.lease(computer)
      try {
        const result = await deps.runtime.exec(computer, {
          argv: shellCommand(command),
          env: baseEnvironment(deps.environmentFacts(computer)),
          cwd: WORKING_DIRECTORY,
          purpose: 'exec',
          timeoutMs: timeout_secs * 1000,
          maxBytes: MAX_OUTPUT_BYTES,
        })
        return {
          stdout: result.stdout,
          stderr: result.stderr,
          exit_code: result.exitCode,
          timed_out: result.timedOut,
          truncated: result.truncated,
          duration_ms: result.durationMs,
        }
      } finally {
        release()
        const left = (running.get(computer.id) ?? 1) - 1
        if (left === 0) running.delete(computer.id)
        else running.set(computer.id, left)
      }
    },
  }
}

/** The longest command allowed is one byte too long for one argument. */
function shellCommand(command: string): string[] {
  if (Buffer.byteLength(command) < MAX_ARGUMENT_BYTES) return ['bash', '-c', command]
  const characters = [...command]
  const middle = characters.length >> 1
  const halves = [characters.slice(0, middle).join(''), characters.slice(middle).join('')]
  return ['bash', '-c', 'set -- "$1$2"; eval "shift; $1"', 'bash', ...halves]
}
