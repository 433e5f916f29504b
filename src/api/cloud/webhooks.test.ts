import { afterAll, beforeAll, expect, test } from 'bun:test'
import { play, type Scenario } from '../../../test/support/api-scenario.ts'
import { startTestApi, type TestApi, VIEWER_KEY } from '../testing.ts'

let api: TestApi

beforeAll(() => {
  api = startTestApi()
})
afterAll(() => api.running.stop(0))

const create = { method: 'POST', path: '/v1/webhooks' } as const
const URL = 'https://example.com/hook'
const bad = (name: string, body: object, ...has: string[]): Scenario => ({
  name,
  ...create,
  body: JSON.stringify(body),
  status: 400,
  error: 'invalid_request',
  has,
  asked: [],
})

const SCENARIOS: Scenario[] = [
  {
    name: 'a webhook',
    ...create,
    body: JSON.stringify({ url: URL, events: ['agent.spawned', 'computer.created'] }),
    status: 201,
    has: ['"id":"whk_', '"secret":"made-by-the-server"', '"active":true', '"created_at":'],
    hasNot: ['disabled_reason'],
    asked: [['createWebhook', { url: URL, events: ['agent.spawned', 'computer.created'] }]],
  },
  {
    name: 'a webhook with a secret, null as no field',
    ...create,
    body: JSON.stringify({ url: URL, events: ['*'], secret: 'x'.repeat(16) }),
    status: 201,
    has: [`"secret":"${'x'.repeat(16)}"`],
  },
  bad('no url', { events: ['*'] }, 'url is required'),
  bad('a url that is no string', { url: 1, events: ['*'] }, 'url must be'),
  bad('a url that is too long', { url: `${URL}${'x'.repeat(2048)}`, events: ['*'] }, 'url must be', '2048'),
  bad('no events', { url: URL }, 'events is required'),
  bad('events that are no list', { url: URL, events: 'agent.spawned' }, 'events must be a list'),
  bad('an empty list', { url: URL, events: [] }, 'events must be a list of event types, at least one'),
  bad(
    'an unknown event',
    { url: URL, events: ['agent.spawned', 'agent.eaten'] },
    'events.1 must be one of',
    'agent.finished',
  ),
  bad('a short secret', { url: URL, events: ['*'], secret: 'x'.repeat(15) }, 'secret must be', '16'),
  bad('a long secret', { url: URL, events: ['*'], secret: 'x'.repeat(257) }, 'secret must be', '256'),
  { ...bad('a private url', { url: 'https://private', events: ['*'] }, 'private address'), asked: undefined },
  { name: 'all', path: '/v1/webhooks', status: 200, has: ['"total":1', '"disabled_reason":null'], hasNot: ['secret'] },
  {
    name: 'deleted',
    method: 'DELETE',
    path: '/v1/webhooks/whk_1',
    status: 200,
    has: ['"deleted":true', '"id":"whk_1"'],
  },
  { name: 'unknown', method: 'DELETE', path: '/v1/webhooks/whk_2', status: 404, error: 'not_found' },
  { name: 'deliveries', path: '/v1/webhooks/whk_1/deliveries', status: 200, asked: [['deliveries', 100]] },
  { name: 'some deliveries', path: '/v1/webhooks/whk_1/deliveries?limit=5', status: 200, asked: [['deliveries', 5]] },
  ...['0', '1101', 'x'].map((limit) => ({
    name: `deliveries, limit ${limit}`,
    path: `/v1/webhooks/whk_1/deliveries?limit=${limit}`,
    status: 400,
    error: 'invalid_request',
    has: ['limit must be an integer between 1 and 1100'],
    asked: [],
  })),
  { name: 'deliveries of none', path: '/v1/webhooks/whk_2/deliveries', status: 404, error: 'not_found' },
  { name: 'without a key', ...create, key: null, status: 401, error: 'unauthorized' },
]

test.each(SCENARIOS.map((scenario) => [scenario.name, scenario] as const))('%s', (_, scenario) => play(api, scenario))

test('a viewer may look, and nothing more', async () => {
  await play(api, { name: 'list', path: '/v1/webhooks', key: VIEWER_KEY, status: 200 })
  await play(api, {
    name: 'create',
    ...create,
    key: VIEWER_KEY,
    body: '{}',
    status: 403,
    error: 'forbidden',
    asked: [],
  })
  expect(api.calls).toEqual([])
})
