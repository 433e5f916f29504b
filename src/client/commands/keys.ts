import { Anything, CreatedKey, KeyList } from '../answers.ts'
import { pickAction, readArguments } from '../arguments.ts'
import { COMMON_HELP, type Command } from '../command.ts'
import { UsageFailure } from '../failure.ts'
import { answer, note, table, write } from '../output.ts'
import { connect } from '../session.ts'

export const keys: Command = {
  name: 'keys',
  summary: 'list, make and revoke API keys',
  help: `orb keys [list]                 list the keys of your account
orb keys create --name N        make a key and print it, this one time
orb keys revoke KEY_ID          revoke a key at once
orb keys create --email E [--name N] [--data-dir DIR]
                                on the server itself, as root: a new key of any account, while orb serves or not

${COMMON_HELP}`,
  async run(argv) {
    const [action, rest] = pickAction(argv, ['list', 'create', 'revoke'], 'list')
    if (action === 'list') return list(rest)
    return action === 'create' ? create(rest) : revoke(rest)
  },
}

async function list(argv: string[]): Promise<number> {
  const { values } = readArguments(argv, [], {})
  const found = await connect(values).ask(KeyList, 'GET', '/v1/keys')
  answer(values.json, found, () =>
    table(
      ['KEY ID', 'NAME', 'PREFIX', 'SCOPE', 'CREATED', 'LAST USED'],
      found.keys.map((key) => [key.key_id, key.name, key.prefix, key.scope, key.created_at, key.last_used_at]),
      'no keys',
    ),
  )
  return 0
}

async function create(argv: string[]): Promise<number> {
  const { values } = readArguments(argv, [], { name: { type: 'string' } })
  if (values.name === undefined) throw new UsageFailure('--name is missing')
  const made = await connect(values).ask(CreatedKey, 'POST', '/v1/keys', { name: values.name })
  if (values.json) write(`${JSON.stringify(made, null, 2)}\n`)
  else {
    write(`${made.api_key}\n`)
    note(`key ${made.key_id}; it is not shown again`)
  }
  return 0
}

async function revoke(argv: string[]): Promise<number> {
  const { values, positionals } = readArguments(argv, ['KEY_ID'], {})
  const [id = ''] = positionals
  const done = await connect(values).ask(Anything, 'DELETE', `/v1/keys/${encodeURIComponent(id)}`)
  answer(values.json, done, () => `revoked ${id}`)
  return 0
}
