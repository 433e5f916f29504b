import { expect } from 'bun:test'
import { COMPUTER_ID, KEY, type TestApi } from '../../src/api/testing.ts'

/** The path of the computer that the fake services know. */
export const C = `/v1/computers/${COMPUTER_ID}`

/** A request, and what its answer must and must not be. */
export interface Scenario {
  name: string
  method?: string
  path: string
  key?: string | null
  headers?: Record<string, string>
  body?: string | Uint8Array<ArrayBuffer>
  status: number
  error?: string
  /** Must be in the text of the answer. */
  has?: string[]
  hasNot?: string[]
  answers?: Record<string, string>
  /** What the services were asked; [] for nothing. */
  asked?: unknown[][]
}

export const send = (api: TestApi, scenario: Omit<Scenario, 'name' | 'status'>): Promise<Response> => {
  const key = scenario.key === undefined ? KEY : scenario.key
  const headers = { ...(key === null ? {} : { authorization: `Bearer ${key}` }), ...scenario.headers }
  return fetch(api.running.url + scenario.path, { method: scenario.method ?? 'GET', headers, body: scenario.body })
}

/** Sends the request and checks the answer and what the services were asked. */
export async function play(api: TestApi, scenario: Scenario): Promise<void> {
  api.calls.length = 0
  const answer = await send(api, scenario)
  const text = await answer.text()
  expect([answer.status, text]).toEqual([scenario.status, expect.any(String)])
  expect(answer.headers.get('x-request-id')).toMatch(/^[0-9a-f-]{36}$/)
  if (scenario.error) {
    expect(answer.headers.get('content-type')).toBe('application/json')
    expect(JSON.parse(text)).toMatchObject({ error: scenario.error, message: expect.stringMatching(/./) })
  }
  for (const part of scenario.has ?? []) expect(text).toContain(part)
  for (const part of scenario.hasNot ?? []) expect(text).not.toContain(part)
  for (const [name, value] of Object.entries(scenario.answers ?? {}))
    expect([name, answer.headers.get(name)]).toEqual([name, value])
  if (scenario.asked) expect(api.calls.map(({ name, args }) => [name, ...args])).toEqual(scenario.asked)
}

/** The request that makes a computer, and what it asks of the service. */
export const create = { method: 'POST', path: '/v1/computers' } as const
export const created = (more = {}) => ['create', { name: 'c', runtime_mb: 512, disk_mb: 1024, user_id: null, ...more }]
