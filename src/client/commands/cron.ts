import { CronJobs, CronRuns, CronTriggered } from '../answers.ts'
import { computerPath } from '../api.ts'
import { integerOption, pickAction, readArguments } from '../arguments.ts'
import { COMMON_HELP, type Command } from '../command.ts'
import { EXIT_FAILURE, EXIT_OWN_FAILURE } from '../failure.ts'
import { answer, note, secondsText, table, write } from '../output.ts'
import { connect, findComputer } from '../session.ts'

/** Of a trigger of a job that could not be run (Orb Cloud contract §15.3). */
const COULD_NOT_RUN = 502
const EXIT_TIMEOUT = 124

export const cron: Command = {
  name: 'cron',
  summary: 'list jobs and runs of a computer, and run a job now',
  help: `orb cron list COMPUTER          jobs of /agent/.orb/cron.json
orb cron runs COMPUTER          what ran, newest first
  --job NAME      of one job
  --limit N       so many                                      [50]
orb cron trigger COMPUTER JOB   run a job now and wait for it; its output and exit code are those of orb

${COMMON_HELP}`,
  async run(argv) {
    const [action, rest] = pickAction(argv, ['list', 'runs', 'trigger'], null)
    if (action === 'list') return list(rest)
    return action === 'runs' ? runs(rest) : trigger(rest)
  },
}

async function list(argv: string[]): Promise<number> {
  const { values, positionals } = readArguments(argv, ['COMPUTER'], {})
  const api = connect(values)
  const { id } = await findComputer(api, positionals[0] ?? '')
  const found = await api.ask(CronJobs, 'GET', computerPath(id, 'cron'))
  answer(values.json, found, () =>
    table(
      ['JOB', 'SCHEDULE', 'ENABLED', 'NEXT', 'LAST', 'COMMAND'],
      found.jobs.map((job) => [
        job.name,
        job.schedule,
        job.enabled ? 'yes' : 'no',
        job.next_fire_at,
        job.last_fired_at,
        job.command,
      ]),
      'no jobs',
    ),
  )
  if (found.error) note(`orb: cron.json: ${found.error}`)
  return 0
}

async function runs(argv: string[]): Promise<number> {
  const { values, positionals } = readArguments(argv, ['COMPUTER'], {
    job: { type: 'string' },
    limit: { type: 'string' },
  })
  const limit = integerOption('limit', values.limit, 1)
  const api = connect(values)
  const { id } = await findComputer(api, positionals[0] ?? '')
  const query = new URLSearchParams()
  if (values.job !== undefined) query.set('job', values.job)
  if (limit !== undefined) query.set('limit', String(limit))
  const found = await api.ask(CronRuns, 'GET', `${computerPath(id, 'cron', 'runs')}?${query}`)
  answer(values.json, found, () =>
    table(
      ['FIRED', 'JOB', 'STATUS', 'EXIT', 'TOOK', 'ERROR'],
      found.runs.map((run) => [
        run.fired_at,
        run.job_name,
        run.status,
        run.exit_code,
        typeof run.duration_ms === 'number' ? secondsText(run.duration_ms) : null,
        run.error,
      ]),
      'nothing ran yet',
    ),
  )
  return 0
}

async function trigger(argv: string[]): Promise<number> {
  const { values, positionals } = readArguments(argv, ['COMPUTER', 'JOB'], {})
  const api = connect(values)
  const { id } = await findComputer(api, positionals[0] ?? '')
  const path = computerPath(id, 'cron', positionals[1] ?? '', 'trigger')
  const run = await api.ask(CronTriggered, 'POST', path, undefined, { alsoFine: [COULD_NOT_RUN] })
  if (values.json) write(`${JSON.stringify(run, null, 2)}\n`)
  else {
    write(run.stdout ?? '')
    process.stderr.write(run.stderr ?? '')
    if (run.status === 'error') note(`orb: the job could not be run${run.message ? `: ${run.message}` : ''}`)
    if (run.status === 'timeout') note('orb: the job ran into its time limit')
  }
  if (typeof run.exit_code === 'number') return run.exit_code
  return run.status === 'timeout' ? EXIT_TIMEOUT : run.status === 'error' ? EXIT_OWN_FAILURE : EXIT_FAILURE
}
