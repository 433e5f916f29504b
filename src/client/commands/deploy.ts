import { setTimeout as sleep } from 'node:timers/promises'
import { AgentList, type Build, Computer, Config, Deployed } from '../answers.ts'
import { type Api, computerPath } from '../api.ts'
import { integerOption, readArguments } from '../arguments.ts'
import { build } from '../build.ts'
import { COMMON_HELP, type Command } from '../command.ts'
import { CommandFailure, UsageFailure } from '../failure.ts'
import { answer, fields, plural, printable, sizeText, write } from '../output.ts'
import { Progress } from '../progress.ts'
import { type Project, readProject } from '../project.ts'
import { collectSecrets, SECRET_OPTIONS } from '../secrets.ts'
import { connect, findComputer, listComputers, pickComputer, shortIdOf } from '../session.ts'
import { upload } from '../transfer.ts'
import { listTree } from '../tree.ts'
import { asText, followLogs } from './logs.ts'

const CODE_FOLDER = '/agent/code'
/** An agent that lived so long after its start is taken for started. */
const STARTED_AFTER_MS = 3_000
const LOOK_EVERY_MS = 250
/** What is written is in the log within this (Orb Cloud contract §9). */
const LOG_DELAY_MS = 1_000
const GIT_TOKEN = 'GITHUB_TOKEN'
const LEAST_MB = 1

export const deploy: Command = {
  name: 'deploy',
  summary: 'put the agent of a folder into a computer, build and start it',
  help: `orb deploy [FOLDER]     the folder's orb.toml says what to run; its files go to /agent/code, unless orb.toml has [source]
  --name N        the computer, made when there is none of that name   [the folder's name]
  --computer C    a computer that is there
  --runtime-mb N, --disk-mb N   sizes of a new computer                [those of [resources] in orb.toml, else 512, 1024]
  --secret NAME=VALUE           a secret; NAME alone takes it from the environment. May be repeated
  --env-file FILE               secrets as NAME=VALUE lines. May be repeated
  --no-build      leave out [source] and [build]
  -f, --follow    follow the log for good, not only until the agent has started

Places for secrets in [agent.env] that no option fills are filled from the environment, if it has them, else from what the computer has
stored. What .gitignore and .orbignore name stays here, as do .git, node_modules, .env, virtual environments and caches
(!NAME in an .orbignore takes one along).
orb deploy examples/counting-agent --secret ANTHROPIC_API_KEY

${COMMON_HELP}`,
  async run(argv) {
    const { values, positionals } = readArguments(argv, ['FOLDER?'], {
      ...SECRET_OPTIONS,
      name: { type: 'string' },
      computer: { type: 'string' },
      'runtime-mb': { type: 'string' },
      'disk-mb': { type: 'string' },
      'no-build': { type: 'boolean', default: false },
      follow: { type: 'boolean', short: 'f', default: false },
    })
    if (values.name !== undefined && values.computer !== undefined) {
      throw new UsageFailure('--name and --computer do not go together')
    }
    const project = readProject(positionals[0] ?? '.')
    const secrets = collectSecrets(values, project.secretNames, process.env)
    const api = connect(values)
    const progress = new Progress()
    try {
      const { computer, isNew } = await computerFor(api, progress, project, secrets, {
        name: values.name ?? project.name,
        existing: values.computer,
        runtime_mb: integerOption('runtime-mb', values['runtime-mb'], LEAST_MB) ?? project.runtimeMb,
        disk_mb: integerOption('disk-mb', values['disk-mb'], LEAST_MB) ?? project.diskMb,
      })
      progress.done(`${isNew ? 'made' : 'found'} computer ${computer.name} (${shortIdOf(computer)})`)
      await configure(api, progress, computer.id, project)
      const built = values['no-build'] ? null : await builtOf(api, progress, computer.id, project, secrets)
      const started = await start(api, progress, computer.id, secrets, values.follow)
      const result = {
        computer_id: computer.id,
        short_id: shortIdOf(computer),
        name: computer.name,
        created: isNew,
        commit: built?.commit ?? null,
        ...started,
      }
      answer(values.json, result, () =>
        fields([
          ['computer', `${computer.name} (${shortIdOf(computer)})`],
          ['agent', started.exit_code === null ? started.state : `ended with exit code ${started.exit_code}`],
          ['url', started.url],
        ]),
      )
      return 0
    } finally {
      progress.stop()
    }
  },
}

interface Wanted {
  name: string
  existing: string | undefined
  runtime_mb: number | undefined
  disk_mb: number | undefined
}

/** The computer that was there, or a new one; nothing is made for an agent that cannot start. */
async function computerFor(
  api: Api,
  progress: Progress,
  project: Project,
  secrets: Record<string, string>,
  { name, existing, runtime_mb, disk_mb }: Wanted,
): Promise<{ computer: Computer; isNew: boolean }> {
  progress.doing('looking for the computer')
  if (existing !== undefined) return { computer: await findComputer(api, existing), isNew: false }
  const found = pickComputer(await listComputers(api), name)
  if (found) return { computer: found, isNew: false }
  const missing = project.secretNames.filter((place) => !(place in secrets))
  if (missing.length > 0) {
    throw new CommandFailure(
      `[agent.env] has places for ${missing.join(', ')}: give them by --secret, --env-file or the environment`,
    )
  }
  return { computer: await api.ask(Computer, 'POST', '/v1/computers', { name, runtime_mb, disk_mb }), isNew: true }
}

async function configure(api: Api, progress: Progress, id: string, project: Project): Promise<void> {
  progress.doing('sending orb.toml')
  const { warnings } = await api.ask(Config, 'POST', computerPath(id, 'config'), project.toml, {
    headers: { 'content-type': 'application/toml' },
  })
  for (const warning of warnings) progress.done(`orb.toml: ${warning}`)
  if (project.hasSource) return
  const { files, skipped } = listTree(project.folder)
  for (const path of skipped) progress.done(`${path} is left out: it is no file`)
  const size = files.reduce((sum, file) => sum + file.size, 0)
  await upload(api, id, files, CODE_FOLDER, (done, total) =>
    progress.doing(`uploading ${done} of ${plural(total, 'file')}`),
  )
  progress.done(`uploaded ${plural(files.length, 'file')}, ${sizeText(size)}`)
}

async function builtOf(
  api: Api,
  progress: Progress,
  id: string,
  project: Project,
  secrets: Record<string, string>,
): Promise<Build | null> {
  if (!project.hasSource && !project.hasBuild) return null
  const token = secrets[GIT_TOKEN]
  const built = await build(api, id, token === undefined ? {} : { [GIT_TOKEN]: token }, progress)
  progress.done(built.commit ? `built ${built.commit.slice(0, 7)}` : 'built')
  return built
}

interface Started {
  state: string
  pid: number | null
  port: number | null
  url: string | null
  /** Of an agent that has ended already, as it should. */
  exit_code: number | null
}

/** Deploys, and shows the log until the agent has proved to run, or has ended; with `follow` for good. */
async function start(
  api: Api,
  progress: Progress,
  id: string,
  secrets: Record<string, string>,
  follow: boolean,
): Promise<Started> {
  progress.doing('starting the agent')
  const leave = new AbortController()
  const lines = await followLogs(api, id, { tail: 0 }, leave.signal)
  const shown = showLines(lines, (line) => (follow ? write(line) : progress.raw(line)))
  try {
    const body = Object.keys(secrets).length > 0 ? { org_secrets: secrets } : {}
    const { url, warnings } = await api.ask(Deployed, 'POST', computerPath(id, 'agents'), body)
    for (const warning of warnings) progress.done(warning)
    const agent = await outcome(api, id)
    if (agent.state === 'failed') {
      await sleep(LOG_DELAY_MS)
      if (agent.exit_code !== 0) throw endedBadly(agent)
    }
    progress.done(agent.state === 'failed' ? '✓ the agent ran and has ended' : '✓ the agent runs')
    if (follow) {
      progress.stop()
      await shown
    }
    return {
      state: agent.state,
      pid: agent.pid ?? null,
      port: agent.port ?? null,
      url: url ?? null,
      exit_code: agent.state === 'failed' ? (agent.exit_code ?? null) : null,
    }
  } finally {
    leave.abort()
  }
}

/** How the agent is once it has lived for a while, or has ended. */
async function outcome(api: Api, id: string) {
  const end = performance.now() + STARTED_AFTER_MS
  for (;;) {
    const { agents } = await api.ask(AgentList, 'GET', computerPath(id, 'agents'))
    const agent = agents[0]
    if (!agent) throw new CommandFailure('the agent was taken away again')
    if (agent.state === 'failed' || performance.now() >= end) return agent
    await sleep(LOOK_EVERY_MS)
  }
}

const endedBadly = (agent: { exit_code?: number | null | undefined; failure_reason?: string | null | undefined }) => {
  const code = typeof agent.exit_code === 'number' ? ` with exit code ${agent.exit_code}` : ''
  const why = agent.failure_reason && agent.failure_reason !== 'exit' ? ` (${agent.failure_reason})` : ''
  return new CommandFailure(`the agent ended${code}${why}; orb logs shows all that it wrote`)
}

/** Ends with the log, or quietly when nobody wants more of it. */
async function showLines(lines: Awaited<ReturnType<typeof followLogs>>, show: (text: string) => void): Promise<void> {
  try {
    for await (const line of lines) show(`  ${printable(asText(line))}\n`)
  } catch {
    // The log is an extra: whether the agent runs is asked for by itself.
  }
}
