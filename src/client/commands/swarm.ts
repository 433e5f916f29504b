import { Refused, Swarm, SwarmList, SwarmProgress, SwarmRemoved, SwarmReport } from '../answers.ts'
import type { Api } from '../api.ts'
import { integerOption, pickAction, readArguments } from '../arguments.ts'
import { COMMON_HELP, type Command } from '../command.ts'
import { readEvents } from '../events.ts'
import { ApiFailure, CommandFailure, EXIT_FAILURE, UsageFailure } from '../failure.ts'
import { answer, confirm, fields, note, plural, table } from '../output.ts'
import { Progress } from '../progress.ts'
import { readProject } from '../project.ts'
import { collectSecrets, SECRET_OPTIONS } from '../secrets.ts'
import { connect } from '../session.ts'

const LEAST_MB = 1
/** Created, and created in part. */
const SOME_FAILED = 207

export const swarm: Command = {
  name: 'swarm',
  summary: 'run many computers from one orb.toml',
  help: `orb swarm up [FOLDER] --replicas N  make N computers from the folder's orb.toml, build once, start an agent in each. Replicas get no files
                                    of the folder: their code comes from [source] and [build]
  --name N        name of the swarm                            [the folder's name]
  --runtime-mb N, --disk-mb N   of each computer               [those of [resources] in orb.toml, else 512, 1024]
  --secret NAME=VALUE, --env-file FILE    as in orb deploy
orb swarm list                      list your swarms
orb swarm show SWARM                show one, by its id or name, and its computers
orb swarm down SWARM [--yes]        delete one with all its computers

The exit code is 1 when some replicas could not be started or deleted.
${COMMON_HELP}`,
  async run(argv) {
    const [action, rest] = pickAction(argv, ['up', 'list', 'show', 'down'], 'list')
    switch (action) {
      case 'up':
        return up(rest)
      case 'list':
        return list(rest)
      case 'show':
        return show(rest)
      case 'down':
        return down(rest)
    }
  },
}

async function up(argv: string[]): Promise<number> {
  const { values, positionals } = readArguments(argv, ['FOLDER?'], {
    ...SECRET_OPTIONS,
    name: { type: 'string' },
    replicas: { type: 'string', short: 'n' },
    'runtime-mb': { type: 'string' },
    'disk-mb': { type: 'string' },
  })
  const replicas = integerOption('replicas', values.replicas, 1)
  if (replicas === undefined) throw new UsageFailure('--replicas is missing')
  const project = readProject(positionals[0] ?? '.')
  const secrets = collectSecrets(values, project.secretNames, process.env)
  if (!project.hasSource) note('orb: without [source] in orb.toml no code of the folder reaches the replicas')
  const report = await make(connect(values), {
    name: values.name ?? project.name,
    replicas,
    orb_config: project.config,
    org_secrets: secrets,
    runtime_mb: integerOption('runtime-mb', values['runtime-mb'], LEAST_MB) ?? project.runtimeMb,
    disk_mb: integerOption('disk-mb', values['disk-mb'], LEAST_MB) ?? project.diskMb,
  })
  answer(values.json, report, () => [summary(report), replicaTable(report)].join('\n\n'))
  for (const { replica_index, error, message } of report.failed)
    note(`orb: replica ${replica_index}: ${error}: ${message}`)
  return report.failed.length > 0 ? EXIT_FAILURE : 0
}

async function make(api: Api, body: object) {
  const progress = new Progress()
  try {
    progress.doing('making the swarm')
    const response = await api.send('POST', '/v1/swarms', { body, headers: { accept: 'text/event-stream' } })
    const streams = response.headers.get('content-type')?.startsWith('text/event-stream')
    return streams ? await follow(response, progress) : await api.read(SwarmReport, response)
  } finally {
    progress.stop()
  }
}

async function follow(response: Response, progress: Progress) {
  let shared = ''
  for await (const { event, data } of readEvents(response.body)) {
    const content: unknown = JSON.parse(data)
    switch (event) {
      case 'progress': {
        const { replica_index, message, deployed, failed, replicas } = SwarmProgress.parse(content)
        // What is about all of them stays, what is about one moves by.
        if (typeof replica_index !== 'number' && message !== shared) {
          shared = message
          progress.done(message)
        }
        progress.doing(`${deployed} of ${replicas} run${failed > 0 ? `, ${failed} failed` : ''}`)
        break
      }
      case 'result':
        return SwarmReport.parse(content)
      case 'error': {
        const { error, message } = Refused.parse(content)
        throw new ApiFailure(response.status, error, message)
      }
    }
  }
  throw new CommandFailure('the connection was lost; the server goes on: orb swarm list')
}

async function list(argv: string[]): Promise<number> {
  const { values } = readArguments(argv, [], {})
  const found = await connect(values).ask(SwarmList, 'GET', '/v1/swarms')
  answer(values.json, found, () =>
    table(
      ['ID', 'NAME', 'REPLICAS', 'ACTIVE', 'FAILED'],
      found.swarms.map((one) => [
        one.swarm_id,
        one.name,
        one.replicas,
        withStatus(one, 'active'),
        withStatus(one, 'failed'),
      ]),
      'no swarms',
    ),
  )
  return 0
}

async function show(argv: string[]): Promise<number> {
  const { values, positionals } = readArguments(argv, ['SWARM'], {})
  const found = await connect(values).ask(Swarm, 'GET', swarmPath(positionals[0]))
  answer(values.json, found, () => [summary(found), replicaTable(found)].join('\n\n'))
  return 0
}

async function down(argv: string[]): Promise<number> {
  const { values, positionals } = readArguments(argv, ['SWARM'], { yes: { type: 'boolean', default: false } })
  const api = connect(values)
  const found = await api.ask(Swarm, 'GET', swarmPath(positionals[0]))
  confirm(`Delete swarm ${found.name} with its ${plural(found.computers.length, 'computer')}?`, values.yes)
  const progress = new Progress()
  progress.doing(`deleting ${plural(found.computers.length, 'computer')}`)
  const done = await api
    .ask(SwarmRemoved, 'DELETE', swarmPath(found.swarm_id), undefined, { alsoFine: [SOME_FAILED] })
    .finally(() => progress.stop())
  answer(values.json, done, () => `deleted ${plural(done.deleted, 'computer')} of ${found.name}`)
  if (done.failed.length > 0)
    note(`orb: ${plural(done.failed.length, 'computer')} could not be deleted: repeat the command`)
  return done.failed.length > 0 ? EXIT_FAILURE : 0
}

type Shown = ReturnType<typeof Swarm.parse>

const swarmPath = (idOrName: string | undefined): string => `/v1/swarms/${encodeURIComponent(idOrName ?? '')}`

const withStatus = ({ computers }: Shown, status: string): number =>
  computers.filter((computer) => computer.status === status).length

const summary = (one: Shown): string =>
  fields([
    ['id', one.swarm_id],
    ['name', one.name],
    ['replicas', one.replicas],
    ['active', withStatus(one, 'active')],
  ])

const replicaTable = ({ computers }: Shown): string =>
  table(
    ['REPLICA', 'COMPUTER', 'STATUS', 'URL'],
    computers.map((computer) => [computer.replica_index, computer.id.slice(0, 8), computer.status, computer.url]),
    'no computers',
  )
