import { type Agent, AgentList, Anything, Computer, ComputerList } from '../answers.ts'
import { computerPath } from '../api.ts'
import { integerOption, pickAction, readArguments } from '../arguments.ts'
import { COMMON_HELP, type Command } from '../command.ts'
import { answer, type Cell, confirm, fields, table } from '../output.ts'
import { connect, findComputer, shortIdOf } from '../session.ts'

const LEAST_MB = 1

export const computers: Command = {
  name: 'computers',
  summary: 'list, create, show and delete computers',
  help: `orb computers [list]                    list your computers
orb computers create NAME               make one
  --runtime-mb N  memory; it may burst to three times that     [512]
  --disk-mb N     disk                                         [1024]
orb computers show COMPUTER             show one and its agent
orb computers delete COMPUTER... [--yes]  delete with all that is on them

${COMMON_HELP}`,
  async run(argv) {
    const [action, rest] = pickAction(argv, ['list', 'create', 'show', 'delete'], 'list')
    switch (action) {
      case 'list':
        return list(rest)
      case 'create':
        return create(rest)
      case 'show':
        return show(rest)
      case 'delete':
        return remove(rest)
    }
  },
}

async function list(argv: string[]): Promise<number> {
  const { values } = readArguments(argv, [], {})
  const found = await connect(values).ask(ComputerList, 'GET', '/v1/computers')
  answer(values.json, found, () =>
    table(
      ['ID', 'NAME', 'STATUS', 'AGENT', 'MEMORY', 'DISK', 'URL'],
      found.computers.map((one) => [
        shortIdOf(one),
        one.name,
        one.status,
        one.agent_state,
        `${one.runtime_mb} MB`,
        `${one.disk_mb} MB`,
        one.url,
      ]),
      'no computers yet: orb computers create, or orb deploy',
    ),
  )
  return 0
}

async function create(argv: string[]): Promise<number> {
  const { values, positionals } = readArguments(argv, ['NAME'], {
    'runtime-mb': { type: 'string' },
    'disk-mb': { type: 'string' },
  })
  const made = await connect(values).ask(Computer, 'POST', '/v1/computers', {
    name: positionals[0],
    runtime_mb: integerOption('runtime-mb', values['runtime-mb'], LEAST_MB),
    disk_mb: integerOption('disk-mb', values['disk-mb'], LEAST_MB),
  })
  answer(values.json, made, () => fields(facts(made)))
  return 0
}

async function show(argv: string[]): Promise<number> {
  const { values, positionals } = readArguments(argv, ['COMPUTER'], {})
  const api = connect(values)
  const found = await findComputer(api, positionals[0] ?? '')
  const { agents } = await api.ask(AgentList, 'GET', computerPath(found.id, 'agents'))
  answer(values.json, { ...found, agents }, () => fields([...facts(found), ...agents.flatMap(agentFacts)]))
  return 0
}

async function remove(argv: string[]): Promise<number> {
  const { values, positionals } = readArguments(argv, ['COMPUTER...'], {
    yes: { type: 'boolean', default: false },
  })
  const api = connect(values)
  // All are found before the first is gone: a slip of the pen deletes nothing.
  const found: Computer[] = []
  for (const wanted of new Set(positionals)) found.push(await findComputer(api, wanted))
  const names = found.map((one) => `${one.name} (${shortIdOf(one)})`)
  confirm(`Delete ${names.join(', ')} with all that is on ${found.length === 1 ? 'it' : 'them'}?`, values.yes)
  const gone: unknown[] = []
  for (const one of found) gone.push(await api.ask(Anything, 'DELETE', computerPath(one.id)))
  answer(values.json, gone, () => names.map((name) => `deleted ${name}`).join('\n'))
  return 0
}

const facts = (one: Computer): [string, Cell][] => [
  ['id', one.id],
  ['name', one.name],
  ['status', one.status],
  ['memory', `${one.runtime_mb} MB`],
  ['disk', `${one.disk_mb} MB`],
  ['url', one.url],
  ['swarm', one.swarm_id],
  ['created', one.created_at],
]

const agentFacts = (agent: Agent): [string, Cell][] => [
  ['agent', agent.sleep_reason ? `${agent.state} (${agent.sleep_reason})` : agent.state],
  ['pid', agent.pid],
  ['started', agent.started_at],
  ...(agent.state === 'failed'
    ? ([
        ['exit code', agent.exit_code],
        ['reason', agent.failure_reason],
      ] satisfies [string, Cell][])
    : []),
]
