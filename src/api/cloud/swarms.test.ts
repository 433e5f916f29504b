import { afterAll, beforeAll, expect, test } from 'bun:test'
import { play, type Scenario, send } from '../../../test/support/api-scenario.ts'
import { DEPLOY_KEY, startTestApi, type TestApi, VIEWER_KEY } from '../testing.ts'

let api: TestApi

beforeAll(() => {
  api = startTestApi({ ORB_MAX_RUNTIME_MB: '4096' })
})
afterAll(() => api.running.stop(0))

const create = { method: 'POST', path: '/v1/swarms' } as const
const bad = { ...create, status: 400, error: 'invalid_request', asked: [] as unknown[][] }
const order = (more: object) => JSON.stringify({ name: 'workers', replicas: 2, orb_config: {}, ...more })
const input = { name: 'workers', replicas: 2, orb_config: {}, runtime_mb: 512, disk_mb: 1024 }

const SCENARIOS: Scenario[] = [
  {
    name: 'all up',
    ...create,
    body: order({}),
    status: 201,
    has: ['"swarm_id":"swm_abc123xyz0"', '"deployed":2', '"failed":[]', '"replica_index":0'],
    asked: [['createSwarm', input]],
  },
  {
    name: 'all fields',
    ...create,
    body: order({ org_secrets: { A: '' }, runtime_mb: 64, disk_mb: 2048, orb_config: { agent: { name: 'a' } } }),
    status: 201,
    asked: [
      [
        'createSwarm',
        { ...input, org_secrets: { A: '' }, runtime_mb: 64, disk_mb: 2048, orb_config: { agent: { name: 'a' } } },
      ],
    ],
  },
  { name: 'some up', ...create, body: order({ name: 'partly' }), status: 207, has: ['"error":"deploy_failed"'] },
  { name: 'name taken', ...create, body: order({ name: 'taken' }), status: 409, error: 'name_taken' },
  { name: 'a defect', ...create, body: order({ name: 'broken' }), status: 500, error: 'internal', hasNot: ['secret'] },
  ...[0, 101, 2.5, '2'].map((replicas) => ({
    ...bad,
    name: `${JSON.stringify(replicas)} replicas`,
    body: order({ replicas }),
    has: ['replicas must be an integer between 1 and 100'],
  })),
  ...['', '-a', 'a b', 'ä', 'a/b', 'x'.repeat(101)].map((name) => ({
    ...bad,
    name: `a swarm called ${name.slice(0, 5)}`,
    body: order({ name }),
    has: ['name must be'],
  })),
  { ...bad, name: 'no name', body: '{"replicas":1,"orb_config":{}}', has: ['name is required'] },
  { ...bad, name: 'no replicas', body: '{"name":"a","orb_config":{}}', has: ['replicas is required'] },
  { ...bad, name: 'no config', body: '{"name":"a","replicas":1}', has: ['orb_config is required'] },
  { ...bad, name: 'too much memory', body: order({ runtime_mb: 4097 }), has: ['runtime_mb must be an integer'] },
  { ...bad, name: 'too small a disk', body: order({ disk_mb: 63 }), has: ['disk_mb must be an integer'] },
  { name: 'a viewer makes none', ...create, body: order({}), key: VIEWER_KEY, status: 403, error: 'forbidden' },
  { name: 'a deploy key makes none', ...create, body: order({}), key: DEPLOY_KEY, status: 403, error: 'forbidden' },
  { name: 'list', path: '/v1/swarms', status: 200, has: ['"swarms":[{', '"total":1'] },
  { name: 'one', path: '/v1/swarms/swm_abc123xyz0', key: VIEWER_KEY, status: 200, has: ['"replicas":2'] },
  { name: 'one by name', path: '/v1/swarms/workers', status: 200, has: ['"computers":[{'] },
  { name: 'unknown', path: '/v1/swarms/other', status: 404, error: 'not_found' },
  { name: 'delete', method: 'DELETE', path: '/v1/swarms/workers', status: 200, has: ['"deleted":1', '"failed":[]'] },
  { name: 'some are left', method: 'DELETE', path: '/v1/swarms/stuck', status: 207, has: ['"error":"internal"'] },
  { name: 'another method', method: 'PUT', path: '/v1/swarms/workers', status: 405, error: 'method_not_allowed' },
]

test.each(SCENARIOS.map((row) => [row.name, row] as const))('%s', (_, row) => play(api, row))

const events = (body: string): Promise<Response> =>
  send(api, { ...create, headers: { accept: 'text/event-stream' }, body })

test('on request the progress is streamed, and at last the answer', async () => {
  const answer = await events(order({ name: 'partly' }))
  expect([answer.status, answer.headers.get('content-type')]).toEqual([200, 'text/event-stream; charset=utf-8'])
  const blocks = (await answer.text()).trimEnd().split('\n\n')
  const seen = blocks.map((block) => /^event: (\w+)\ndata: (.*)$/.exec(block)?.slice(1) ?? [])
  expect(seen.map(([event]) => event)).toEqual(['progress', 'progress', 'result'])
  const data = seen.map(([, text = '']) => JSON.parse(text))
  expect(data.slice(0, 2)).toMatchObject([
    { phase: 'created', replica_index: null },
    { phase: 'deployed', replicas: 2 },
  ])
  expect(data[2]).toEqual(await (await send(api, { ...create, body: order({ name: 'partly' }) })).json())
})

test('what is refused is an answer, not a stream; what breaks later is its last event', async () => {
  const refused = await events(order({ name: 'taken' }))
  expect([refused.status, refused.headers.get('content-type')]).toEqual([409, 'application/json'])
  const broken = await (await events(order({ name: 'broken' }))).text()
  expect(broken).toMatch(/^event: error\ndata: \{"error":"internal","message":"internal error/)
  expect(broken).not.toContain('secret')
})
