import { afterAll, beforeAll, test } from 'bun:test'
import { C, create, created, play, type Scenario } from '../../../test/support/api-scenario.ts'
import { startTestApi, type TestApi } from '../testing.ts'

let api: TestApi

beforeAll(() => {
  api = startTestApi({ ORB_MAX_RUNTIME_MB: '4096' })
})
afterAll(() => api.running.stop(0))

const bad = { ...create, status: 400, error: 'invalid_request', asked: [] as unknown[][] }

const SCENARIOS: Scenario[] = [
  {
    name: 'all fields',
    ...create,
    body: '{"name":"ü","runtime_mb":64,"disk_mb":2048,"user_id":"u"}',
    status: 201,
    asked: [created({ name: 'ü', runtime_mb: 64, disk_mb: 2048, user_id: 'u' })],
  },
  {
    ...bad,
    name: 'number as text',
    body: '{"name":"c","runtime_mb":"1024"}',
    has: ['runtime_mb must be an integer between 64 and 4096'],
  },
  {
    ...bad,
    name: 'too small',
    body: '{"name":"c","runtime_mb":63}',
    has: ['runtime_mb must be an integer between 64 and 4096'],
  },
  { ...bad, name: 'too large', body: '{"name":"c","runtime_mb":4097}', has: ['runtime_mb must be an integer'] },
  { ...bad, name: 'negative', body: '{"name":"c","disk_mb":-1}', has: ['disk_mb must be an integer'] },
  { ...bad, name: 'fraction', body: '{"name":"c","disk_mb":100.5}', has: ['disk_mb must be an integer'] },
  { ...bad, name: 'huge', body: '{"name":"c","disk_mb":1e400}', has: ['disk_mb must be an integer'] },
  { ...bad, name: 'empty name', body: '{"name":""}', has: ['name must be'] },
  { ...bad, name: 'long name', body: `{"name":"${'x'.repeat(129)}"}`, has: ['name must be'] },
  { ...bad, name: 'name with a control character', body: '{"name":"a\\u0007"}', has: ['name must not contain'] },
  { ...bad, name: 'name of another type', body: '{"name":7}', has: ['name must be a string'] },
  { name: 'list', path: '/v1/computers', status: 200, has: ['"total":1'] },
  { name: 'one, as valid JSON', path: C, status: 200, has: ['lone \ufffd surrogate \\u0001'] },
  { name: 'delete', method: 'DELETE', path: C, status: 200, has: ['"deleted":true'] },
  { name: 'the disk is full', ...create, body: '{"name":"full"}', status: 507, error: 'disk_full' },
  {
    name: 'no room',
    ...create,
    body: '{"name":"busy"}',
    status: 503,
    error: 'no_capacity',
    answers: { 'retry-after': '5' },
  },
  {
    name: 'a defect shows no details',
    ...create,
    body: '{"name":"bug"}',
    status: 500,
    error: 'internal',
    hasNot: ['secret', '/var/lib', 'api.test'],
  },
]

test.each(SCENARIOS.map((row) => [row.name, row] as const))('%s', (_, row) => play(api, row))
