import { afterAll, beforeAll, test } from 'bun:test'
import { C, play, type Scenario } from '../../../test/support/api-scenario.ts'
import { startTestApi, type TestApi } from '../testing.ts'

let api: TestApi

beforeAll(() => {
  api = startTestApi()
})
afterAll(() => api.running.stop(0))

const SCENARIOS: Scenario[] = [
  {
    name: 'config as TOML',
    method: 'POST',
    path: `${C}/config`,
    headers: { 'content-type': 'application/toml' },
    body: '[agent]',
    status: 200,
    asked: [['upload', '[agent]', 'toml']],
  },
  {
    name: 'config of any type',
    method: 'POST',
    path: `${C}/config`,
    headers: { 'content-type': 'application/octet-stream' },
    body: '[agent]',
    status: 200,
    asked: [['upload', '[agent]', 'toml']],
  },
  {
    name: 'config as JSON',
    method: 'POST',
    path: `${C}/config`,
    headers: { 'content-type': 'Application/JSON; charset=utf-8' },
    body: '{}',
    status: 200,
    asked: [['upload', '{}', 'json']],
  },
  { name: 'config of 256 KiB', method: 'POST', path: `${C}/config`, body: 'x'.repeat(262_144), status: 200 },
  {
    name: 'config above 256 KiB',
    method: 'POST',
    path: `${C}/config`,
    body: 'x'.repeat(262_145),
    status: 413,
    error: 'payload_too_large',
    asked: [],
  },
  { name: 'no config', path: `${C}/config`, status: 404, error: 'config_not_found' },
]

test.each(SCENARIOS.map((row) => [row.name, row] as const))('%s', (_, row) => play(api, row))
