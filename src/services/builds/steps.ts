import type { Environment } from '../environment.ts'
import type { BuildStepView } from '../types.ts'
import { type BuildShell, OutOfTime } from './shell.ts'

/** A step failed or could not be run; the message says which and why. */
export class StepError extends Error {
  override name = 'StepError'
}

const MAKE_DIRECTORY_MS = 10_000

/**
 * Runs the steps in order until one fails (Orb Cloud contract §6). Each is added to `done` when it ends, the failed one
 * too. Throws StepError, Cancelled.
 */
export async function runSteps(
  shell: BuildShell,
  build: { steps: string[]; workingDir: string },
  env: Environment,
  stepTimeoutMs: number,
  done: BuildStepView[],
): Promise<void> {
  try {
    const argv = ['mkdir', '-p', '--', build.workingDir]
    const made = await shell.run({ argv, env, cwd: '/', timeoutMs: MAKE_DIRECTORY_MS })
    if (made.exitCode !== 0) throw new StepError(`build.working_dir cannot be made: ${made.stderr.trim()}`)
    for (const [index, step] of build.steps.entries()) {
      const argv = ['bash', '-c', step]
      const result = await shell.run({ argv, env, cwd: build.workingDir, timeoutMs: stepTimeoutMs })
      done.push({
        step,
        exit_code: result.exitCode,
        stdout: result.stdout,
        stderr: result.stderr,
        duration_ms: result.durationMs,
        timed_out: result.timedOut,
      })
      if (result.timedOut) throw new StepError(`step ${index + 1} timed out after ${seconds(result.durationMs)} s`)
      if (result.exitCode !== 0) throw new StepError(`step ${index + 1} failed with exit code ${result.exitCode}`)
    }
  } catch (thrown) {
    if (thrown instanceof OutOfTime) throw new StepError('the time for the whole build ran out')
    throw thrown
  }
}

const seconds = (ms: number): number => Math.round(ms / 1000)
