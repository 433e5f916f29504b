import { describe, expect, test } from 'bun:test'
import type { ExecRequest, ExecResult, LiveRequest } from '../runtime/commands.ts'
import { LiveCommand } from '../runtime/live-command.ts'
import type { ComputerRow } from '../store/types.ts'
import { createExec } from './exec.ts'
import type { ExecEvent, ExecStream, Principal } from './types.ts'

const WHO: Principal = { orgId: 'o', keyId: 'k', scope: 'full', role: 'admin' }

function setUp() {
  const requests: ExecRequest[] = []
  const held: PromiseWithResolvers<ExecResult>[] = []
  const leased: string[] = []
  const live: LiveRequest[] = []
  const exec = createExec({
    runtime: {
      exec: (_, request) => {
        requests.push(request)
        const one = Promise.withResolvers<ExecResult>()
        held.push(one)
        return one.promise
      },
      async execLive(_, request) {
        live.push(request)
        if (request.argv.includes('impossible')) throw new Error('could not be started')
        const child = Bun.spawn(request.argv, { stdio: [request.stdin ? 'pipe' : 'ignore', 'pipe', 'pipe'] })
        return new LiveCommand(child, { ...request, kill: () => child.kill('SIGKILL') })
      },
    },
    lookup: { computer: (_, id) => computer(id) },
    environmentFacts: ({ id }) => ({
      computerId: id,
      proxyUrl: 'http://p',
      apiUrl: 'http://a',
      ports: [],
      replica: null,
    }),
    lease: ({ id }) => {
      leased.push(id)
      return () => void leased.splice(leased.indexOf(id), 1)
    },
  })
  return { exec, requests, held, leased, live }
}

const computer = (id: string): ComputerRow => ({
  id,
  shortId: id,
  orgId: 'o',
  name: 'n',
  runtimeMb: 64,
  diskMb: 64,
  userId: null,
  swarmId: null,
  replicaIndex: null,
  slot: 1,
  base: 'b',
  createdAt: 0,
  updatedAt: 0,
})

const result: ExecResult = {
  exitCode: 3,
  stdout: 'out',
  stderr: 'err',
  truncated: true,
  timedOut: false,
  durationMs: 5,
}

test('runs the command by bash in /agent/data and answers with what it said', async () => {
  const { exec, requests, held } = setUp()
  const running = exec.run(WHO, 'a', { command: 'echo "$X"; exit 3', timeout_secs: 7 })
  held[0]?.resolve(result)
  expect(await running).toEqual({
    stdout: 'out',
    stderr: 'err',
    exit_code: 3,
    timed_out: false,
    truncated: true,
    duration_ms: 5,
  })
  expect(requests[0]).toMatchObject({
    argv: ['bash', '-c', 'echo "$X"; exit 3'],
    cwd: '/agent/data',
    timeoutMs: 7000,
    maxBytes: 1024 * 1024,
  })
  expect(requests[0]?.env).toMatchObject({ ORB_PROXY_URL: 'http://p', HOME: '/root' })
})

test('keeps the agent from being idle while it runs, however it ends', async () => {
  const { exec, held, leased } = setUp()
  const input = { command: 'true', timeout_secs: 1 }
  const running = [exec.run(WHO, 'a', input), exec.run(WHO, 'b', input)]
  expect(leased).toEqual(['a', 'b'])
  held[0]?.resolve(result)
  await running[0]
  expect(leased).toEqual(['b'])
  held[1]?.reject(new Error('could not be started'))
  await expect(running[1]).rejects.toThrow('could not be started')
  expect(leased).toEqual([])
})

test('refuses the 33rd at once in a computer, but not in another, and takes it once one has ended', async () => {
  const { exec, held, requests } = setUp()
  const input = { command: 'sleep 1', timeout_secs: 30 }
  const running = Array.from({ length: 32 }, () => exec.run(WHO, 'a', input))
  await expect(exec.run(WHO, 'a', input)).rejects.toMatchObject({ code: 'too_many_sessions', status: 429 })
  running.push(exec.run(WHO, 'b', input))
  held[0]?.reject(new Error('could not be started'))
  await expect(running.shift()).rejects.toThrow('could not be started')
  running.push(exec.run(WHO, 'a', input))
  await expect(exec.run(WHO, 'a', input)).rejects.toMatchObject({ code: 'too_many_sessions' })
  expect(requests).toHaveLength(34)
  for (const one of held) one.resolve(result)
  await Promise.all(running)
})

test('refuses a command that is too long, counted in bytes', async () => {
  const { exec, requests } = setUp()
  const command = `${'é'.repeat(64 * 1024)}x`
  await expect(exec.run(WHO, 'a', { command, timeout_secs: 1 })).rejects.toMatchObject({ code: 'invalid_request' })
  expect(requests).toEqual([])
})

async function collected(stream: ExecStream): Promise<ExecEvent[]> {
  const events: ExecEvent[] = []
  for await (const event of stream.events) events.push(event)
  return events
}

const textOf = (events: ExecEvent[], stream: 'stdout' | 'stderr'): string =>
  events.map(({ event, data }) => (event === stream && 'text' in data ? data.text : '')).join('')

const chunks = (...texts: string[]): ReadableStream<Uint8Array> =>
  new ReadableStream({
    start(controller) {
      for (const text of texts) controller.enqueue(new TextEncoder().encode(text))
      controller.close()
    },
  })

describe('a stream', () => {
  const input = { timeout_secs: 30, interactive: false }

  test('tells what comes as it comes, each stream in its order, and the exit last; the agent is not idle meanwhile', async () => {
    const { exec, leased } = setUp()
    const stream = await exec.stream(WHO, 'a', { ...input, command: 'echo a; echo e >&2; echo b; exit 3' })
    expect([stream.id, leased]).toEqual([expect.stringMatching(/^exec_[a-z0-9]{16}$/), ['a']])
    const events = await collected(stream)
    expect([textOf(events, 'stdout'), textOf(events, 'stderr')]).toEqual(['a\nb\n', 'e\n'])
    expect(events.at(-1)).toEqual({
      event: 'exit',
      data: { exit_code: 3, timed_out: false, duration_ms: expect.any(Number) },
    })
    expect(leased).toEqual([])
  })

  test('never splits a character, and shows what is none', async () => {
    const { exec } = setUp()
    const command = `printf '\\xc3'; sleep 0.1; printf '\\xa9\\xf0\\x9f'; sleep 0.1; printf '\\x98\\x80|\\xff|\\xe2\\x82'`
    const events = await collected(await exec.stream(WHO, 'a', { ...input, command }))
    expect(textOf(events, 'stdout')).toBe('é😀|\ufffd|\ufffd')
    for (const { data } of events) expect('text' in data && data.text === '').toBe(false)
  })

  test('is given its input whole, or piece by piece until it is closed', async () => {
    const { exec } = setUp()
    const whole = await exec.stream(WHO, 'a', { ...input, command: 'cat', stdin: 'é'.repeat(100_000) })
    expect(textOf(await collected(whole), 'stdout')).toBe('é'.repeat(100_000))

    const open = await exec.stream(WHO, 'a', { ...input, command: 'cat; echo over', interactive: true })
    const events = collected(open)
    expect(await exec.write(WHO, 'a', open.id, chunks('one ', 'two '), false)).toEqual({ written: 8, closed: false })
    await expect(exec.write(WHO, 'b', open.id, null, true)).rejects.toMatchObject({ code: 'not_found' })
    expect(await exec.write(WHO, 'a', open.id, chunks('three'), true)).toEqual({ written: 5, closed: true })
    expect(textOf(await events, 'stdout')).toBe('one two threeover\n')
    await expect(exec.write(WHO, 'a', open.id, null, true)).rejects.toMatchObject({ code: 'not_found' })
  })

  test('that is stopped ends its command; what was written to it meanwhile is refused', async () => {
    const { exec, leased } = setUp()
    const stream = await exec.stream(WHO, 'a', { ...input, command: 'sleep 1000', interactive: true })
    const writing = exec.write(WHO, 'a', stream.id, chunks('x'.repeat(1_000_000)), false)
    const refused = writing.catch((error: unknown) => error)
    stream.stop()
    expect((await collected(stream)).at(-1)?.data).toMatchObject({ exit_code: 137, timed_out: false })
    expect(await refused).toMatchObject({ code: 'not_found' })
    expect(leased).toEqual([])
  })

  test('counts among those at once, until its command ends, also if it cannot be started', async () => {
    const { exec } = setUp()
    for (let index = 0; index < 40; index++) {
      const failing = exec.stream(WHO, 'a', { ...input, command: 'impossible' })
      // The command is the last of its arguments.
      await expect(failing).rejects.toThrow('could not be started')
    }
    const streams = await Promise.all(
      Array.from({ length: 32 }, () => exec.stream(WHO, 'a', { ...input, command: 'sleep 1000' })),
    )
    const more = exec.stream(WHO, 'a', { ...input, command: 'true' })
    await expect(more).rejects.toMatchObject({ code: 'too_many_sessions' })
    for (const stream of streams) stream.stop()
    await Promise.all(streams.map(collected))
    expect(await collected(await exec.stream(WHO, 'a', { ...input, command: 'true' }))).toHaveLength(1)
  })
})
