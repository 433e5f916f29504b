import { afterAll, beforeAll, expect, test } from 'bun:test'
import { C, play, type Scenario, send } from '../../../test/support/api-scenario.ts'
import { COMPUTER_ID, DEPLOY_KEY, startTestApi, type TestApi, VIEWER_KEY } from '../testing.ts'

let api: TestApi

beforeAll(() => {
  api = startTestApi()
})
afterAll(() => api.running.stop(0))

const post = { method: 'POST' } as const

const SCENARIOS: Scenario[] = [
  { name: 'jobs', path: `${C}/cron`, status: 200, has: ['"jobs":[]', '"error":"cron.json is not valid JSON"'] },
  { name: 'jobs of no computer', path: '/v1/computers/x/cron', status: 404, error: 'not_found' },
  { name: 'jobs, viewer', path: `${C}/cron`, key: VIEWER_KEY, status: 200 },
  { name: 'jobs, deploy key', path: `${C}/cron`, key: DEPLOY_KEY, status: 403, error: 'forbidden' },
  { name: 'jobs, no key', path: `${C}/cron`, key: null, status: 401, error: 'unauthorized' },
  { name: 'jobs cannot be posted', ...post, path: `${C}/cron`, status: 405, error: 'method_not_allowed' },
  { name: 'runs', path: `${C}/cron/runs`, status: 200, has: ['{"runs":[]}'], asked: [['runs', { limit: 50 }]] },
  {
    name: 'runs, some',
    path: `${C}/cron/runs?job=a.b&limit=500`,
    status: 200,
    asked: [['runs', { job: 'a.b', limit: 500 }]],
  },
  ...['0', '501', '-1', '1.5', 'x', ''].map((limit) => ({
    name: `runs, limit "${limit}"`,
    path: `${C}/cron/runs?limit=${limit}`,
    status: 400,
    error: 'invalid_request',
    has: ['limit must be an integer between 1 and 500'],
    asked: [],
  })),
  { name: 'runs of no computer', path: '/v1/computers/x/cron/runs', status: 404, error: 'not_found' },
  { name: 'trigger', ...post, path: `${C}/cron/a.b/trigger`, status: 200, asked: [['trigger', 'a.b']] },
  {
    name: 'trigger, body that is no JSON',
    ...post,
    path: `${C}/cron/a/trigger`,
    body: new Uint8Array(100_000).fill(255),
    status: 200,
    has: ['"status":"success","exit_code":0,"stdout":""'],
  },
  { name: 'trigger, unknown', ...post, path: `${C}/cron/missing/trigger`, status: 404, error: 'job_not_found' },
  {
    name: 'trigger that could not run',
    ...post,
    path: `${C}/cron/broken/trigger`,
    status: 502,
    has: ['"status":"error","exit_code":null,"stdout":null,"stderr":null,"duration_ms":null,"timed_out":false'],
  },
  {
    name: 'trigger, viewer',
    ...post,
    path: `${C}/cron/a/trigger`,
    key: VIEWER_KEY,
    status: 403,
    error: 'forbidden',
    asked: [],
  },
  { name: 'trigger by GET', path: `${C}/cron/a/trigger`, status: 405, error: 'method_not_allowed' },
]

test.each(SCENARIOS)('$name', (scenario) => play(api, scenario))

test('a trailing slash is ignored, the short id taken', async () => {
  const short = COMPUTER_ID.slice(0, 8)
  for (const path of [`${C}/cron/`, `${C}/cron/runs/`, `/v1/computers/${short}/cron`]) {
    expect([path, (await send(api, { path })).status]).toEqual([path, 200])
  }
})
