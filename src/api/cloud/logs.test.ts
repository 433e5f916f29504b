import { afterAll, beforeAll, expect, test } from 'bun:test'
import { C, play, type Scenario } from '../../../test/support/api-scenario.ts'
import { ADMIN, COMPUTER_ID, fakeServices, startTestApi, type TestApi } from '../testing.ts'
import { logRoutes } from './logs.ts'

let api: TestApi

beforeAll(() => {
  api = startTestApi()
})
afterAll(() => api.running.stop(0))

const SCENARIOS: Scenario[] = [
  {
    name: 'logs',
    path: `${C}/logs`,
    status: 200,
    has: ['"line":"one"'],
    asked: [['logs', { tail: 100, stream: 'all' }]],
  },
  {
    name: 'logs, some',
    path: `${C}/logs?tail=0&stream=stderr`,
    status: 200,
    asked: [['logs', { tail: 0, stream: 'stderr' }]],
  },
  { name: 'logs as text', path: `${C}/logs?format=text`, status: 200, has: ['one\ntwo\n'], hasNot: ['{'] },
  { name: 'logs as text by Accept', path: `${C}/logs`, headers: { accept: 'text/plain' }, status: 200, hasNot: ['{'] },
  ...['-1', '10001', '1.5', 'x', ''].map((tail) => ({
    name: `logs, tail "${tail}"`,
    path: `${C}/logs?tail=${tail}`,
    status: 400,
    error: 'invalid_request',
    has: ['tail must be an integer between 0 and 10000'],
    asked: [],
  })),
  {
    name: 'logs of no stream',
    path: `${C}/logs?stream=x`,
    status: 400,
    error: 'invalid_request',
    has: ['stream must be one of'],
    asked: [],
  },
  {
    name: 'logs, bad follow',
    path: `${C}/logs?follow=yes`,
    status: 400,
    error: 'invalid_request',
    has: ['follow must be'],
  },
  {
    name: 'logs of an unknown computer, followed',
    path: '/v1/computers/x/logs?follow=1',
    status: 404,
    error: 'not_found',
  },
]

test.each(SCENARIOS.map((row) => [row.name, row] as const))('%s', (_, row) => play(api, row))

test('pings keep a silent log alive until its reader leaves', async () => {
  const followed = { aborted: false }
  const [route] = logRoutes(fakeServices([], followed), 5)
  const answer = await route?.run({
    request: new Request(`http://localhost${C}/logs?follow=1`),
    params: { id: COMPUTER_ID },
    who: ADMIN,
    requestId: 'r',
    address: '127.0.0.1',
    isLocal: true,
    stopping: new AbortController().signal,
    setHeader: () => undefined,
    holdOpen: () => undefined,
    upgrade: () => false,
  })
  let seen = ''
  for await (const chunk of answer?.body ?? []) {
    seen += new TextDecoder().decode(chunk)
    if (seen.endsWith(': ping\n\n: ping\n\n')) break
  }
  expect(seen.match(/^data: /gm)?.length).toBe(2)
  while (!followed.aborted) await Bun.sleep(1)
})
