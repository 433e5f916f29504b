import { describe, expect, test } from 'bun:test'
import type { ExecRequest, ExecResult } from '../../runtime/commands.ts'
import type { ComputerRow } from '../../store/types.ts'
import { BuildShell, Cancelled, lastBytes, OUTPUT_BYTES, OutOfTime } from './shell.ts'

const computer: ComputerRow = {
  id: 'c',
  shortId: 'c',
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
}

/** A shell whose commands write `output`, of which the runtime keeps the end. */
function shell(output: string, hidden: string[], leftMs = 60_000) {
  const requests: ExecRequest[] = []
  const cancelled = new AbortController()
  const exec = async (_: unknown, request: ExecRequest): Promise<ExecResult> => {
    requests.push(request)
    const stdout = Buffer.from(output).subarray(-request.maxBytes).toString()
    return { exitCode: 0, stdout, stderr: '', truncated: false, timedOut: false, durationMs: 1 }
  }
  const deadline = performance.now() + leftMs
  return {
    requests,
    cancelled,
    shell: new BuildShell({ exec, computer, hidden, deadline, cancelled: cancelled.signal }),
  }
}

const command = { argv: ['true'], env: {}, cwd: '/', timeoutMs: 10_000 }

describe('output', () => {
  test('shows no hidden text', async () => {
    const { stdout } = await shell('a secret, another secret', ['secret']).shell.run(command)
    expect(stdout).toBe('a ***, another ***')
  })

  test('shows no end of one whose beginning was cut off', async () => {
    const secret = 'S'.repeat(40)
    for (const shift of [1, 10, 39, 40, 41]) {
      const { stdout } = await shell(`${secret}${'.'.repeat(OUTPUT_BYTES + 40 - shift)}`, [secret]).shell.run(command)
      expect(stdout).toMatch(/^[.*]+$/)
      expect(stdout.length).toBeWithin(OUTPUT_BYTES - secret.length, OUTPUT_BYTES + 1)
    }
  })

  test('is at most the last 256 KiB', async () => {
    const { stdout } = await shell(`${'x'.repeat(OUTPUT_BYTES)}end`, ['secret']).shell.run(command)
    expect(stdout.length).toBe(OUTPUT_BYTES)
    expect(stdout).toEndWith('xend')
  })
})

test('a command has its own time, and no more than the build has left', async () => {
  const { requests, shell: own } = shell('', [])
  await own.run(command)
  expect(requests[0]?.timeoutMs).toBe(10_000)
  const { requests: short, shell: late } = shell('', [], 500)
  await late.run(command)
  expect(short[0]?.timeoutMs).toBeLessThanOrEqual(500)
})

test('no command is started after the end of the build', async () => {
  const { requests, shell: late } = shell('', [], -1)
  await expect(late.run(command)).rejects.toBeInstanceOf(OutOfTime)
  const { cancelled, requests: none, shell: stopped } = shell('', [])
  cancelled.abort()
  await expect(stopped.run(command)).rejects.toBeInstanceOf(Cancelled)
  expect([...requests, ...none]).toEqual([])
})

test('the end of a text starts with a whole character', () => {
  expect(lastBytes('aé', 2)).toBe('é')
  expect(lastBytes('éa', 2)).toBe('a')
  expect(lastBytes('abc', 3)).toBe('abc')
})
