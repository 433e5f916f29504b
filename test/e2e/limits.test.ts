/**
 * Limits and the error table of the contract (§1.2, §1.3, §20, §21), row by row, as scenarios against a real orb. What single
 * fields of requests must be is in api-errors.test.ts, who may see what in api-access.test.ts. Needs root.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { z } from 'zod'
import { failure } from '../../src/api/cloud/schemas.ts'
import { rawClient } from '../../src/proxy/testing.ts'
import type { Computer } from '../support/computer.ts'
import { type Orb, type Payload, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'
import { until } from '../support/sweep.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

const KB = 1024
const MB = 1024 * KB
const HEAD_BYTES = 32 * KB
const JSON_BYTES = 4 * MB
const CONFIG_BYTES = 256 * KB
const FILE_BYTES = 209_715_200
const VALUE_BYTES = 128 * KB
const MAX_DEPTH = 32
const AUTH_CALLS = 120
const MAX_KEYS = 100
const MAX_SECRETS = 200
const MAX_COMPUTERS = 3
const MAX_ENTRIES = 10_000
const REQUEST_ID = /^[0-9a-f-]{36}$/
/** Never sent otherwise: one minute of it must be one client's own. */
const CLIENT = '203.0.113.7'

let orb: Orb
let computer: Computer
let port: number

beforeAll(async () => {
  orb = await startOrb({ env: { ORB_MAX_COMPUTERS: String(MAX_COMPUTERS), ORB_TRUST_PROXY: '1' } })
  port = Number(new URL(orb.url).port)
  computer = await orb.computer()
})
afterAll(() => orb?.stop())

interface Row {
  name: string
  method?: string
  /** `:id` is the computer. */
  path: string
  body?: Payload
  headers?: Record<string, string>
  status: number
  error?: string
  says?: string
  answers?: Record<string, string>
}

const SECRET = `\${S}`
const C = '/v1/computers/:id'
const create = { method: 'POST', path: '/v1/computers' }
const nested = (levels: number): string => `${'{"a":'.repeat(levels - 1)}{}${'}'.repeat(levels - 1)}`
const toml = (more: string): string => `[agent]\nname = "a"\nlang = "node"\nentry = "x.mjs"\n${more}`
const inline = (env: Record<string, string>, secrets?: Record<string, string>) => ({
  orb_config: { agent: { name: 'a', lang: 'node', entry: 'x.mjs', env } },
  ...(secrets ? { org_secrets: secrets } : {}),
})
const many = (count: number, value = 'x'): Record<string, string> =>
  Object.fromEntries(Array.from({ length: count }, (_, index) => [`N${index}`, value]))

/** What is the same of an agent that was left alone. */
async function lasting(of: Computer) {
  return { ...(await of.agent()), resident_bytes: null }
}

async function play(row: Row): Promise<void> {
  const path = row.path.replace(':id', computer.id)
  const answer = await orb.call(row.method ?? 'GET', path, row.body, row.headers ?? {})
  expect([answer.status, answer.json['error']]).toEqual([row.status, row.error])
  expect(answer.headers.get('x-request-id')).toMatch(REQUEST_ID)
  if (row.error) {
    expect(answer.headers.get('content-type')).toStartWith('application/json')
    expect(failure.parse(answer.json).message).not.toContain(orb.dataDir)
  }
  if (row.says) expect(answer.json['message']).toContain(row.says)
  for (const [name, value] of Object.entries(row.answers ?? {}))
    expect([name, answer.headers.get(name)]).toEqual([name, value])
}

const table = (name: string, rows: Row[]) =>
  describe(name, () => test.each(rows.map((row) => [row.name, row] as const))('%s', (_, row) => play(row)))

table('credentials: 401 before anything else', [
  {
    name: 'none',
    path: C,
    headers: { authorization: '' },
    status: 401,
    error: 'unauthorized',
    answers: { 'www-authenticate': 'Bearer' },
  },
  {
    name: 'unknown',
    path: C,
    headers: { authorization: `Bearer orb_${'a'.repeat(43)}` },
    status: 401,
    error: 'unauthorized',
  },
  {
    name: 'before the id',
    path: '/v1/computers/none',
    headers: { authorization: '' },
    status: 401,
    error: 'unauthorized',
  },
  { name: 'before the body', ...create, headers: { authorization: '' }, body: '{', status: 401, error: 'unauthorized' },
  {
    name: 'before the path of a file',
    path: `${C}/files/%2e%2e`,
    headers: { authorization: '' },
    status: 401,
    error: 'unauthorized',
  },
  {
    name: 'before the size',
    ...create,
    headers: { authorization: '' },
    body: 'x'.repeat(JSON_BYTES + 1),
    status: 401,
    error: 'unauthorized',
  },
])

table('bodies', [
  { name: 'of no JSON', ...create, body: '{"name"', status: 400, error: 'invalid_json' },
  { name: 'of no object', ...create, body: '["name"]', status: 400, error: 'invalid_json' },
  {
    name: 'nested as deep as allowed',
    ...create,
    body: nested(MAX_DEPTH),
    status: 400,
    error: 'invalid_request',
    says: 'name is required',
  },
  { name: 'nested deeper', ...create, body: nested(MAX_DEPTH + 1), status: 400, error: 'invalid_json' },
  { name: 'nested a million deep', ...create, body: '['.repeat(MB), status: 400, error: 'invalid_json' },
  {
    name: 'as large as allowed',
    ...create,
    body: `${' '.repeat(JSON_BYTES - 2)}{}`,
    status: 400,
    error: 'invalid_request',
  },
  { name: 'too large', ...create, body: `${' '.repeat(JSON_BYTES - 1)}{}`, status: 413, error: 'payload_too_large' },
  {
    name: 'with harmful names',
    ...create,
    body: '{"__proto__":{"name":"a"},"constructor":1,"prototype":2}',
    status: 400,
    error: 'invalid_request',
    says: 'name is required',
  },
  {
    name: 'of null',
    ...create,
    body: '{"name":null}',
    status: 400,
    error: 'invalid_request',
    says: 'name is required',
  },
  { name: 'left out', method: 'POST', path: `${C}/restart`, status: 200 },
  {
    name: 'of another type',
    ...create,
    body: '{"name":""}',
    headers: { 'content-type': 'text/html' },
    status: 400,
    error: 'invalid_request',
    says: 'name',
  },
])

const config = { method: 'POST', path: `${C}/config` }
const asJson = { 'content-type': 'application/json' }
table('configurations', [
  { name: 'as large as allowed', ...config, body: toml('#').padEnd(CONFIG_BYTES, 'x'), status: 200 },
  {
    name: 'too large',
    ...config,
    body: toml('#').padEnd(CONFIG_BYTES + 1, 'x'),
    status: 413,
    error: 'payload_too_large',
  },
  {
    name: 'in JSON, too large',
    ...config,
    headers: asJson,
    body: `{"a":"${'x'.repeat(CONFIG_BYTES)}"}`,
    status: 413,
    error: 'payload_too_large',
  },
  {
    name: 'nested deeper than allowed',
    ...config,
    body: toml(`x = ${'['.repeat(MAX_DEPTH + 1)}${']'.repeat(MAX_DEPTH + 1)}`),
    status: 400,
    error: 'invalid_toml',
  },
  {
    name: 'nested 100,000 deep',
    ...config,
    body: toml(`x = ${'['.repeat(100_000)}`),
    status: 400,
    error: 'invalid_toml',
  },
  {
    name: 'with a key of 100,000 parts',
    ...config,
    body: toml(`${'a.'.repeat(100_000)}b = 1`),
    status: 400,
    error: 'invalid_toml',
  },
  {
    name: 'in JSON, nested deeper than allowed',
    ...config,
    headers: asJson,
    body: nested(MAX_DEPTH + 2),
    status: 400,
    error: 'invalid_config',
  },
  {
    name: 'in JSON, nested 100,000 deep',
    ...config,
    headers: asJson,
    body: `${'{"a":'.repeat(40_000)}`,
    status: 400,
    error: 'invalid_json',
  },
  {
    name: 'with harmful names',
    ...config,
    headers: asJson,
    body: '{"__proto__":{"agent":{}},"constructor":{"agent":1}}',
    status: 400,
    error: 'invalid_config',
    says: 'missing [agent]',
  },
  { name: 'with 200 variables', ...config, headers: asJson, body: inline(many(200)).orb_config, status: 200 },
  {
    name: 'with 201 variables',
    ...config,
    headers: asJson,
    body: inline(many(201)).orb_config,
    status: 400,
    error: 'invalid_config',
    says: 'agent.env',
  },
  {
    name: 'with a variable too long',
    ...config,
    headers: asJson,
    body: inline({ A: 'x'.repeat(VALUE_BYTES + 1) }).orb_config,
    status: 400,
    error: 'invalid_config',
    says: 'agent.env.A',
  },
  { name: 'with 100 steps', ...config, body: toml(`[build]\nsteps = [${'"true",'.repeat(100)}]`), status: 200 },
  {
    name: 'with 101 steps',
    ...config,
    body: toml(`[build]\nsteps = [${'"true",'.repeat(101)}]`),
    status: 400,
    error: 'invalid_toml',
    says: 'build.steps',
  },
  {
    name: 'with a step too long',
    ...config,
    body: toml(`[build]\nsteps = ["${'x'.repeat(64 * KB + 1)}"]`),
    status: 400,
    error: 'invalid_toml',
    says: 'build.steps[0]',
  },
  {
    name: 'with 17 ports',
    ...config,
    body: toml(`[ports]\nexpose = [${Array.from({ length: 17 }, (_, i) => i + 1)}]`),
    status: 400,
    error: 'invalid_toml',
    says: 'ports.expose',
  },
])

const deploy = { method: 'POST', path: `${C}/agents` }
table('secrets', [
  {
    name: 'too many',
    ...deploy,
    body: inline({}, many(MAX_SECRETS + 1)),
    status: 400,
    error: 'invalid_request',
    says: '200',
  },
  {
    name: 'one too long',
    ...deploy,
    body: inline({}, { A: 'x'.repeat(VALUE_BYTES + 1) }),
    status: 400,
    error: 'invalid_request',
    says: 'org_secrets.A',
  },
  {
    name: 'one too long, for a build',
    method: 'POST',
    path: `${C}/build`,
    body: { org_secrets: { A: 'x'.repeat(VALUE_BYTES + 1) } },
    status: 400,
    error: 'invalid_request',
    says: 'org_secrets.A',
  },
  {
    name: 'one with NUL',
    ...deploy,
    body: inline({}, { A: 'a\0b' }),
    status: 400,
    error: 'invalid_request',
    says: 'org_secrets.A',
  },
])

table('files', [
  { name: 'that are not there', path: `${C}/files/none`, status: 404, error: 'not_found' },
  { name: 'with NUL in their name', path: `${C}/files/a%00b`, status: 400, error: 'invalid_path' },
  {
    name: 'that are a directory',
    method: 'PUT',
    path: `${C}/files/agent/code`,
    body: 'x',
    status: 409,
    error: 'is_a_directory',
  },
  {
    name: 'below a file',
    method: 'PUT',
    path: `${C}/files/etc/hostname/x`,
    body: 'x',
    status: 409,
    error: 'not_a_directory',
  },
  {
    name: 'of which a range is not there',
    path: `${C}/files/etc/hostname`,
    headers: { range: 'bytes=9999-' },
    status: 416,
    error: 'range_not_satisfiable',
  },
  { name: 'without a name', method: 'PUT', path: `${C}/files/`, body: 'x', status: 400, error: 'invalid_path' },
])

table('paths', [
  { name: 'unknown', path: '/v1/none', status: 404, error: 'not_found' },
  { name: 'unknown, without a key', path: '/v1/none', headers: { authorization: '' }, status: 404, error: 'not_found' },
  { name: 'with a slash at the end', path: `${C}/`, status: 200 },
  { name: 'with two', path: `${C}//`, status: 404, error: 'not_found' },
  { name: 'of an alias', method: 'POST', path: '/v1/auth/login', body: {}, status: 400, error: 'invalid_request' },
  {
    name: 'deletion of agents',
    method: 'DELETE',
    path: `${C}/agents`,
    status: 405,
    error: 'method_not_allowed',
    says: '/restart',
  },
])

test('every path of the documentation answers any other method with 405 and those that it has', async () => {
  const Document = z.object({ paths: z.record(z.string(), z.record(z.string(), z.unknown())) })
  const { paths } = await orb.ask(Document, 'GET', '/openapi.json')
  expect(Object.keys(paths).length).toBeGreaterThan(20)
  for (const [path, operations] of Object.entries(paths)) {
    const known = Object.keys(operations).map((method) => method.toUpperCase())
    if (known.includes('GET')) known.push('HEAD')
    for (const method of ['GET', 'POST', 'PUT', 'DELETE', 'PATCH', 'OPTIONS'].filter((one) => !known.includes(one))) {
      // A file without a name is a bad path.
      if (method === 'PUT' && path.endsWith('/files')) continue
      const url = path.replace('{id}', computer.id).replace(/\{\w+\}/g, 'x')
      const { status, json, headers } = await orb.call(method, url)
      expect([method, path, status, json['error']]).toEqual([method, path, 405, 'method_not_allowed'])
      const allow = headers.get('allow')?.split(', ').toSorted()
      expect(known.toSorted().filter((one) => !allow?.includes(one))).toEqual([])
    }
  }
})

describe('on the wire', () => {
  const AUTH = () => `Host: localhost\r\nAuthorization: Bearer ${orb.key}\r\n`
  const SECOND = 'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n'

  interface Refusal {
    name: string
    head: (lines: string) => string
    status: number
    error: string
  }
  const post =
    (more: string, body = '') =>
    (lines: string) =>
      `POST /v1/computers HTTP/1.1\r\n${lines}${more}\r\n\r\n${body}`
  const get = (more: string) => (lines: string) => `GET /v1/keys HTTP/1.1\r\n${lines}${more}\r\n\r\n`
  const bad = (name: string, head: Refusal['head']): Refusal => ({ name, head, status: 400, error: 'invalid_request' })
  const REFUSALS: Refusal[] = [
    bad('a length and chunks', post('Content-Length: 4\r\nTransfer-Encoding: chunked', '0\r\n\r\n')),
    bad('chunks and a length', post('Transfer-Encoding: chunked\r\nContent-Length: 4', '0\r\n\r\n')),
    bad('two lengths', post('Content-Length: 4\r\nContent-Length: 5', 'abcde')),
    bad('a list of lengths', post('Content-Length: 4, 4', 'abcd')),
    bad('a negative length', post('Content-Length: -1')),
    bad('a length with a sign', post('Content-Length: +4', 'abcd')),
    bad('a hexadecimal length', post('Content-Length: 0x4', 'abcd')),
    bad('an unknown coding', post('Transfer-Encoding: gzip, chunked', '0\r\n\r\n')),
    bad('a coding twice', post('Transfer-Encoding: chunked\r\nTransfer-Encoding: identity', '0\r\n\r\n')),
    bad('a coding hidden by a tab', post('Transfer-Encoding:\tchunked\r\nContent-Length: 4', '0\r\n\r\n')),
    bad('a space before a colon', get('Content-Length : 4')),
    bad('a folded line', get('X-A: b\r\n c')),
    bad('a bare LF', get('X-A: b\nX-C: d')),
    bad('a bare CR', get('X-A: b\rX-C: d')),
    bad('NUL in a header', get('X-A: b\0c')),
    bad('two hosts', get('Host: other')),
    bad('no host', () => 'GET /health HTTP/1.1\r\n\r\n'),
    bad('another protocol', () => 'SSH-2.0-OpenSSH_9.2\r\n\r\n'),
    bad('HTTP/2', () => 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n'),
    bad('a space in the target', () => 'GET /health x HTTP/1.1\r\nHost: localhost\r\n\r\n'),
    bad('a proxy to be', () => 'CONNECT localhost:443 HTTP/1.1\r\nHost: localhost\r\n\r\n'),
    {
      name: 'a large body without a key',
      head: () => `POST /v1/keys HTTP/1.1\r\nHost: localhost\r\nContent-Length: ${MB}\r\n\r\n`,
      status: 401,
      error: 'unauthorized',
    },
    bad('a chunk without a size', post('Transfer-Encoding: chunked', 'x\r\n\r\n')),
    bad('a chunk longer than its size', post('Transfer-Encoding: chunked', '1\r\nab\r\n0\r\n\r\n')),
    {
      name: 'a long URL',
      head: (lines) => `GET /v1/keys?${'x'.repeat(HEAD_BYTES)} HTTP/1.1\r\n${lines}\r\n`,
      status: 431,
      error: 'headers_too_large',
    },
    { name: 'long headers', head: get(`X-A: ${'x'.repeat(HEAD_BYTES)}`), status: 431, error: 'headers_too_large' },
    {
      name: 'many headers',
      head: get(Array.from({ length: 4000 }, (_, i) => `X-${i}: y`).join('\r\n')),
      status: 431,
      error: 'headers_too_large',
    },
    {
      name: 'headers without an end',
      head: (lines) => `GET / HTTP/1.1\r\n${lines}X-A: ${'x'.repeat(2 * HEAD_BYTES)}`,
      status: 431,
      error: 'headers_too_large',
    },
    {
      name: 'an early refusal of a large body',
      head: post(`Content-Length: ${JSON_BYTES + 1}`),
      status: 413,
      error: 'payload_too_large',
    },
    {
      name: 'an early refusal of a large file',
      head: (lines) =>
        `PUT /v1/computers/${computer.id}/files/x HTTP/1.1\r\n${lines}Content-Length: ${FILE_BYTES + 1}\r\n\r\n`,
      status: 413,
      error: 'payload_too_large',
    },
    {
      name: 'an unknown host',
      head: () => 'GET / HTTP/1.1\r\nHost: 00000000.orb.localhost\r\n\r\n',
      status: 404,
      error: 'unknown_host',
    },
  ]
  test.each(REFUSALS.map((row) => [row.name, row] as const))(
    '%s is refused once, with an id, and the connection is closed',
    async (_, { head, status, error }) => {
      const connection = await rawClient(port)
      connection.write(head(AUTH()) + SECOND)
      await connection.isClosed()
      const [first = '', body = ''] = connection.received.split('\r\n\r\n')
      expect(first).toStartWith(`HTTP/1.1 ${status} `)
      expect(failure.parse(JSON.parse(body)).error).toBe(error)
      expect(first).toMatch(/^connection: close$/im)
      expect(connection.received.match(/HTTP\/1\.1 /g)).toHaveLength(1)
      const id = /^x-request-id: (\S+)$/im.exec(first)?.[1]
      expect(id).toMatch(REQUEST_ID)
      expect(await until(() => orb.log.includes(`info request request=${id} `))).toBe(true)
    },
  )

  test('a chunked body is cut off at its limit', async () => {
    const connection = await rawClient(port)
    connection.write(post('Transfer-Encoding: chunked')(AUTH()))
    const chunk = `${MB.toString(16)}\r\n${'x'.repeat(MB)}\r\n`
    for (let sent = 0; sent <= JSON_BYTES; sent += MB) connection.write(chunk)
    expect(await connection.has('payload_too_large')).toStartWith('HTTP/1.1 413 ')
    connection.reset()
  })

  test('URL and headers may have 32 KiB together', async () => {
    const connection = await rawClient(port)
    const lines = `GET /v1/keys HTTP/1.1\r\n${AUTH()}X-A: `
    connection.write(`${lines.padEnd(HEAD_BYTES - 100, 'x')}\r\n\r\n`)
    expect(await connection.has('"keys"')).toStartWith('HTTP/1.1 200 ')
    connection.reset()
  })
})

describe('request ids and the access log', () => {
  test('each request has its own id, and one line in the log', async () => {
    const answers = await Promise.all([
      orb.call('GET', '/health'),
      orb.call('GET', '/v1/keys'),
      orb.call('GET', '/v1/none'),
      orb.call('POST', '/v1/computers', '{'),
      orb.call('DELETE', '/v1/keys'),
      orb.call('HEAD', '/v1/keys'),
    ])
    const ids = answers.map(({ headers }) => headers.get('x-request-id') ?? '')
    expect(new Set(ids).size).toBe(ids.length)
    for (const [index, id] of ids.entries()) {
      const lines = orb.log.split('\n').filter((line) => line.includes(` info request request=${id} `))
      expect(lines).toHaveLength(1)
      expect(lines[0]).toContain(` status=${answers[index]?.status} `)
      expect(lines[0]).toMatch(/ method=[A-Z]+ path=\/\S+ status=\d+ ms=\d+ from=127\.0\.0\.1$/)
    }
  })

  test('neither form of a credential reaches the log', async () => {
    const secret = `orb_${'Q'.repeat(43)}`
    await orb.call('GET', `/v1/keys?key=${secret}`, undefined, { authorization: '' })
    await orb.call('GET', `/v1/computers/${computer.id}/terminal?key=${secret}`, undefined, { authorization: '' })
    await orb.call('GET', '/v1/keys', undefined, { authorization: `Bearer ${secret}` })
    await orb.call('POST', '/v1/auth/login', { api_key: secret })
    const raw = await rawClient(port)
    raw.write(`GET /x?key=${secret} HTTP/1.1\r\nHost: 00000000.orb.localhost\r\n\r\n`)
    await raw.isClosed()
    await orb.call('GET', '/v1/keys')
    expect(orb.log).not.toContain(secret)
    expect(orb.log).not.toContain(orb.key)
  })
})

describe('how often and how many', () => {
  test('register and login are counted together, by address, whatever is sent', async () => {
    const from = (address: string) => ({ 'x-forwarded-for': `198.51.100.1, ${address}` })
    const attempt = (n: number) =>
      n % 2 === 0
        ? orb.call('POST', '/v1/auth/login', { api_key: 'orb_x' }, from(CLIENT))
        : orb.call('POST', '/api/v1/auth/register', '{', from(CLIENT))
    for (let n = 0; n < AUTH_CALLS; n++) {
      const { status, headers } = await attempt(n)
      // A window may have ended in between; from its start on they count down.
      expect([401, 400]).toContain(status)
      expect(headers.get('ratelimit-limit')).toBe(String(AUTH_CALLS))
      expect(Number(headers.get('ratelimit-remaining'))).toBeLessThan(AUTH_CALLS)
      expect(Number(headers.get('ratelimit-reset'))).toBeWithin(1, 61)
    }
    let refused = await attempt(0)
    for (let n = 0; n < AUTH_CALLS && refused.status !== 429; n++) refused = await attempt(n)
    expect([refused.status, refused.json['error']]).toEqual([429, 'rate_limited'])
    expect(Number(refused.headers.get('retry-after'))).toBeWithin(1, 61)
    expect(refused.headers.get('ratelimit-remaining')).toBe('0')
    expect(refused.headers.get('x-request-id')).toMatch(REQUEST_ID)
    expect((await orb.call('POST', '/v1/auth/login', {}, from('203.0.113.8'))).status).toBe(400)
    expect((await orb.call('GET', '/v1/keys', undefined, from(CLIENT))).status).toBe(200)
  })

  test('an organisation has 100 keys and as many computers as it may', async () => {
    await orb.register()
    for (let n = 1; n < MAX_KEYS; n++) expect((await orb.call('POST', '/v1/keys', { name: `k${n}` })).status).toBe(201)
    const { status, json } = await orb.call('POST', '/v1/keys', { name: 'one too many' })
    expect([status, json['error']]).toEqual([403, 'quota_exceeded'])
    for (let n = 0; n < MAX_COMPUTERS; n++) await orb.computer({ disk_mb: 64 })
    const more = await orb.call('POST', '/v1/computers', { name: 'one too many' })
    expect([more.status, more.json['error']]).toEqual([403, 'quota_exceeded'])
  })

  test('a computer has 200 secrets, whether they come at once or one by one', async () => {
    await orb.register()
    const own = await orb.computer()
    await own.put('agent/code/x.mjs', 'setInterval(() => {}, 1000)')
    expect((await own.call('POST', '/agents', inline({}, many(MAX_SECRETS)))).status).toBe(201)
    const before = await lasting(own)
    const { status, json } = await own.call('POST', '/agents', { org_secrets: { ONE_MORE: 'x' } })
    expect([status, json['error']]).toEqual([400, 'invalid_request'])
    expect(await lasting(own)).toEqual(before)
    expect((await own.call('POST', '/agents', { org_secrets: { N0: 'rotated' } })).status).toBe(201)
  })

  test('a variable has 128 KiB with its name; one that has more leaves the agent as it is', async () => {
    await orb.register()
    const own = await orb.computer()
    await own.put('agent/code/x.mjs', 'console.log(process.env.A.length); setInterval(() => {}, 1000)')
    const longest = VALUE_BYTES - 'A='.length - 1
    expect((await own.call('POST', '/agents', inline({ A: SECRET }, { S: 'x'.repeat(longest) }))).status).toBe(201)
    await own.waitForLine((line) => line === String(longest))
    const before = await lasting(own)
    const { status, json } = await own.call('POST', '/agents', { org_secrets: { S: 'x'.repeat(longest + 1) } })
    expect([status, json['error']]).toEqual([422, 'spawn_failed'])
    expect(json['message']).toContain('agent.env.A')
    expect(await lasting(own)).toEqual(before)
  })

  test('a directory shows 10,000 entries and says that there are more', async () => {
    await orb.register()
    const own = await orb.computer()
    await own.sh(`mkdir /agent/data/many && cd /agent/data/many && seq ${MAX_ENTRIES} | xargs touch`)
    const list = async () => (await own.call('GET', '/files/agent/data/many')).json
    expect(await list()).not.toHaveProperty('truncated')
    await own.sh('touch /agent/data/many/more')
    const cut = await list()
    expect(cut['truncated']).toBe(true)
    expect(cut['files']).toHaveLength(MAX_ENTRIES)
  })
})

describe('503 says when to come again', () => {
  test('while no agent runs', async () => {
    await orb.register()
    const own = await orb.computer()
    const at = (path: string) => fetch(orb.url + path, { headers: { host: `${own.shortId}.orb.localhost` } })
    const hidden = await at('/')
    expect([hidden.status, (await hidden.json()).error]).toEqual([404, 'port_not_exposed'])
    await own.call('POST', '/config', toml('[ports]\nexpose = [8000]'))
    const answer = await at('/')
    expect([answer.status, (await answer.json()).error]).toEqual([503, 'agent_not_running'])
    expect(answer.headers.get('retry-after')).toBe('5')
    expect(answer.headers.get('x-request-id')).toMatch(REQUEST_ID)
  })
})

test('an email is registered once, and none where registration is closed', async () => {
  const email = `${crypto.randomUUID()}@example.com`
  const register = () => orb.call('POST', '/api/v1/auth/register', { email: email.toUpperCase() })
  await orb.register(email)
  const taken = await register()
  expect([taken.status, taken.json['error']]).toEqual([409, 'email_taken'])
  orb.env['ORB_REGISTRATION'] = 'closed'
  expect(await orb.terminate()).toBe(0)
  await orb.restart()
  const closed = await register()
  expect([closed.status, closed.json['error']]).toEqual([403, 'registration_closed'])
})

test('nothing of all this was an error of the server', () => {
  expect(orb.log.split('\n').filter((line) => / status=50[0-2]|\berror\b/.test(line))).toEqual([])
})
