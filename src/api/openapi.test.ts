import { afterAll, beforeAll, expect, test } from 'bun:test'
import { z } from 'zod'
import { C, create } from '../../test/support/api-scenario.ts'
import { KEY, startTestApi, type TestApi } from './testing.ts'

const schema = z.looseObject({})
const body = z.object({ content: z.record(z.string(), z.object({ schema })) })
const operation = z.looseObject({
  operationId: z.string(),
  security: z.array(z.unknown()),
  parameters: z.array(z.object({ name: z.string(), in: z.string(), required: z.boolean(), schema })),
  requestBody: body.optional(),
  responses: z.record(z.string(), z.looseObject({ description: z.string() })),
})
const openApi = z.object({
  openapi: z.literal('3.1.0'),
  info: z.looseObject({ title: z.string(), version: z.literal('1.2.3') }),
  paths: z.record(z.string(), z.record(z.string(), operation)),
  components: z.object({
    schemas: z.record(z.string(), schema),
    securitySchemes: z.looseObject({ bearerAuth: schema }),
  }),
})

let api: TestApi
let document: z.infer<typeof openApi>

beforeAll(async () => {
  api = startTestApi()
  document = openApi.parse(await (await fetch(`${api.running.url}/openapi.json`)).json())
})
afterAll(() => api.running.stop(0))

test('every route is there with its methods', () => {
  const listed = Object.entries(document.paths).map(([path, methods]) => [path, Object.keys(methods).sort().join(' ')])
  expect(Object.fromEntries(listed)).toEqual({
    '/api/v1/auth/register': 'post',
    '/api/v1/auth/login': 'post',
    '/v1/keys': 'get post',
    '/v1/keys/{key_id}': 'delete',
    '/v1/computers': 'get post',
    '/v1/computers/{id}': 'delete get',
    '/v1/computers/{id}/config': 'get post',
    '/v1/computers/{id}/build': 'post',
    '/v1/computers/{id}/builds': 'get',
    '/v1/computers/{id}/builds/{build_id}': 'get',
    '/v1/computers/{id}/agents': 'get post',
    '/v1/computers/{id}/agents/demote': 'post',
    '/v1/computers/{id}/agents/promote': 'post',
    '/v1/computers/{id}/restart': 'post',
    '/v1/computers/{id}/exec': 'post',
    '/v1/computers/{id}/github/bootstrap': 'post',
    '/v1/computers/{id}/github/disconnect': 'post',
    '/v1/computers/{id}/exec/{exec_id}/stdin': 'post',
    '/v1/computers/{id}/logs': 'get',
    '/v1/computers/{id}/cron': 'get',
    '/v1/computers/{id}/cron/runs': 'get',
    '/v1/computers/{id}/cron/{name}/trigger': 'post',
    '/v1/computers/{id}/files': 'get',
    '/v1/computers/{id}/files/{path}': 'get put',
    '/v1/computers/{id}/stats': 'get',
    '/v1/usage': 'get',
    '/v1/webhooks': 'get post',
    '/v1/webhooks/{id}': 'delete',
    '/v1/webhooks/{id}/deliveries': 'get',
    '/v1/computers/{id}/terminal': 'get',
    '/terminal/{id}': 'get',
    '/v1/swarms': 'get post',
    '/v1/swarms/{id}': 'delete get',
    '/health': 'get',
    '/metrics': 'get',
    '/openapi.json': 'get',
    '/docs': 'get',
  })
})

test('references lead somewhere, path parameters are described, names are unique', () => {
  const text = JSON.stringify(document)
  for (const [, name = ''] of text.matchAll(/"\$ref":"#\/components\/schemas\/(\w+)"/g)) {
    expect(Object.keys(document.components.schemas)).toContain(name)
  }
  expect(text).not.toContain('$defs')
  const operations = Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.values(methods).map((item) => ({ path, item })),
  )
  for (const { path, item } of operations) {
    const described = item.parameters.filter((parameter) => parameter.in === 'path').map(({ name }) => name)
    expect([path, described]).toEqual([path, [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => name ?? '')])
  }
  const ids = operations.map(({ item }) => item.operationId)
  expect(new Set(ids).size).toBe(ids.length)
})

test('requests, answers, errors and access of a route', () => {
  const post = document.paths['/v1/computers']?.['post']
  expect(post?.security).toEqual([{ bearerAuth: [] }])
  expect(post?.requestBody?.content['application/json']?.schema).toMatchObject({
    type: 'object',
    required: ['name'],
    properties: { runtime_mb: { type: 'integer', minimum: 64, maximum: 65_536, default: 512 } },
  })
  expect(post?.responses['201']).toMatchObject({
    content: { 'application/json': { schema: { $ref: '#/components/schemas/Computer' } } },
  })
  expect(post?.responses['403']).toMatchObject({
    description: 'forbidden, quota_exceeded',
    content: { 'application/json': { schema: { $ref: '#/components/schemas/Error' } } },
  })
  expect(document.paths['/health']?.['get']?.security).toEqual([])
  const tail = document.paths['/v1/computers/{id}/logs']?.['get']?.parameters.find(({ name }) => name === 'tail')
  expect(tail).toMatchObject({
    in: 'query',
    required: false,
    schema: { type: 'integer', maximum: 10_000, default: 100 },
  })
})

test('an answer has just the fields that the document names', async () => {
  const headers = { authorization: `Bearer ${KEY}` }
  const described = z.object({ required: z.array(z.string()) }).parse(document.components.schemas['Computer'])
  const made = await fetch(api.running.url + create.path, { method: 'POST', headers, body: '{"name":"c"}' })
  expect(Object.keys(z.looseObject({}).parse(await made.json())).sort()).toEqual(described.required.toSorted())
  expect((await fetch(api.running.url + C, { headers })).status).toBe(200)
})

test('the page and all that it loads come from here, under a policy that allows nothing else', async () => {
  const page = await fetch(`${api.running.url}/docs`)
  const html = await page.text()
  expect(page.headers.get('content-security-policy')).toContain("default-src 'none'; script-src 'self'")
  expect(html).not.toMatch(/https?:\/\//)
  const links = [...html.matchAll(/(?:src|href)="(\/[^"]*)"/g)].map(([, link = '']) => link)
  expect(links).toEqual(['/docs/swagger-ui.css', '/docs/swagger-ui-bundle.js', '/docs/start.js'])
  for (const link of links) {
    const asset = await fetch(api.running.url + link)
    expect([link, asset.status, (await asset.text()).length > 0]).toEqual([link, 200, true])
  }
})

test('the page of the generator is not served', async () => {
  for (const path of ['/unserved', '/unserved/openapi.json']) {
    expect((await fetch(api.running.url + path)).status).toBe(404)
  }
})
