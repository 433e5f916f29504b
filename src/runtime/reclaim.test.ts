/* Agents in swap and back, with a swap file of the test's own. Needs root. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import { TestServer } from '../../test/support/network.ts'
import { allHeld, startRuntime, type TestRuntime } from '../../test/support/runtime.ts'
import { until } from '../../test/support/sweep.ts'
import type { ComputerRow } from '../store/types.ts'
import { readMemory } from './memory.ts'
import { activeSwap, disableSwap, enableSwap, swapFileProblem } from './swap.ts'

setDefaultTimeout(60_000)

const MIB = 1024 * 1024
const WAIT_MS = 10_000
const SWAP_BYTES = 256 * MIB
const DATA_MIB = 60

/** Counts the lines that come over its connection, looks at its memory when it is asked to, and has a child behind a pipe. */
const AGENT = `
const { connect } = require('node:net'), { spawn } = require('node:child_process')
const [port, host] = process.argv.slice(2)
const memory = require('node:crypto').randomFillSync(Buffer.alloc(${DATA_MIB} << 20))
const sum = () => { let total = 0; for (const byte of memory) total = (total + byte) % 65521; return total }
const before = sum()
const child = spawn('cat')
let count = 0
const socket = connect(port, host, () => socket.write('"ready"\\n'))
socket.on('data', (data) => {
  const told = data.toString().trim()
  child.stdout.once('data', (piped) => socket.write(JSON.stringify({
    told: String(piped), count: ++count, intact: told === 'check' ? sum() === before : null, pid: process.pid
  }) + '\\n'))
  child.stdin.write(told)
})
`
const Answer = z.object({ told: z.string(), count: z.number(), intact: z.boolean().nullable(), pid: z.number() })

async function eventually(done: () => boolean, what: string): Promise<void> {
  if (!(await until(done, WAIT_MS))) throw new Error(`did not come in time: ${what}`)
}

describe('a swap file', () => {
  let dir: string
  let file: string
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'orb-test-'))
    file = join(dir, 'orb.swap')
  })
  afterEach(async () => {
    await disableSwap(file)
    rmSync(dir, { recursive: true })
  })

  test('is made, whole and for root alone, enabled, and taken away again', async () => {
    const before = readMemory().swapTotalBytes
    expect(await enableSwap(file, SWAP_BYTES)).toBe('made')
    expect(Math.abs((activeSwap(file)?.bytes ?? 0) - SWAP_BYTES)).toBeLessThan(MIB)
    expect(readMemory().swapTotalBytes).toBeGreaterThan(before + SWAP_BYTES - MIB)
    const { mode, size, blocks } = statSync(file)
    expect([mode & 0o777, size, blocks * 512 >= size]).toEqual([0o600, SWAP_BYTES, true])
    await disableSwap(file)
    expect([activeSwap(file), existsSync(file)]).toEqual([null, false])
  })

  test('that is enabled already is adopted, of another size replaced', async () => {
    await enableSwap(file, SWAP_BYTES)
    const { ino } = statSync(file)
    expect(await enableSwap(file, SWAP_BYTES)).toBe('adopted')
    expect(statSync(file).ino).toBe(ino)
    expect(await enableSwap(file, SWAP_BYTES / 2)).toBe('made')
    expect(Math.abs((activeSwap(file)?.bytes ?? 0) - SWAP_BYTES / 2)).toBeLessThan(MIB)
    expect(await enableSwap(file, 0)).toBe('none')
    expect([activeSwap(file), existsSync(file)]).toEqual([null, false])
  })

  test('that lies there disabled is made anew', async () => {
    writeFileSync(file, 'cut off half way')
    expect(await enableSwap(file, SWAP_BYTES)).toBe('made')
    expect(activeSwap(file)).not.toBeNull()
  })

  test('is refused with the reason where the file system cannot have one, or has no room', async () => {
    expect(swapFileProblem('/proc')).toContain('ext4 or xfs')
    await expect(enableSwap('/proc/orb.swap', SWAP_BYTES)).rejects.toThrow('ext4 or xfs')
    await expect(enableSwap(file, 2 ** 50)).rejects.toThrow(/fallocate/)
    expect([activeSwap(file), existsSync(file)]).toEqual([null, false])
  })

  test('is found whatever its path looks like', async () => {
    const odd = join(dir, 'a b\\c.swap')
    await enableSwap(odd, SWAP_BYTES)
    expect(activeSwap(odd)).not.toBeNull()
    await disableSwap(odd)
    expect(activeSwap(odd)).toBeNull()
  })
})

describe('an agent', () => {
  let proxy: TestServer
  let orb: TestRuntime
  let computer: ComputerRow
  beforeAll(async () => {
    proxy = new TestServer()
    orb = await startRuntime(proxy.port)
    await enableSwap(orb.options.data.swap, SWAP_BYTES)
  })
  beforeEach(async () => {
    computer = await orb.computer()
  })
  afterEach(async () => {
    await orb.runtime.down(computer)
    await orb.runtime.erase(computer)
  })
  afterAll(async () => {
    if (orb) await disableSwap(orb.options.data.swap)
    await orb?.[Symbol.asyncDispose]()
    proxy[Symbol.dispose]()
  })

  async function startAgent() {
    writeFileSync(join(orb.runtime.paths(computer).rootfs, 'agent/code/agent.js'), AGENT)
    const known = proxy.peers.length
    await orb.runtime.spawnAgent(computer, {
      argv: ['node', 'agent.js', String(proxy.port), orb.runtime.network.gateway],
      env: { PATH: '/usr/bin:/bin', UV_USE_IO_URING: '0' },
      cwd: '/agent/code',
    })
    await eventually(() => proxy.peers[known]?.received === '"ready"\n', 'the agent’s connection')
    const peer = proxy.peers[known]
    if (!peer) throw new Error('no connection')
    return async (text: string) => {
      peer.received = ''
      peer.write(`${text}\n`)
      await eventually(() => peer.received.endsWith('\n'), 'the agent’s answer')
      return Answer.parse(JSON.parse(peer.received))
    }
  }

  const reclaim = (signal = new AbortController().signal) => orb.runtime.reclaimAgent(computer, signal)

  test('goes to swap and comes back as it was, again and again', async () => {
    const tell = await startAgent()
    const { pid } = await tell('first')
    for (const count of [2, 3, 4]) {
      await orb.runtime.freezeAgent(computer)
      const { residentBytes, swappedBytes } = await reclaim()
      expect(swappedBytes).toBeGreaterThan(DATA_MIB * MIB)
      expect(residentBytes).toBeLessThan(6 * MIB)
      expect(orb.runtime.agentMemory(computer)).toBe(residentBytes)
      orb.runtime.thawAgent(computer)
      expect(await tell('again')).toEqual({ told: 'again', count, intact: null, pid })
    }
    // Most of it was never asked for, and never came back.
    expect(orb.runtime.agentMemory(computer)).toBeLessThan((DATA_MIB / 2) * MIB)
    expect(await tell('check')).toEqual({ told: 'check', count: 5, intact: true, pid })
  })

  test('that is called back half way runs on', async () => {
    const tell = await startAgent()
    await orb.runtime.freezeAgent(computer)
    const abort = new AbortController()
    const under = reclaim(abort.signal)
    await eventually(() => orb.runtime.agentSwap(computer) > 0, 'the first page in swap')
    abort.abort()
    const { swappedBytes } = await under
    orb.runtime.thawAgent(computer)
    expect(await tell('check')).toMatchObject({ count: 1, intact: true })
    expect(swappedBytes).toBeGreaterThan(0)
    // Stopped before it began.
    await orb.runtime.freezeAgent(computer)
    const resident = orb.runtime.agentMemory(computer)
    await reclaim(AbortSignal.abort())
    expect(orb.runtime.agentMemory(computer)).toBeGreaterThan(resident - MIB)
    orb.runtime.thawAgent(computer)
    expect(await tell('more')).toMatchObject({ count: 2 })
  })

  test('in swap can be dumped, and is whole afterwards', async () => {
    const tell = await startAgent()
    await orb.runtime.freezeAgent(computer)
    await reclaim()
    const { bytes } = await orb.runtime.checkpoints.dump(computer, '1')
    expect(bytes).toBeGreaterThan(DATA_MIB * MIB)
    expect([orb.runtime.agentMemory(computer) < 4 * MIB, orb.runtime.agentSwap(computer)]).toEqual([true, 0])
    await orb.runtime.checkpoints.restore(computer, '1', false, allHeld)
    expect(await tell('check')).toMatchObject({ count: 1, intact: true })
  })

  test('is not swapped unless it is told to sleep', async () => {
    const tell = await startAgent()
    // What gives page cache back takes no memory of programs.
    await orb.runtime.freezeAgent(computer)
    await orb.runtime.checkpoints.dump(computer, '1')
    await orb.runtime.checkpoints.restore(computer, '1', false, allHeld)
    await orb.runtime.checkpoints.drained(computer)
    expect(await tell('check')).toMatchObject({ intact: true })
    expect(orb.runtime.agentSwap(computer)).toBe(0)
  })

  test('swap that is taken away brings it back into memory', async () => {
    const tell = await startAgent()
    await orb.runtime.freezeAgent(computer)
    await reclaim()
    await disableSwap(orb.options.data.swap)
    expect(orb.runtime.agentSwap(computer)).toBe(0)
    expect(orb.runtime.agentMemory(computer)).toBeGreaterThan(DATA_MIB * MIB)
    orb.runtime.thawAgent(computer)
    expect(await tell('check')).toMatchObject({ count: 1, intact: true })
    await enableSwap(orb.options.data.swap, SWAP_BYTES)
  })
})
