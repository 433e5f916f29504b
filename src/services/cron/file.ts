import { posix } from 'node:path'
import { z } from 'zod'
import { messageOf } from '../../errors.ts'
import { checked, invalid, needs, requiredText, text } from '../config/fields.ts'
import type { CronJob } from '../types.ts'
import { scheduleProblem } from './schedule.ts'

/** Limits of the Orb Cloud contract §15.1 and §20. */
export const MAX_FILE_BYTES = 64 * 1024
const MAX_JOBS = 100
const MAX_TIMEOUT_S = 21_600
const DEFAULT_TIMEOUT_S = 30
const NAME = /^[A-Za-z0-9._-]{1,64}$/
const MAX_ENV_NAMES = 200

/** Problems of single jobs that are told of; the rest is counted. */
const SHOWN_PROBLEMS = 10

const flag = (key: string) => z.boolean(needs(key, 'true or false')).default(true)

const env = z.record(z.string(), z.unknown(), 'env must be an object').transform((values, context) => {
  const entries = Object.entries(values)
  if (entries.length > MAX_ENV_NAMES) {
    context.addIssue({ code: 'custom', message: `env must have at most ${MAX_ENV_NAMES} names` })
  }
  return Object.fromEntries(
    entries.map(([name, value]) => {
      const read = envText(name, value)
      if (read === null) context.addIssue({ code: 'custom', message: `env.${name} must be a string without NUL` })
      return [name, read ?? '']
    }),
  )
})

/** As in `[agent.env]`, numbers and booleans are taken, too. */
function envText(name: string, value: unknown): string | null {
  if (!['string', 'number', 'boolean'].includes(typeof value)) return null
  const read = String(value)
  return name === '' || /[=\0]/.test(name) || read.includes('\0') ? null : read
}

const job = z.object({
  name: checked(z.string(needs('name', 'a string')), (name) =>
    NAME.test(name) ? null : invalid('name', name, '1 to 64 letters, digits, dots, underscores or hyphens'),
  ),
  schedule: checked(z.string(needs('schedule', 'a string')), (schedule) => {
    const problem = scheduleProblem(schedule)
    return problem === null ? null : invalid('schedule', schedule, problem)
  }),
  command: requiredText('command'),
  env: env.default({}),
  working_dir: checked(text('working_dir'), (dir) =>
    posix.isAbsolute(dir) ? null : invalid('working_dir', dir, 'an absolute path'),
  )
    .nullable()
    .default(null),
  timeout_secs: z
    .int(needs('timeout_secs', 'an integer'))
    .min(1, 'timeout_secs must be at least 1')
    .max(MAX_TIMEOUT_S, `timeout_secs must be at most ${MAX_TIMEOUT_S}`)
    .default(DEFAULT_TIMEOUT_S),
  enabled: flag('enabled'),
  skip_if_running: flag('skip_if_running'),
}) satisfies z.ZodType<CronJob>

const file = z.object(
  {
    version: z.literal(1, 'version must be 1').default(1),
    jobs: z.array(z.unknown(), needs('jobs', 'a list')).max(MAX_JOBS, `jobs must be at most ${MAX_JOBS}`),
  },
  'it must be an object',
)

/** What a cron.json says. `broken`: none of it counts. `error` tells of jobs that do not count, or is null. */
export type CronFile = { kind: 'good'; jobs: CronJob[]; error: string | null } | { kind: 'broken'; error: string }

/** Reads a cron.json (Orb Cloud contract §15.1): a bad job is left out, the others count. */
export function readCronFile(bytes: Uint8Array): CronFile {
  let content: unknown
  try {
    content = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch (thrown) {
    return { kind: 'broken', error: `cron.json is not valid JSON: ${messageOf(thrown)}` }
  }
  const read = file.safeParse(withoutNulls(content))
  if (!read.success) return { kind: 'broken', error: `cron.json: ${firstProblem(read.error)}` }
  const jobs = new Map<string, CronJob>()
  const problems: string[] = []
  for (const [index, entry] of read.data.jobs.entries()) {
    const one = job.safeParse(withoutNulls(entry))
    if (!one.success) problems.push(`jobs[${index}]: ${firstProblem(one.error)}`)
    else if (jobs.has(one.data.name)) problems.push(`jobs[${index}]: the name ${one.data.name} is taken`)
    else jobs.set(one.data.name, one.data)
  }
  return { kind: 'good', jobs: [...jobs.values()], error: summary(problems) }
}

/** A job as the database has it; null when this orb would not take it. */
export function readStoredJob(spec: string): CronJob | null {
  return job.safeParse(JSON.parse(spec)).data ?? null
}

/** Null means absent. */
function withoutNulls(value: unknown): unknown {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return value
  return Object.fromEntries(Object.entries(value).filter(([, member]) => member !== null))
}

const firstProblem = (error: z.ZodError): string => error.issues[0]?.message ?? 'it is not valid'

function summary(problems: string[]): string | null {
  if (problems.length === 0) return null
  const rest = problems.length - SHOWN_PROBLEMS
  const shown = problems.slice(0, SHOWN_PROBLEMS)
  return (rest > 0 ? [...shown, `and ${rest} more`] : shown).join('; ')
}
