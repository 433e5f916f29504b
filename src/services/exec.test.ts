import { expect, test } from 'bun:test'
import type { ExecRequest, ExecResult } from '../runtime/commands.ts'
import type { ComputerRow } from '../store/types.ts'
import { createExec } from './exec.ts'
import type { Principal } from './types.ts'

const WHO: Principal = { orgId: 'o', keyId: 'k', scope: 'full', role: 'admin' }

function setUp() {
  const requests: ExecRequest[] = []
  const held: PromiseWithResolvers<ExecResult>[] = []
  const leased: string[] = []
  const exec = createExec({
    runtime: {
      exec: (_, request) => {
        requests.push(request)
        const one = Promise.withResolvers<ExecResult>()
        held.push(one)
        return one.promise
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
  return { exec, requests, held, leased }
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
