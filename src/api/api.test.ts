import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'bun:test'
import { connect } from 'node:net'
import { C, create, created, play, type Scenario, send } from '../../test/support/api-scenario.ts'
import { DEPLOY_KEY, fakeServices, KEY, startTestApi, type TestApi, VIEWER_KEY } from './testing.ts'

/** Bun looks at its limits every four seconds. */
const BEYOND_DEFAULT_MS = 15_000

let api: TestApi
let base: string

beforeAll(() => {
  api = startTestApi()
  base = api.running.url
})
beforeEach(() => void api.calls.splice(0))
afterAll(() => api.running.stop(0))

const deep = (levels: number) => `{"name":"c","x":${'['.repeat(levels - 1)}${']'.repeat(levels - 1)}}`

const CREDENTIALS: Scenario[] = [
  { name: 'none', path: C, key: null, status: 401, error: 'unauthorized', answers: { 'www-authenticate': 'Bearer' } },
  { name: 'unknown', path: C, key: 'orb_nobody', status: 401, error: 'unauthorized' },
  { name: 'before the id', path: '/v1/computers/nonsense', key: null, status: 401, error: 'unauthorized' },
  { name: 'in the query', path: `${C}?key=${KEY}`, key: null, status: 401, error: 'unauthorized' },
  {
    name: 'other scheme',
    path: C,
    key: null,
    headers: { authorization: `Basic ${KEY}` },
    status: 401,
    error: 'unauthorized',
  },
  { name: 'scheme in lower case', path: C, key: null, headers: { authorization: `bearer ${KEY}` }, status: 200 },
  { name: 'viewer reads', path: C, key: VIEWER_KEY, status: 200 },
  {
    name: 'viewer writes',
    ...create,
    key: VIEWER_KEY,
    body: '{"name":"c"}',
    status: 403,
    error: 'forbidden',
    asked: [],
  },
  { name: 'viewer deletes', method: 'DELETE', path: C, key: VIEWER_KEY, status: 403, error: 'forbidden' },
  { name: 'deploy key: its computer', path: C, key: DEPLOY_KEY, status: 200 },
  { name: 'deploy key: by short id', path: '/v1/computers/abc12345/agents', key: DEPLOY_KEY, status: 200 },
  { name: 'deploy key: builds', method: 'POST', path: `${C}/build`, key: DEPLOY_KEY, status: 200 },
  { name: 'deploy key: deploys', method: 'POST', path: `${C}/agents`, key: DEPLOY_KEY, status: 201 },
  { name: 'deploy key: logs', path: `${C}/logs`, key: DEPLOY_KEY, status: 200 },
  { name: 'deploy key: other computer', path: '/v1/computers/other', key: DEPLOY_KEY, status: 403, error: 'forbidden' },
  {
    name: 'deploy key: exec',
    method: 'POST',
    path: `${C}/exec`,
    key: DEPLOY_KEY,
    status: 403,
    error: 'forbidden',
    asked: [],
  },
  {
    name: 'deploy key: bootstrap',
    method: 'POST',
    path: `${C}/github/bootstrap`,
    body: '{"pat":"p"}',
    key: DEPLOY_KEY,
    status: 403,
    error: 'forbidden',
    asked: [],
  },
  { name: 'deploy key: files', path: `${C}/files/file`, key: DEPLOY_KEY, status: 403, error: 'forbidden', asked: [] },
  { name: 'deploy key: keys', path: '/v1/keys', key: DEPLOY_KEY, status: 403, error: 'forbidden' },
]

const PATHS: Scenario[] = [
  { name: 'unknown path', path: '/v1/nothing', status: 404, error: 'not_found' },
  { name: 'root', path: '/', key: null, status: 404, error: 'not_found' },
  { name: 'unknown id', path: '/v1/computers/x', status: 404, error: 'not_found' },
  { name: 'malformed escape in an id', path: '/v1/computers/%zz', status: 404, error: 'not_found' },
  { name: 'unknown key id', method: 'DELETE', path: '/v1/keys/x', status: 404, error: 'not_found' },
  { name: 'trailing slash', path: `${C}/`, status: 200 },
  { name: 'two trailing slashes', path: `${C}//`, status: 404, error: 'not_found' },
  {
    name: 'other method',
    method: 'PATCH',
    path: C,
    status: 405,
    error: 'method_not_allowed',
    answers: { allow: 'GET, DELETE, HEAD' },
  },
  { name: 'other method, trailing slash', method: 'PUT', path: '/v1/keys/', status: 405, error: 'method_not_allowed' },
  {
    name: 'DELETE agents',
    method: 'DELETE',
    path: `${C}/agents`,
    status: 405,
    error: 'method_not_allowed',
    has: ['/restart'],
  },
  {
    name: 'alias of register',
    method: 'GET',
    path: '/v1/auth/register',
    key: null,
    status: 405,
    error: 'method_not_allowed',
  },
  { name: 'HEAD', method: 'HEAD', path: '/v1/keys', status: 200, answers: { 'content-length': '21' } },
  { name: 'HEAD of a log that is followed', method: 'HEAD', path: `${C}/logs?follow=1`, status: 200 },
  { name: 'HEAD of nothing', method: 'HEAD', path: '/v1/nothing', status: 404 },
]

const BODIES: Scenario[] = [
  {
    name: 'as JSON',
    ...create,
    headers: { 'content-type': 'application/json' },
    body: '{"name":"c"}',
    status: 201,
    asked: [created()],
  },
  {
    name: 'of another type',
    ...create,
    headers: { 'content-type': 'text/plain' },
    body: '{"name":"c"}',
    status: 201,
    asked: [created()],
  },
  {
    name: 'as a form',
    ...create,
    headers: { 'content-type': 'application/x-www-form-urlencoded' },
    body: '{"name":"c"}',
    status: 201,
  },
  {
    name: 'unknown fields and null',
    ...create,
    body: '{"name":"c","x":1,"runtime_mb":null}',
    status: 201,
    asked: [created()],
  },
  { name: 'no body', ...create, status: 400, error: 'invalid_request', has: ['name is required'] },
  {
    name: 'no body where all is optional',
    method: 'POST',
    path: `${C}/agents`,
    status: 201,
    asked: [['deploy', { replace: true }]],
  },
  { name: 'not JSON', ...create, body: '{"name":', status: 400, error: 'invalid_json', asked: [] },
  { name: 'a list', ...create, body: '[]', status: 400, error: 'invalid_json' },
  { name: 'null', ...create, body: 'null', status: 400, error: 'invalid_json' },
  {
    name: 'prototype names',
    ...create,
    body: '{"name":"c","__proto__":{"runtime_mb":64},"constructor":{"x":1},"prototype":1}',
    status: 201,
    asked: [created()],
  },
  { name: '32 levels', ...create, body: deep(32), status: 201 },
  { name: '33 levels', ...create, body: deep(33), status: 400, error: 'invalid_json', asked: [] },
  { name: '100,000 levels', ...create, body: deep(100_000), status: 400, error: 'invalid_json', asked: [] },
  {
    name: 'over 4 MiB',
    ...create,
    body: `{"name":"c","x":"${'x'.repeat(4 * 1024 * 1024)}"}`,
    status: 413,
    error: 'payload_too_large',
    asked: [],
  },
  {
    name: 'invalid UTF-8',
    ...create,
    body: Buffer.from('{"name":"a\xff"}', 'latin1'),
    status: 201,
    asked: [created({ name: 'a\ufffd' })],
  },
]

const LIMITS: Scenario[] = [
  { name: 'health', path: '/health', key: null, status: 200, has: ['healthy'] },
  { name: 'metrics from here', path: '/metrics', key: null, status: 200, has: ['orb_build_info'] },
  {
    name: 'metrics through a proxy',
    path: '/metrics',
    key: null,
    headers: { 'x-forwarded-for': '1.2.3.4' },
    status: 401,
    error: 'unauthorized',
  },
  { name: 'headers of 30 KiB', path: C, headers: { 'x-filler': 'x'.repeat(30_000) }, status: 200 },
  {
    name: 'headers above 32 KiB',
    path: C,
    headers: { 'x-filler': 'x'.repeat(33_000) },
    status: 431,
    error: 'headers_too_large',
  },
  { name: 'URL above 32 KiB', path: `${C}?${'x'.repeat(33_000)}`, status: 431, error: 'headers_too_large' },
]

describe('limits and the system', () =>
  test.each(LIMITS.map((row) => [row.name, row] as const))('%s', (_, row) => play(api, row)))
describe('credentials', () =>
  test.each(CREDENTIALS.map((row) => [row.name, row] as const))('%s', (_, row) => play(api, row)))
describe('paths', () => test.each(PATHS.map((row) => [row.name, row] as const))('%s', (_, row) => play(api, row)))
describe('bodies', () => test.each(BODIES.map((row) => [row.name, row] as const))('%s', (_, row) => play(api, row)))

/** Sends bytes as they are; the answer until the connection closes or `until` was seen. */
const raw = (bytes: string, until = '\r\n\r\n'): Promise<string> =>
  new Promise((resolve, reject) => {
    const socket = connect(api.running.port ?? 0, '127.0.0.1', () => socket.write(bytes))
    let seen = ''
    socket.on('data', (chunk) => {
      seen += chunk
      if (seen.includes(until)) socket.destroy()
    })
    socket.on('close', () => resolve(seen))
    socket.on('error', reject)
  })

describe('on the wire', () => {
  const head = `Host: localhost\r\nAuthorization: Bearer ${KEY}\r\n`
  const climbing = ['%2e%2e/etc/passwd', '../agents', 'a/../b', 'a/%2E./b/', '..', 'a/b/c/d/e/f/%2e%2e']

  test.each(climbing)('files/%s is a bad path', async (path) => {
    const answer = await raw(`GET ${C}/files/${path} HTTP/1.1\r\n${head}\r\n`, 'message')
    expect(answer).toStartWith('HTTP/1.1 400')
    expect(answer).toContain('invalid_path')
    expect(api.calls).toEqual([])
  })

  test('a bad path without a key is 401 all the same', async () => {
    expect(await raw(`GET ${C}/files/%2e%2e HTTP/1.1\r\nHost: x\r\n\r\n`)).toStartWith('HTTP/1.1 401')
  })

  test('smuggling is refused', async () => {
    const request = `POST /v1/computers HTTP/1.1\r\n${head}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`
    expect(await raw(request)).toMatch(/^HTTP\/1\.1 400[\s\S]*connection: close/i)
    expect(api.calls).toEqual([])
  })

  test('a chunked body over the limit is refused without its end', async () => {
    const chunk = `100000\r\n${'x'.repeat(0x100000)}\r\n`
    const answer = await raw(
      `POST /v1/computers HTTP/1.1\r\n${head}Transfer-Encoding: chunked\r\n\r\n${chunk.repeat(5)}`,
      'payload_too_large',
    )
    expect(answer).toStartWith('HTTP/1.1 413')
  })

  test('a file over 200 MB is refused by its length alone', async () => {
    const answer = await raw(
      `PUT ${C}/files/x HTTP/1.1\r\n${head}Content-Length: 209715201\r\n\r\n`,
      'payload_too_large',
    )
    expect(answer).toStartWith('HTTP/1.1 413')
    expect(api.calls).toEqual([])
  })

  test.each(['a', 'ab', '[::1]'])('Host: %s is routed', async (host) => {
    const body = '{"name":"c"}'
    const request = `POST /v1/computers HTTP/1.1\r\n${head.replace('localhost', host)}Content-Length: ${body.length}\r\n\r\n`
    expect(await raw(request + body)).toStartWith('HTTP/1.1 201')
    expect(await raw(`GET ${C}/files/file HTTP/1.1\r\n${head.replace('localhost', host)}\r\n`)).toStartWith(
      'HTTP/1.1 200',
    )
    expect(api.calls.map(({ name }) => name)).toEqual(['create', 'read'])
  })

  test('a Host that makes no URL is 400', async () => {
    expect(await raw('GET /health HTTP/1.1\r\nHost: a b/\r\n\r\n')).toStartWith('HTTP/1.1 400')
  })
})

describe('following logs', () => {
  const first = async (answer: Response, needle: string): Promise<string> => {
    let seen = ''
    for await (const chunk of answer.body ?? []) {
      seen += new TextDecoder().decode(chunk)
      if (seen.includes(needle)) break
    }
    return seen
  }

  test('sends events and ends with its client', async () => {
    const leaving = new AbortController()
    const headers = { authorization: `Bearer ${KEY}` }
    const answer = await fetch(`${base}${C}/logs?follow=1&tail=5`, { headers, signal: leaving.signal })
    expect(answer.headers.get('content-type')).toBe('text/event-stream; charset=utf-8')
    const seen = await first(answer, 'split')
    expect(seen).toStartWith(': ping\n\ndata: {"ts":')
    expect(seen).toContain('"line":"one"}\n\ndata: {')
    expect(seen).toContain('two\\nsplit')
    leaving.abort()
    while (!api.followed.aborted) await Bun.sleep(5)
    expect(api.calls).toEqual([{ name: 'follow', args: [{ tail: 5, stream: 'all' }] }])
  })

  test('as text sends bare lines', async () => {
    const answer = await send(api, { path: `${C}/logs?follow=true&format=text` })
    expect(await first(answer, 'split')).toBe('one\ntwo\nsplit\n')
  })
})

test('the 121st login in a minute from one address is refused', async () => {
  const own = startTestApi()
  const login = () => fetch(`${own.running.url}/v1/auth/login`, { method: 'POST', body: '{"api_key":"x"}' })
  for (let n = 1; n <= 120; n++) {
    const { status, headers } = await login()
    expect([status, headers.get('ratelimit-limit'), headers.get('ratelimit-remaining')]).toEqual([
      401,
      '120',
      `${120 - n}`,
    ])
  }
  const refused = await login()
  expect(refused.status).toBe(429)
  expect(Number(refused.headers.get('retry-after'))).toBeGreaterThan(0)
  expect(refused.headers.get('ratelimit-reset')).toBe(refused.headers.get('retry-after'))
  expect(await refused.json()).toMatchObject({ error: 'rate_limited' })
  const unread = await fetch(`${own.running.url}/api/v1/auth/register`, { method: 'POST', body: 'no JSON' })
  expect(unread.status).toBe(429)
  await own.running.stop(0)
})

test('metrics with a token need it, from this host too', async () => {
  const own = startTestApi({ ORB_METRICS_TOKEN: 't0ken' })
  const status = async (token?: string) =>
    (await fetch(`${own.running.url}/metrics`, { headers: token ? { authorization: `Bearer ${token}` } : {} })).status
  expect([await status(), await status('wrong'), await status('t0ken')]).toEqual([401, 401, 200])
  await own.running.stop(0)
})

test('the API on a unix socket', async () => {
  const path = `/tmp/orb-api-${process.pid}.sock`
  const own = startTestApi({ ORB_LISTEN: `unix:${path}` })
  expect(own.running).toMatchObject({ url: `unix:${path}`, port: null })
  expect((await fetch('http://localhost/metrics', { unix: path })).status).toBe(200)
  await own.running.stop(0)
  expect(await Bun.file(path).exists()).toBe(false)
})

test(
  'a request without a body may take longer than the ten seconds that the server gives by itself',
  async () => {
    const slow = {
      ...fakeServices([], { aborted: false }).swarms,
      remove: () => Bun.sleep(BEYOND_DEFAULT_MS).then(() => ({ swarm_id: 'swm_1', deleted: 1, failed: [] })),
    }
    const own = startTestApi({}, { swarms: slow })
    const headers = { authorization: `Bearer ${KEY}` }
    const answer = await fetch(`${own.running.url}/v1/swarms/swm_1`, { method: 'DELETE', headers })
    expect([answer.status, await answer.text()]).toEqual([200, '{"swarm_id":"swm_1","deleted":1,"failed":[]}'])
    await own.running.stop(0)
  },
  2 * BEYOND_DEFAULT_MS,
)

test('stop lets open requests end, ends logs, and takes no more', async () => {
  let finish = () => {}
  const held = new Promise<void>((resolve) => {
    finish = resolve
  })
  let arrived = () => {}
  const running = new Promise<void>((resolve) => {
    arrived = resolve
  })
  const own = startTestApi(
    {},
    {
      exec: {
        ...fakeServices([], { aborted: false }).exec,
        async run() {
          arrived()
          await held
          return { stdout: 'done', stderr: '', exit_code: 0, timed_out: false, truncated: false, duration_ms: 1 }
        },
      },
    },
  )
  const headers = { authorization: `Bearer ${KEY}` }
  const open = fetch(`${own.running.url}${C}/exec`, { method: 'POST', headers, body: '{"command":"x"}' })
  const logs = await fetch(`${own.running.url}${C}/logs?follow=1`, { headers })
  await running
  const stopped = own.running.stop(10_000)
  expect(await logs.text()).toContain('"line":"one"')
  finish()
  expect(await (await open).json()).toMatchObject({ stdout: 'done' })
  await stopped
  await expect(fetch(`${own.running.url}/health`)).rejects.toThrow()
})
