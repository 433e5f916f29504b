import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { failure } from '../../src/api/cloud/schemas.ts'
import type { Computer } from '../support/computer.ts'
import { type Orb, type Payload, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

const MB = 1024 * 1024
const JSON_BODY_BYTES = 4 * MB
const CONFIG_BYTES = 256 * 1024
const MAX_DEPTH = 32
const UNKNOWN = '00000000-0000-4000-8000-000000000000'

let orb: Orb
let computer: Computer

beforeAll(async () => {
  orb = await startOrb({ env: { ORB_MAX_COMPUTERS: '3' } })
  computer = await orb.computer()
})
afterAll(() => orb?.stop())

/** Everything of the organisation that a refused request might have changed. */
async function everything() {
  const paths = ['', '/agents', '/builds', '/config', '/files/', '/files/agent/code', '/logs']
  const answers = await Promise.all(paths.map((path) => computer.call('GET', path)))
  const [computers, keys] = await Promise.all([orb.call('GET', '/v1/computers'), orb.call('GET', '/v1/keys')])
  return [...answers.map(({ text }) => text), computers.text, keys.text.replaceAll(/"last_used_at":"[^"]*"/g, '')]
}

type Case = [name: string, method: string, path: string, body: Payload, status: number, error: string, says?: string]

/** `:id` is the organisation's computer. */
async function refuses([, method, path, body, status, error, says]: Case): Promise<void> {
  const before = await everything()
  const answer = await orb.call(method, path.replace(':id', computer.id), body)
  expect([answer.status, answer.json['error']]).toEqual([status, error])
  expect(answer.headers.get('content-type')).toContain('application/json')
  expect(answer.headers.get('x-request-id')).toBeTruthy()
  const { message } = failure.parse(answer.json)
  if (says) expect(message).toContain(says)
  expect(answer.text).not.toContain(orb.dataDir)
  expect(await everything()).toEqual(before)
}

const named = (cases: Case[]): [string, Case][] => cases.map((one) => [`${one[0]}: ${one[1]} ${one[2]}`, one])
const deep = (depth: number): string => `${'{"a":'.repeat(depth)}1${'}'.repeat(depth)}`
const config = (changes: Record<string, unknown>) => ({
  orb_config: { agent: { name: 'a', lang: 'node', entry: 'x.mjs' }, ...changes },
})
const agent = (changes: Record<string, unknown>) =>
  config({ agent: { name: 'a', lang: 'node', entry: 'x.mjs', ...changes } })
const toml = (text: string) => `[agent]\nname = "a"\nlang = "node"\nentry = "x.mjs"\n${text}`

const C = '/v1/computers/:id'

describe('a body that', () => {
  const BROKEN: [string, string][] = [
    ['is no JSON', '{"name":'],
    ['is a list', '[]'],
    ['is a text', '"name"'],
    ['is a number', '1'],
    ['has an invalid escape', '{"name":"\\x"}'],
    ['is deeper than allowed', deep(MAX_DEPTH + 1)],
  ]
  const PATHS = [
    '/v1/computers',
    '/v1/keys',
    `${C}/exec`,
    `${C}/agents`,
    `${C}/agents/demote`,
    `${C}/build`,
    '/api/v1/auth/register',
  ]
  const cases = PATHS.flatMap((path) =>
    BROKEN.map(([name, body]): Case => [name, 'POST', path, body, 400, 'invalid_json']),
  )
  test.each(named(cases))('%s', (_, one) => refuses(one))

  test.each(
    named([
      [
        'is not UTF-8',
        'POST',
        '/v1/computers',
        new Uint8Array([0x7b, 0x22, 0xff, 0xfe, 0x22, 0x7d]),
        400,
        'invalid_json',
      ],
      ['is too large', 'POST', '/v1/computers', `{"name":"${'x'.repeat(JSON_BODY_BYTES)}"}`, 413, 'payload_too_large'],
      [
        'is too large a configuration',
        'POST',
        `${C}/config`,
        toml(`# ${'x'.repeat(CONFIG_BYTES)}`),
        413,
        'payload_too_large',
      ],
    ]),
  )('%s', (_, one) => refuses(one))

  test('names harmful keys has them dropped', async () => {
    const before = await everything()
    const answer = await orb.call(
      'POST',
      '/v1/keys',
      '{"name":"fine","__proto__":{"polluted":1},"constructor":{"prototype":{"polluted":1}}}',
    )
    expect(answer.status).toBe(201)
    await orb.call('DELETE', `/v1/keys/${answer.json['key_id']}`)
    expect(await everything()).toEqual(before)
    expect((await orb.call('GET', '/health')).text).not.toContain('polluted')
  })
})

describe('fields', () => {
  const make = (name: string, body: Record<string, unknown>, says: string): Case => [
    name,
    'POST',
    '/v1/computers',
    body,
    400,
    'invalid_request',
    says,
  ]
  const exec = (name: string, body: Record<string, unknown>, says: string): Case => [
    name,
    'POST',
    `${C}/exec`,
    body,
    400,
    'invalid_request',
    says,
  ]
  const deploy = (name: string, body: Record<string, unknown>, says: string): Case => [
    name,
    'POST',
    `${C}/agents`,
    body,
    400,
    'invalid_request',
    says,
  ]
  test.each(
    named([
      make('no name', {}, 'name'),
      make('name of null', { name: null }, 'name'),
      make('empty name', { name: '' }, 'name'),
      make('name of a number', { name: 5 }, 'name'),
      make('long name', { name: 'x'.repeat(129) }, 'name'),
      make('name with a newline', { name: 'a\nb' }, 'name'),
      make('name with NUL', { name: 'a\0b' }, 'name'),
      make('name with an escape character', { name: 'a\x1b[31mb' }, 'name'),
      make('memory as text', { name: 'a', runtime_mb: '1024' }, 'runtime_mb'),
      make('too little memory', { name: 'a', runtime_mb: 63 }, 'runtime_mb'),
      make('negative memory', { name: 'a', runtime_mb: -1024 }, 'runtime_mb'),
      make('half a megabyte', { name: 'a', runtime_mb: 512.5 }, 'runtime_mb'),
      make('too much memory', { name: 'a', runtime_mb: 65_537 }, 'runtime_mb'),
      make('a huge disk', { name: 'a', disk_mb: 1e300 }, 'disk_mb'),
      make('no disk', { name: 'a', disk_mb: 0 }, 'disk_mb'),
      make('user id of an object', { name: 'a', user_id: {} }, 'user_id'),
      exec('no command', {}, 'command'),
      exec('empty command', { command: '' }, 'command'),
      exec('command as a list', { command: ['ls'] }, 'command'),
      exec('command with NUL', { command: 'ls \0' }, 'command'),
      exec('long command', { command: 'x'.repeat(128 * 1024 + 1) }, 'command'),
      exec('no time', { command: 'ls', timeout_secs: 0 }, 'timeout_secs'),
      exec('too much time', { command: 'ls', timeout_secs: 601 }, 'timeout_secs'),
      exec('time as text', { command: 'ls', timeout_secs: '5' }, 'timeout_secs'),
      deploy('unknown task', { task: 'stop' }, 'task'),
      deploy('two agents', { count: 2 }, 'swarms'),
      deploy('replace as text', { replace: 'no' }, 'replace'),
      deploy('secrets as a list', { org_secrets: ['a'] }, 'org_secrets'),
      deploy('a secret that is a number', { org_secrets: { A: 1 } }, 'org_secrets'),
      deploy('a secret that is too large', { org_secrets: { A: 'x'.repeat(128 * 1024 + 1) } }, 'org_secrets'),
      deploy('configuration as text', { orb_config: 'x' }, 'orb_config'),
      ['no name', 'POST', '/v1/keys', {}, 400, 'invalid_request', 'name'],
      ['port as text', 'POST', `${C}/agents/demote`, { port: '10000' }, 400, 'invalid_request', 'port'],
      ['negative port', 'POST', `${C}/agents/promote`, { port: -1 }, 400, 'invalid_request', 'port'],
      ['redeploy as text', 'POST', `${C}/build`, { redeploy: 'yes' }, 400, 'invalid_request', 'redeploy'],
      ['tail too large', 'GET', `${C}/logs?tail=10001`, undefined, 400, 'invalid_request', 'tail'],
      ['negative tail', 'GET', `${C}/logs?tail=-1`, undefined, 400, 'invalid_request', 'tail'],
      ['tail as text', 'GET', `${C}/logs?tail=all`, undefined, 400, 'invalid_request', 'tail'],
      ['unknown stream', 'GET', `${C}/logs?stream=stdin`, undefined, 400, 'invalid_request', 'stream'],
      ['unknown format', 'GET', `${C}/logs?format=xml`, undefined, 400, 'invalid_request', 'format'],
      ['unknown follow', 'GET', `${C}/logs?follow=maybe`, undefined, 400, 'invalid_request', 'follow'],
      ...['', 'plain', 'a@b@c', '@b', 'a@', 'a b@c', `${'x'.repeat(250)}@bb.c`].map(
        (email): Case => [
          `email ${email.slice(0, 12)}`,
          'POST',
          '/api/v1/auth/register',
          { email },
          400,
          'invalid_request',
          'email',
        ],
      ),
      ['wrong key', 'POST', '/api/v1/auth/login', { api_key: 'orb_wrong' }, 401, 'unauthorized'],
    ]),
  )('%s', (_, one) => refuses(one))
})

describe('configuration', () => {
  const upload = (name: string, text: Payload, says?: string): Case => [
    name,
    'POST',
    `${C}/config`,
    text,
    400,
    'invalid_toml',
    says,
  ]
  const inline = (name: string, body: Record<string, unknown>, says: string): Case => [
    name,
    'POST',
    `${C}/agents`,
    body,
    400,
    'invalid_config',
    says,
  ]
  test.each(
    named([
      upload('empty', ''),
      upload('syntax', '[agent\nname = 1', 'TOML parse error at line 1'),
      upload('not UTF-8', new Uint8Array([0xff, 0xfe, 0x00])),
      upload('NUL', toml('x = "\\u0000"\0')),
      upload('no agent', '[ports]\nexpose = [1]', 'missing [agent] section'),
      upload('no name', '[agent]\nlang = "node"\nentry = "x"', 'agent.name is required'),
      upload(
        'language',
        '[agent]\nname = "a"\nlang = "typescript"\nentry = "x"',
        'invalid lang: typescript (expected: node, python, go, rust, binary)',
      ),
      upload('arguments', toml('args = "x"'), 'agent.args must be a list of strings'),
      upload('no steps', toml('[build]\nsteps = []'), 'build.steps must have at least one step'),
      upload('ssh source', toml('[source]\ngit = "git@github.com:a/b.git"'), 'source.git must be an https:// URL'),
      upload('file source', toml('[source]\ngit = "file:///etc"'), 'source.git must be an https:// URL'),
      upload('ext source', toml('[source]\ngit = "ext::sh -c id"'), 'source.git must be an https:// URL'),
      upload(
        'plain http source',
        toml('[source]\ngit = "http://example.com/a.git"'),
        'source.git must be an https:// URL',
      ),
      upload(
        'source with a password',
        toml('[source]\ngit = "https://u:p@example.com/a.git"'),
        'source.git must not contain credentials',
      ),
      upload(
        'branch that is an option',
        toml('[source]\ngit = "https://example.com/a.git"\nbranch = "-x"'),
        'source.branch',
      ),
      upload(
        'branch that climbs',
        toml('[source]\ngit = "https://example.com/a.git"\nbranch = "a/../b"'),
        'source.branch',
      ),
      upload('working directory', toml('[build]\nsteps = ["true"]\nworking_dir = "relative"'), 'build.working_dir'),
      upload('plain http LLM', toml('[llm]\nbase_url = "http://example.com"'), 'llm.base_url'),
      upload('LLM of another scheme', toml('[llm]\nbase_url = "ftp://example.com"'), 'llm.base_url'),
      upload('port', toml('[ports]\nexpose = [0]'), 'ports.expose'),
      upload(
        'too many ports',
        toml(`[ports]\nexpose = [${Array.from({ length: 17 }, (_, i) => i + 1)}]`),
        'ports.expose',
      ),
      upload('sleep', toml('[lifecycle]\nsleep = "off"'), 'invalid lifecycle.sleep: off (expected: auto, never)'),
      upload('idle timeout', toml('[lifecycle]\nidle_timeout = "soon"'), 'lifecycle.idle_timeout'),
      upload('memory', toml('[resources]\nruntime = "lots"'), 'resources.runtime'),
      upload('provider', toml('[backend]\nprovider = "mine"'), 'backend.provider'),
      upload('outbound', toml('[network]\noutbound = ["*"]'), 'network.outbound'),
      inline('no agent', { orb_config: {} }, 'missing [agent] section'),
      inline('entry', agent({ entry: '' }), 'agent.entry is required'),
      inline('entry with NUL', agent({ entry: 'a\0b' }), 'agent.entry'),
      inline('environment', agent({ env: { A: [] } }), 'agent.env'),
      inline('name of a variable', agent({ env: { 'A=B': 'x' } }), 'agent.env'),
      inline('source', config({ source: { git: 'git@github.com:a/b' } }), 'source.git must be an https:// URL'),
    ]),
  )('%s', (_, one) => refuses(one))

  test.each(
    named([
      ['none to deploy', 'POST', `${C}/agents`, undefined, 409, 'no_config'],
      ['none to build', 'POST', `${C}/build`, undefined, 409, 'no_config'],
      ['none to show', 'GET', `${C}/config`, undefined, 404, 'config_not_found'],
      [
        'secrets missing',
        'POST',
        `${C}/agents`,
        agent({ env: { A: `\${B}` } }),
        400,
        'missing_secrets',
        'missing org_secrets: B',
      ],
      ['no agent to demote', 'POST', `${C}/agents/demote`, undefined, 404, 'agent_not_found'],
      ['no agent to promote', 'POST', `${C}/agents/promote`, { port: 10_000 }, 404, 'agent_not_found'],
      ['unknown port', 'POST', `${C}/agents/promote`, { port: 12_345 }, 404, 'port_not_found'],
    ]),
  )('%s', (_, one) => refuses(one))
})

describe('paths and methods', () => {
  test.each(
    named([
      ['unknown path', 'GET', '/v1/nothing', undefined, 404, 'not_found'],
      ['unknown path below a computer', 'GET', `${C}/nothing`, undefined, 404, 'not_found'],
      ['other method', 'PUT', '/v1/computers', {}, 405, 'method_not_allowed'],
      ['other method of a computer', 'POST', C, {}, 405, 'method_not_allowed'],
      ['deletion of agents', 'DELETE', `${C}/agents`, undefined, 405, 'method_not_allowed', '/restart'],
      ['unknown build', 'GET', `${C}/builds/build_0000000000000000`, undefined, 404, 'not_found'],
      ['unknown key', 'DELETE', `/v1/keys/${UNKNOWN}`, undefined, 404, 'not_found'],
      ['malformed key', 'DELETE', '/v1/keys/x', undefined, 404, 'not_found'],
    ]),
  )('%s', (_, one) => refuses(one))

  test('405 says what is allowed', async () => {
    const { headers } = await orb.call('PUT', '/v1/computers', {})
    expect(headers.get('allow')?.split(', ').toSorted()).toEqual(['GET', 'HEAD', 'POST'])
  })

  test('headers beyond the limit are refused', async () => {
    const answer = await orb.call('GET', '/v1/computers', undefined, { 'x-long': 'x'.repeat(33 * 1024) })
    expect(answer.status).toBe(431)
  })

  test('a smuggled request is refused and its connection closed', async () => {
    const { hostname, port } = new URL(orb.url)
    const { promise, resolve } = Promise.withResolvers<string>()
    let text = ''
    await Bun.connect({
      hostname,
      port: Number(port),
      socket: {
        open: (socket) =>
          void socket.write(
            'POST /v1/computers HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n',
          ),
        data: (_, bytes) => {
          text += bytes.toString()
        },
        close: () => resolve(text),
      },
    })
    expect(await promise).toStartWith('HTTP/1.1 400')
    expect(text.match(/HTTP\/1\.1/g)).toHaveLength(1)
  })
})

test('more computers than allowed are refused, and nothing of them is left', async () => {
  await orb.register()
  for (let made = 0; made < 3; made++) await orb.computer({ disk_mb: 64 })
  const before = readdirSync(join(orb.dataDir, 'computers')).length
  const { status, json } = await orb.call('POST', '/v1/computers', { name: 'one too many' })
  expect([status, json['error']]).toEqual([403, 'quota_exceeded'])
  expect(readdirSync(join(orb.dataDir, 'computers'))).toHaveLength(before)
})

test('nothing of all this was an error of the server', () => {
  expect(orb.log.split('\n').filter((line) => / status=5\d\d|\berror\b/.test(line))).toEqual([])
})
