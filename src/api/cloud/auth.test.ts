import { afterAll, beforeAll, test } from 'bun:test'
import { play, type Scenario } from '../../../test/support/api-scenario.ts'
import { KEY, startTestApi, type TestApi } from '../testing.ts'

let api: TestApi

beforeAll(() => {
  api = startTestApi()
})
afterAll(() => api.running.stop(0))

const SCENARIOS: Scenario[] = [
  {
    name: 'register',
    method: 'POST',
    path: '/api/v1/auth/register',
    key: null,
    body: '{"email":"a@b.c"}',
    status: 201,
    has: ['"tenant_id"', '"api_key"'],
  },
  {
    name: 'register by alias',
    method: 'POST',
    path: '/v1/auth/register',
    key: null,
    body: '{"email":"a@b.c"}',
    status: 201,
  },
  {
    name: 'register without email',
    method: 'POST',
    path: '/api/v1/auth/register',
    key: null,
    status: 400,
    error: 'invalid_request',
    has: ['email is required'],
  },
  {
    name: 'register again',
    method: 'POST',
    path: '/api/v1/auth/register',
    key: null,
    body: '{"email":"taken@example.com"}',
    status: 409,
    error: 'email_taken',
  },
  {
    name: 'login',
    method: 'POST',
    path: '/api/v1/auth/login',
    key: null,
    body: `{"api_key":"${KEY}"}`,
    status: 200,
    has: ['"expires_in":86400'],
  },
  {
    name: 'login with a wrong key',
    method: 'POST',
    path: '/api/v1/auth/login',
    key: null,
    body: '{"api_key":"x"}',
    status: 401,
    error: 'unauthorized',
  },
  {
    name: 'make a key',
    method: 'POST',
    path: '/v1/keys',
    body: '{"name":"ci"}',
    status: 201,
    asked: [['createKey', 'ci']],
  },
  { name: 'list keys', path: '/v1/keys', status: 200, has: ['"keys":[]'] },
  { name: 'revoke a key', method: 'DELETE', path: '/v1/keys/k9', status: 200, has: ['"revoked":true'] },
]

test.each(SCENARIOS.map((row) => [row.name, row] as const))('%s', (_, row) => play(api, row))
