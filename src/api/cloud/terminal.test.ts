import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, jest, test } from 'bun:test'
import { C, play, type Scenario } from '../../../test/support/api-scenario.ts'
import { openSocket, type TestSocket } from '../../../test/support/terminal.ts'
import { DEPLOY_KEY, KEY, startTestApi, type TestApi, VIEWER_KEY } from '../testing.ts'

let api: TestApi

beforeAll(() => {
  api = startTestApi()
})
afterAll(() => api.running.stop(0))
beforeEach(() => void api.calls.splice(0))

const PATH = `${C}/terminal`
const HANDSHAKE = {
  connection: 'Upgrade',
  upgrade: 'websocket',
  'sec-websocket-version': '13',
  'sec-websocket-key': 'AAAAAAAAAAAAAAAAAAAAAA==',
}
const bad = { path: PATH, status: 400, error: 'invalid_request', asked: [] as unknown[][] }

const SCENARIOS: Scenario[] = [
  { name: 'no key', path: PATH, key: null, status: 401, error: 'unauthorized' },
  { name: 'a wrong key in the query', path: `${PATH}?key=orb_no`, key: null, status: 401, error: 'unauthorized' },
  { name: 'a viewer', path: PATH, key: VIEWER_KEY, headers: HANDSHAKE, status: 403, error: 'forbidden' },
  { name: 'a deploy key', path: PATH, key: DEPLOY_KEY, headers: HANDSHAKE, status: 403, error: 'forbidden' },
  { name: 'an unknown computer', path: '/v1/computers/x/terminal', status: 404, error: 'not_found' },
  {
    name: 'one too many',
    path: `${PATH}?session=one_too_many`,
    headers: HANDSHAKE,
    status: 429,
    error: 'too_many_sessions',
    answers: { 'retry-after': '5' },
  },
  { ...bad, name: 'no upgrade', has: ['WebSockets only'] },
  { ...bad, name: 'a key in the query and no upgrade', path: `${PATH}?key=${KEY}`, key: null, hasNot: [KEY] },
  { ...bad, name: 'no columns', path: `${PATH}?cols=0`, has: ['cols must be an integer between 1 and 1000'] },
  { ...bad, name: 'too many rows', path: `${PATH}?rows=1001`, has: ['rows must be an integer between 1 and 1000'] },
  { ...bad, name: 'columns that are no number', path: `${PATH}?cols=x`, has: ['cols must be an integer'] },
  { ...bad, name: 'a session name with a dot', path: `${PATH}?session=a.b`, has: ['session must be 1 to 64'] },
  { ...bad, name: 'an empty session name', path: `${PATH}?session=`, has: ['session must be 1 to 64'] },
  { ...bad, name: 'a long session name', path: `${PATH}?session=${'x'.repeat(65)}`, has: ['session must be 1 to 64'] },
  {
    name: 'another method',
    method: 'POST',
    path: PATH,
    status: 405,
    error: 'method_not_allowed',
    answers: { allow: 'GET, HEAD' },
  },
]

test.each(SCENARIOS.map((row) => [row.name, row] as const))('%s is refused', (_, row) => play(api, row))

const usual = { session: null, size: { columns: 80, rows: 24 } }

test.each([
  ['in the header', '', { authorization: `Bearer ${KEY}` }, usual],
  ['in the query', `?key=${KEY}`, {}, usual],
  ['and a size', `?key=${KEY}&cols=1000&rows=1`, {}, { session: null, size: { columns: 1000, rows: 1 } }],
  ['and a name', `?key=${KEY}&session=a_-Z9`, {}, { ...usual, session: 'a_-Z9' }],
])('a WebSocket opens with the key %s', async (_, query, headers, options) => {
  const socket = await openSocket(`${api.running.url}${PATH}${query}`, headers)
  await socket.shows('hello ü')
  expect(api.calls).toEqual([{ name: 'terminal', args: [options] }])
  socket.close()
  await socket.closed
  await socket.until(() => api.calls.some(({ name }) => name === 'leave'))
})

test('frames are input or a size, and answers are text', async () => {
  const socket = await openSocket(`${api.running.url}${PATH}?key=${KEY}`)
  const typed = [
    'plain\r',
    Buffer.from('binary ü'),
    '{"not":"a size"}',
    '{"cols":3,"rows":4,"more":5}',
    '{"rows',
    Buffer.from('{"cols":1,"rows":1}'),
  ]
  for (const text of typed) socket.send(text)
  await socket.shows(`hello ü${typed.join('')}`)
  expect(api.calls.some(({ name }) => name === 'resize')).toBe(false)
  const sizes = [
    '{"type":"resize","cols":100,"rows":30}',
    '{"cols":101,"rows":31}',
    ' {"cols":9,"rows":9}',
    '{"cols":0,"rows":31}',
    '{"type":"resize","cols":1001,"rows":1}',
    '{"type":"resize"}',
    '{"cols":"5","rows":5}',
    '{"cols":1.5,"rows":5}',
  ]
  for (const size of sizes) socket.send(size)
  socket.send('end')
  // A space makes it no frame of ours, and what has no size to give is none of the shell's business.
  await socket.shows(`hello ü${typed.join('')} {"cols":9,"rows":9}end`)
  const asked = api.calls.filter(({ name }) => name === 'resize').map(({ args }) => args[0])
  expect(asked).toMatchObject([
    { columns: 100, rows: 30 },
    { columns: 101, rows: 31 },
  ])
  expect(socket.binary).toBe(false)
  socket.close()
})

test('a terminal that ends closes the socket with its code and reason', async () => {
  const socket = await openSocket(`${api.running.url}${PATH}?key=${KEY}`)
  socket.send('close 1000 exit:7')
  expect(await socket.closed).toEqual({ code: 1000, reason: 'exit:7' })
})

test('a terminal that fails closes its own socket, no other', async () => {
  const [bad, good] = [
    await openSocket(`${api.running.url}${PATH}?key=${KEY}`),
    await openSocket(`${api.running.url}${PATH}?key=${KEY}`),
  ]
  bad.send('fail')
  expect(await bad.closed).toEqual({ code: 1011, reason: 'internal error' })
  good.send('still here')
  await good.shows('still here')
  good.close()
})

test('a frame of 1 MiB passes, a longer one closes the socket', async () => {
  const socket = await openSocket(`${api.running.url}${PATH}?key=${KEY}`)
  const largest = 'x'.repeat(1024 * 1024)
  socket.send(largest)
  await socket.shows(`hello ü${largest}`)
  socket.send(`${largest}x`)
  expect((await socket.closed).code).toBe(1009)
  await socket.until(() => api.calls.some(({ name }) => name === 'leave'))
})

test('a server that stops says so', async () => {
  const other = startTestApi()
  const socket = await openSocket(`${other.running.url}${PATH}?key=${KEY}`)
  await socket.shows('hello')
  await other.running.stop(5_000)
  expect((await socket.closed).code).toBe(1012)
})

describe('a client', () => {
  beforeEach(() => void jest.useFakeTimers())
  afterEach(() => void jest.useRealTimers())

  /** Waits for it in what came without a timer, which would not end. */
  async function shows(socket: TestSocket, text: string): Promise<void> {
    for (let count = 0; !socket.text.includes(text); count++) {
      expect(count).toBeLessThan(1000)
      await fetch(`${api.running.url}/docs`)
    }
  }

  test('that answers pings stays', async () => {
    const socket = await openSocket(`${api.running.url}${PATH}?key=${KEY}`)
    for (let count = 0; count < 6; count++) {
      jest.advanceTimersByTime(25_000)
      // The answer to this comes after the pong.
      socket.send(`<${count}>`)
      await shows(socket, `<${count}>`)
    }
    socket.send('close 1000 exit:0')
    expect((await socket.closed).code).toBe(1000)
  })

  test('that answers none for a minute is cut off', async () => {
    const socket = await openSocket(`${api.running.url}${PATH}?key=${KEY}`)
    await shows(socket, 'hello')
    jest.advanceTimersByTime(60_000)
    expect((await socket.closed).code).toBe(1001)
  })
})
