import { afterAll, beforeAll, expect, test } from 'bun:test'
import { z } from 'zod'
import { Api, computerPath, filePath } from './api.ts'
import { ApiFailure } from './failure.ts'

const Echo = z.looseObject({
  method: z.string(),
  type: z.string().nullable(),
  body: z.string(),
  key: z.string().nullable(),
})

const refusal = (status: number, error: string, message: string) =>
  Response.json({ error, message }, { status, headers: { 'x-request-id': 'req-1' } })

const ANSWERS: Record<string, (request: Request) => Response | Promise<Response>> = {
  '/echo': async (request) =>
    Response.json({
      method: request.method,
      type: request.headers.get('content-type'),
      body: await request.text(),
      key: request.headers.get('authorization'),
    }),
  '/refused': () => refusal(409, 'name_taken', 'there is one already'),
  '/broken': () => refusal(500, 'internal', 'oh'),
  '/key': () => refusal(401, 'unauthorized', 'no'),
  '/moved': () => new Response(null, { status: 308, headers: { location: 'https://elsewhere/moved' } }),
  '/page': () => new Response('<html>', { status: 502 }),
  '/other': () => Response.json({ hello: 1 }),
}

let server: ReturnType<typeof Bun.serve>
let api: Api

beforeAll(() => {
  server = Bun.serve({
    port: 0,
    fetch: (request) => (ANSWERS[new URL(request.url).pathname] ?? (() => new Response()))(request),
  })
  api = new Api({ url: `http://127.0.0.1:${server.port}`, key: 'orb_k' })
})
afterAll(() => server.stop(true))

test('objects go out as JSON, text as it is, both with the key', async () => {
  const json = await api.ask(Echo, 'POST', '/echo', { a: undefined, b: 1 })
  expect(json).toMatchObject({ method: 'POST', type: 'application/json', body: '{"b":1}', key: 'Bearer orb_k' })
  expect((await api.ask(Echo, 'PUT', '/echo', 'x = 1', { headers: { 'content-type': 'application/toml' } })).type).toBe(
    'application/toml',
  )
})

test.each([
  ['/refused', /^there is one already$/],
  ['/broken', /oh \(request req-1\)/],
  ['/key', /is not valid there: orb login/],
  ['/moved', /redirects to https:\/\/elsewhere/],
  ['/page', /does not answer as Orb Cloud does: status 502/],
  ['/other', /does not answer as Orb Cloud does/],
])('%s: %p', async (path, message) => {
  await expect(api.ask(Echo, 'POST', path)).rejects.toThrow(message)
})

test('a refusal keeps its code, an answer that is expected is none', async () => {
  const refused = await api.send('GET', '/refused').catch((thrown: unknown) => thrown)
  expect(refused).toBeInstanceOf(ApiFailure)
  expect(refused).toMatchObject({ status: 409, code: 'name_taken' })
  expect((await api.send('GET', '/refused', { alsoFine: [409] })).status).toBe(409)
})

test('nobody there', async () => {
  const closed = Bun.serve({ port: 0, fetch: () => new Response() })
  const url = `http://127.0.0.1:${closed.port}`
  await closed.stop(true)
  await expect(new Api({ url, key: null }).send('GET', '/')).rejects.toThrow(`cannot reach ${url}`)
})

test('paths keep what is in them', () => {
  expect(computerPath('id', 'cron', 'a/b', 'trigger')).toBe('/v1/computers/id/cron/a%2Fb/trigger')
  expect(filePath('id', '/agent/a b#?%.txt')).toBe('/v1/computers/id/files/agent/a%20b%23%3F%25.txt')
})
