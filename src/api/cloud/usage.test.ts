import { afterAll, beforeAll, test } from 'bun:test'
import { C, play, type Scenario } from '../../../test/support/api-scenario.ts'
import { DEPLOY_KEY, startTestApi, type TestApi, VIEWER_KEY } from '../testing.ts'

let api: TestApi

beforeAll(() => {
  api = startTestApi()
})
afterAll(() => api.running.stop(0))

const bad = { status: 400, error: 'invalid_request', asked: [] }

const SCENARIOS: Scenario[] = [
  {
    name: 'usage',
    path: '/v1/usage',
    key: VIEWER_KEY,
    status: 200,
    has: ['"runtime_gb_hours":0.4', '"checkpoint_cycles":1'],
    asked: [['usage', {}]],
  },
  {
    name: 'usage of a period and a computer, the plus sign unescaped',
    path: '/v1/usage?start=2026-03-01T00:00:00Z&end=2026-03-15T23:59:59+02:00&computer=abc12345&other=1',
    status: 200,
    asked: [['usage', { start: '2026-03-01T00:00:00Z', end: '2026-03-15T23:59:59 02:00', computer: 'abc12345' }]],
  },
  { name: 'usage of an unknown computer', path: '/v1/usage?computer=x', status: 404, error: 'not_found' },
  { name: 'usage without a key', path: '/v1/usage', key: null, status: 401, error: 'unauthorized' },
  { name: 'usage with a deploy key', path: '/v1/usage', key: DEPLOY_KEY, status: 403, error: 'forbidden' },
  { name: 'usage, posted', method: 'POST', path: '/v1/usage', status: 405, error: 'method_not_allowed' },
  ...['start', 'end'].flatMap((name) =>
    ['', 'x', '2026-02-30', '2026-04-19T04:05:00', '1776571500'].map((value) => ({
      name: `usage, ${name} "${value}"`,
      path: `/v1/usage?${name}=${value}`,
      ...bad,
      has: [`${name} must be a time such as 2026-04-19T04:05:00Z or 2026-04-19`],
    })),
  ),
  { name: 'stats', path: `${C}/stats`, status: 200, has: ['"sleep_pct":90'], asked: [['stats', '30d']] },
  { name: 'stats of a life', path: `${C}/stats?window=lifetime`, status: 200, asked: [['stats', 'lifetime']] },
  { name: 'stats of an unknown computer', path: '/v1/computers/x/stats', status: 404, error: 'not_found' },
  { name: 'stats with a deploy key', path: `${C}/stats`, key: DEPLOY_KEY, status: 403, error: 'forbidden' },
  ...['', '30', '7d', 'LIFETIME'].map((window) => ({
    name: `stats, window "${window}"`,
    path: `${C}/stats?window=${window}`,
    ...bad,
    has: ['window must be one of: 30d, lifetime'],
  })),
]

test.each(SCENARIOS.map((row) => [row.name, row] as const))('%s', (_, row) => play(api, row))
