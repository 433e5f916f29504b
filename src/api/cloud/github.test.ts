import { afterAll, beforeAll, test } from 'bun:test'
import { C, play, type Scenario } from '../../../test/support/api-scenario.ts'
import { startTestApi, type TestApi, VIEWER_KEY } from '../testing.ts'

let api: TestApi

beforeAll(() => {
  api = startTestApi()
})
afterAll(() => api.running.stop(0))

const bootstrap = { method: 'POST', path: `${C}/github/bootstrap` }
const disconnect = { method: 'POST', path: `${C}/github/disconnect` }
const refused = { status: 400, error: 'invalid_request', asked: [] }

const SCENARIOS: Scenario[] = [
  {
    name: 'bootstrap',
    ...bootstrap,
    body: '{"pat":"ghp_x","api_key":null,"more":1}',
    status: 200,
    has: ['"first_build_id":"build_1"'],
    hasNot: ['ghp_x'],
    asked: [['bootstrap', { pat: 'ghp_x' }]],
  },
  {
    name: 'bootstrap with everything',
    ...bootstrap,
    body: '{"pat":"ghp_x","api_key":"orb_y","branch":"b"}',
    status: 200,
    asked: [['bootstrap', { pat: 'ghp_x', api_key: 'orb_y', branch: 'b' }]],
  },
  { name: 'bootstrap without a token', ...bootstrap, ...refused, has: ['pat is required'] },
  { name: 'bootstrap with a token of a number', ...bootstrap, body: '{"pat":1}', ...refused, has: ['pat must be'] },
  {
    name: 'bootstrap with a token that breaks its header',
    ...bootstrap,
    body: '{"pat":"ghp_x\\r\\nX-A: b"}',
    ...refused,
    hasNot: ['ghp_x'],
  },
  {
    name: 'bootstrap by a viewer',
    ...bootstrap,
    key: VIEWER_KEY,
    body: '{"pat":"p"}',
    status: 403,
    error: 'forbidden',
  },
  {
    name: 'bootstrap of nothing',
    method: 'POST',
    path: '/v1/computers/x/github/bootstrap',
    body: '{"pat":"p"}',
    status: 404,
    error: 'not_found',
  },
  {
    name: 'disconnect',
    ...disconnect,
    body: '{"pat":"ghp_x"}',
    status: 200,
    has: ['"secret_deleted":false'],
    asked: [['disconnect', 'ghp_x']],
  },
  { name: 'disconnect without a token', ...disconnect, ...refused, has: ['pat is required'] },
  { name: 'looking', path: `${C}/github/bootstrap`, status: 405, error: 'method_not_allowed' },
]

test.each(SCENARIOS.map((row) => [row.name, row] as const))('%s', (_, row) => play(api, row))
