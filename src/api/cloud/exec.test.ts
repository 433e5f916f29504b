import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { COMPUTER_ID, fakeServices, KEY, startTestApi, type TestApi, VIEWER_KEY } from '../testing.ts'

const EXEC = `/v1/computers/${COMPUTER_ID}/exec`
const HEADERS = { authorization: `Bearer ${KEY}` }

let api: TestApi
beforeAll(() => {
  api = startTestApi()
})
afterAll(() => api.running.stop(0))

const post = (path: string, body: unknown, headers: Record<string, string> = {}, signal?: AbortSignal) =>
  fetch(`${api.running.url}${path}`, {
    method: 'POST',
    headers: { ...HEADERS, ...headers },
    body: typeof body === 'string' ? body : JSON.stringify(body),
    signal: signal ?? null,
  })

const EVENTS = [
  'event: start\ndata: {"exec_id":"exec_1"}\n\n',
  'event: stdout\ndata: {"text":"one\\n"}\n\n',
  'event: exit\ndata: {"exit_code":0,"timed_out":false,"duration_ms":1}\n\n',
].join('')

describe('a stream of events', () => {
  test.each([
    ['stream in the body', { stream: true }, {}],
    ['the type that is accepted', {}, { accept: 'text/event-stream' }],
  ])('is asked for by %s', async (_, more, headers) => {
    const answer = await post(EXEC, { command: 'ls', ...more }, headers)
    expect(answer.headers.get('content-type')).toBe('text/event-stream; charset=utf-8')
    expect(await answer.text()).toBe(EVENTS)
    expect(api.calls.at(-1)).toEqual({
      name: 'execStream',
      args: [{ command: 'ls', timeout_secs: 30, interactive: false }],
    })
  })

  test('is not given to whom asks for a plain answer', async () => {
    const answer = await post(EXEC, { command: 'ls', stream: false }, { accept: 'text/event-stream' })
    expect(await answer.json()).toMatchObject({ exit_code: 0 })
  })

  test('shows its first event at once; whoever leaves stops the command', async () => {
    const leaving = new AbortController()
    const answer = await post(EXEC, { command: 'sleep', stream: true }, {}, leaving.signal)
    const reader = answer.body?.getReader()
    expect(new TextDecoder().decode((await reader?.read())?.value)).toStartWith('event: start')
    leaving.abort()
    while (!api.calls.some(({ name }) => name === 'execStop')) await Bun.sleep(5)
  })
})

test('standard input comes with the request', async () => {
  await post(EXEC, { command: 'cat', stdin: 'a\nb' })
  expect(api.calls.at(-1)).toEqual({ name: 'exec', args: [{ command: 'cat', timeout_secs: 30, stdin: 'a\nb' }] })
})

describe('standard input of a command under way', () => {
  test('takes bytes as they are, and is closed when that is said', async () => {
    const answer = await post(`${EXEC}/exec_1/stdin?close=true`, 'raw {')
    expect([answer.status, await answer.json()]).toEqual([200, { written: 5, closed: true }])
    expect(api.calls.at(-1)).toEqual({ name: 'execWrite', args: ['raw {', true] })
    expect(await (await post(`${EXEC}/exec_1/stdin`, '')).json()).toEqual({ written: 0, closed: false })
  })

  test.each([
    ['an unknown command', `${EXEC}/exec_2/stdin`, {}, 404],
    ['an unknown computer', '/v1/computers/nope/exec/exec_1/stdin', {}, 404],
    ['a bad flag', `${EXEC}/exec_1/stdin?close=yes`, {}, 400],
    ['no key', `${EXEC}/exec_1/stdin`, { authorization: '' }, 401],
    ['a key that may only read', `${EXEC}/exec_1/stdin`, { authorization: `Bearer ${VIEWER_KEY}` }, 403],
  ])('is refused for %s', async (_, path, headers, status) => {
    expect((await post(path, 'x', headers)).status).toBe(status)
  })
})

test.each([
  ['interactive without a stream', { interactive: true }, 'interactive'],
  ['interactive with an input', { interactive: true, stream: true, stdin: 'x' }, 'stdin'],
  ['stream as a text', { stream: 'yes' }, 'stream'],
  ['an input that is no text', { stdin: 5 }, 'stdin'],
  ['an input that is too long', { stdin: 'é'.repeat(600 * 1024) }, 'stdin'],
])('refused is %s', async (_, more, says) => {
  const answer = await post(EXEC, { command: 'ls', ...more })
  expect([answer.status, await answer.json()]).toEqual([
    400,
    { error: 'invalid_request', message: expect.stringContaining(says) },
  ])
})

test('pings keep a silent stream open', async () => {
  const { execRoutes } = await import('./exec.ts')
  const services = fakeServices([], { aborted: false })
  const [route] = execRoutes(services, { execTimeoutMs: 1000 } as Parameters<typeof execRoutes>[1], 5)
  const answer = await route?.run({
    request: new Request('http://x/', { method: 'POST', body: '{"command":"sleep","stream":true}' }),
    params: { id: COMPUTER_ID },
    who: { orgId: 'o', keyId: 'k', scope: 'full', role: 'admin' },
    requestId: 'r',
    address: 'a',
    isLocal: true,
    stopping: new AbortController().signal,
    holdOpen: () => undefined,
    setHeader: () => undefined,
    upgrade: () => false,
  })
  const reader = answer?.body?.getReader()
  let text = ''
  while (!text.includes(': ping\n\n: ping\n\n')) text += new TextDecoder().decode((await reader?.read())?.value)
  expect(text).toStartWith('event: start')
  await reader?.cancel()
})
