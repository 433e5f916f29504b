import type { ExecResult } from '../../runtime/commands.ts'
import type { Runtime } from '../../runtime/runtime.ts'
import type { ComputerRow } from '../../store/types.ts'
import type { Environment } from '../environment.ts'

/** Kept of each stream of a step (Orb Cloud contract §6). */
export const OUTPUT_BYTES = 256 * 1024
const MASK = '***'

/** The build was stopped because its computer is deleted. */
export class Cancelled extends Error {
  override name = 'Cancelled'
}

/** The time for the whole build, or for the clone, is over. */
export class OutOfTime extends Error {
  override name = 'OutOfTime'
}

export interface ShellOptions {
  exec: Runtime['exec']
  computer: ComputerRow
  /** Texts that no output may show. */
  hidden: string[]
  /** End of the whole build, in milliseconds of performance.now(). */
  deadline: number
  cancelled: AbortSignal
}

export interface ShellCommand {
  argv: string[]
  env: Environment
  cwd: string
  timeoutMs: number
}

/** Runs the commands of one build in its computer, one after the other, within the time that the build has. */
export class BuildShell {
  constructor(private readonly options: ShellOptions) {}

  /** @throws Cancelled, OutOfTime before the command is started; Error when it could not be */
  async run(command: ShellCommand): Promise<ExecResult> {
    const { exec, computer, hidden, deadline, cancelled } = this.options
    if (cancelled.aborted) throw new Cancelled()
    const timeoutMs = Math.min(command.timeoutMs, deadline - performance.now())
    if (timeoutMs <= 0) throw new OutOfTime()
    const slack = Math.max(0, ...hidden.map((text) => Buffer.byteLength(text)))
    const result = await exec(computer, { ...command, purpose: 'build', timeoutMs, maxBytes: OUTPUT_BYTES + slack })
    if (cancelled.aborted) throw new Cancelled()
    const shown = (output: string) => lastBytes(masked(output, hidden), OUTPUT_BYTES)
    return { ...result, stdout: shown(result.stdout), stderr: shown(result.stderr) }
  }
}

/**
 * `output` without the hidden texts. When its beginning was cut off, what is left of one there is cut off as well: the
 * slack of `run` makes output longer than the limit exactly then.
 */
export function masked(output: string, hidden: string[]): string {
  const text = hidden.reduce((rest, secret) => rest.replaceAll(secret, MASK), output)
  const slack = Math.max(0, ...hidden.map((secret) => Buffer.byteLength(secret)))
  return Buffer.byteLength(output) < OUTPUT_BYTES + slack ? text : text.slice(slack)
}

/** The end of a text, at most so many bytes of UTF-8; a character is not split. */
export function lastBytes(text: string, limit: number): string {
  const bytes = Buffer.from(text)
  if (bytes.length <= limit) return text
  let start = bytes.length - limit
  while (((bytes[start] ?? 0) & 0xc0) === 0x80) start++
  return bytes.subarray(start).toString('utf8')
}
