import { Build, BuildList, type BuildStep } from './answers.ts'
import { type Api, computerPath } from './api.ts'
import { CommandFailure } from './failure.ts'
import { secondsText } from './output.ts'
import type { Progress } from './progress.ts'

const POLL_MS = 1000
/** Of a failed step's output. */
const SHOWN_LINES = 40

/** Builds and tells each step as it ends. Throws, with the end of its output, where a step fails. */
export async function build(api: Api, id: string, secrets: Record<string, string>, progress: Progress): Promise<Build> {
  let told = 0
  const tell = (steps: BuildStep[]) => {
    for (const step of steps.slice(told)) progress.done(`${step.exit_code === 0 ? '✓' : '✗'} ${stepText(step)}`)
    told = Math.max(told, steps.length)
  }
  progress.doing('building')
  const before = new Set((await listBuilds(api, id)).map(({ build_id }) => build_id))
  const done = new AbortController()
  const watching = watch(api, id, before, done.signal, (steps) => tell(steps))
  // Where the build is that of somebody else, too, what is awaited is still the whole of it.
  const result = await api
    .ask(Build, 'POST', computerPath(id, 'build'), Object.keys(secrets).length > 0 ? { org_secrets: secrets } : {})
    .finally(() => done.abort())
  await watching
  tell(result.steps)
  if (result.success) return result
  const failed = result.steps.at(-1)
  if (failed && failed.exit_code !== 0) {
    progress.done(lastLines(`${failed.stdout}\n${failed.stderr}`))
    throw new CommandFailure(
      `the build failed: ${failed.timed_out ? 'out of time' : `exit code ${failed.exit_code}`} in ${firstLine(failed.step)}`,
    )
  }
  throw new CommandFailure(`the build failed: ${result.message ?? 'without a reason'}`)
}

/** Only for what is shown meanwhile: a failure to ask ends nothing. */
async function watch(
  api: Api,
  id: string,
  before: Set<string>,
  signal: AbortSignal,
  tell: (steps: BuildStep[]) => void,
): Promise<void> {
  while (!signal.aborted) {
    await Promise.race([
      Bun.sleep(POLL_MS),
      new Promise((resolve) => signal.addEventListener('abort', resolve, { once: true })),
    ])
    if (signal.aborted) return
    const builds = await listBuilds(api, id, signal).catch(() => [])
    const current = builds.find(({ build_id, status }) => !before.has(build_id) && status === 'running')
    if (current && !signal.aborted) tell(current.steps)
  }
}

const listBuilds = async (api: Api, id: string, signal?: AbortSignal) =>
  (await api.ask(BuildList, 'GET', computerPath(id, 'builds'), undefined, { signal })).builds

const firstLine = (step: string): string => step.trim().split('\n')[0] ?? ''

const stepText = ({ step, duration_ms }: BuildStep): string =>
  `${firstLine(step)}${typeof duration_ms === 'number' ? ` (${secondsText(duration_ms)})` : ''}`

const lastLines = (text: string): string => {
  const lines = text.split('\n').filter((line) => line !== '')
  return lines
    .slice(-SHOWN_LINES)
    .map((line) => `  ${line}`)
    .join('\n')
}
