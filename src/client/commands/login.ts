import { KeyList, Registered } from '../answers.ts'
import { Api } from '../api.ts'
import { readArguments } from '../arguments.ts'
import type { Command } from '../command.ts'
import { credentialsFile, findTarget, forgetKey, keepKey } from '../credentials.ts'
import { ApiFailure, CommandFailure, UsageFailure } from '../failure.ts'
import { answer } from '../output.ts'
import { askHidden } from '../tty.ts'

const FROM_STDIN = '-'

export const login: Command = {
  name: 'login',
  summary: 'register with a server, or keep a key for it',
  help: `orb login --email E     make an account on the server and keep its key
orb login --key KEY     keep a key that you have; - reads it from stdin
orb login               ask for the key

The key goes to ~/.orb/credentials, which only you can read, and the server becomes the one that other commands use.
  --url URL       the server          [ORB_URL, else that of the last login, else http://127.0.0.1:8787]
  --json          print the answer as JSON`,
  async run(argv) {
    const { values } = readArguments(argv, [], { email: { type: 'string' }, key: { type: 'string' } })
    if (values.email !== undefined && values.key !== undefined) {
      throw new UsageFailure('--email makes an account, --key takes a key: not both')
    }
    const { url } = findTarget(values.url, process.env)
    const account = values.email === undefined ? await givenKey(url, values.key) : await register(url, values.email)
    keepKey(url, account, process.env)
    const file = credentialsFile(process.env)
    answer(values.json, { url, email: account.email ?? null, credentials: file }, () =>
      account.email === undefined
        ? `logged in to ${url}`
        : `registered ${account.email} on ${url}; the key is in ${file}`,
    )
    return 0
  },
}

export const logout: Command = {
  name: 'logout',
  summary: 'forget the key of a server',
  help: `orb logout              forget the key in ~/.orb/credentials; it stays valid until orb keys revoke
  --url URL       the server          [ORB_URL, else that of the last login]`,
  async run(argv) {
    const { values } = readArguments(argv, [], {})
    const { url } = findTarget(values.url, process.env)
    const forgotten = forgetKey(url, process.env)
    answer(values.json, { url, forgotten }, () =>
      forgotten ? `forgot the key for ${url}` : `there is no key for ${url}`,
    )
    return 0
  },
}

async function register(url: string, email: string): Promise<{ api_key: string; email: string }> {
  try {
    const { api_key } = await new Api({ url, key: null }).ask(Registered, 'POST', '/api/v1/auth/register', { email })
    return { api_key, email }
  } catch (thrown) {
    if (thrown instanceof ApiFailure && thrown.code === 'email_taken') {
      throw new CommandFailure(`${thrown.message}; orb login --key takes a key of that account`)
    }
    throw thrown
  }
}

async function givenKey(url: string, given: string | undefined): Promise<{ api_key: string; email?: string }> {
  const key = (given === undefined || given === FROM_STDIN ? await readKey(url) : given).trim()
  if (!/^[\x21-\x7e]+$/.test(key)) throw new UsageFailure('that is no key')
  await new Api({ url, key }).ask(KeyList, 'GET', '/v1/keys')
  return { api_key: key }
}

async function readKey(url: string): Promise<string> {
  if (!process.stdin.isTTY) return Bun.stdin.text()
  const key = await askHidden(`key for ${url}: `)
  if (key === null) throw new CommandFailure('nothing was done')
  return key
}
