/* Agents that sleep in swap: a swap file of orb's own, waits that are known to be short, dumps that fail. */
import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { activeSwap } from '../../src/runtime/swap.ts'
import type { Computer } from '../support/computer.ts'
import { Gates, timesAsked } from '../support/gates.ts'
import { type LlmServer, startLlmServer } from '../support/llm-server.ts'
import { CHECKPOINT_AFTER_MS, type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'
import { until } from '../support/sweep.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

const MB = 1024 * 1024
const DATA_MB = 100
/** At least this much of it is gone. What may stay is page cache that programs outside use as well. */
const GONE_BYTES = 95 * MB
/** An answer that comes this long after the agent's time for the disk is worth no dump. */
const SHORT_WAIT_MS = CHECKPOINT_AFTER_MS + 400
/** Answers that the policy wants to have seen. */
const KNOWN_WAITS = 4

const gates = new Gates()
let orb: Orb
let llm: LlmServer

beforeAll(async () => {
  llm = startLlmServer({ answerWhen: gates.answerWhen })
  orb = await startOrb({ env: { ORB_SWAP_GB: '1' } })
})
afterEach(() => gates.openAll())
afterAll(async () => {
  await orb?.stop()
  await llm?.stop()
})

const swapFile = () => join(orb.dataDir, 'orb.swap')
const reclaims = async (computer: Computer) =>
  (await computer.lines('orb')).filter((line) => line.startsWith('reclaimed (llm), '))
const checkpoints = async (computer: Computer) =>
  (await computer.lines('orb')).filter((line) => line.startsWith('checkpointed (llm), ')).length

async function waitForReclaim(computer: Computer, before: number): Promise<void> {
  const came = await until(async () => (await reclaims(computer)).length > before, 20_000)
  if (!came) throw new Error(`not reclaimed:\n${(await computer.lines('orb')).join('\n')}`)
}

test('orb makes the swap file that the settings want', () => {
  expect(activeSwap(swapFile())?.bytes).toBeGreaterThan(1000 * MB)
  expect(statSync(swapFile()).mode & 0o777).toBe(0o600)
})

describe('an agent whose answers come soon', () => {
  let computer: Computer
  beforeAll(async () => {
    computer = await orb.computer({ runtime_mb: 512 })
    await computer.deployAgent({ llmPort: llm.port, env: { DATA_MB: String(DATA_MB) } })
    for (let index = 0; index < KNOWN_WAITS; index++) {
      await computer.ask({ id: `known-${index}`, prompt: 'known', delayMs: SHORT_WAIT_MS })
      await computer.outcome(`known-${index}`)
    }
  })

  test('sleeps in swap, and wakes as the same process', async () => {
    gates.shut('short')
    const before = { ...(await computer.state()), pid: (await computer.agent())?.pid }
    const full = computer.agentMemoryBytes()
    const [seen, dumped] = [(await reclaims(computer)).length, await checkpoints(computer)]
    await computer.ask({ id: 'short', prompt: 'short' })
    await waitForReclaim(computer, seen)
    expect(computer.agentMemoryBytes()).toBeLessThan(full - GONE_BYTES)
    const asleep = await computer.agent()
    expect(asleep).toMatchObject({ state: 'frozen', pid: before.pid })
    expect(asleep?.resident_bytes).toBeLessThan(full - GONE_BYTES)
    const [, swapped] =
      /^reclaimed \(llm\), ([\d.]+) MB to swap in \d+ ms/.exec((await reclaims(computer)).at(-1) ?? '') ?? []
    expect(Number(swapped)).toBeGreaterThan(DATA_MB - 10)
    gates.open('short')
    expect(await computer.outcome('short')).toEqual({
      id: 'short',
      answer: 'echo: short',
      life: before.life,
      count: before.count + 1,
      intact: true,
    })
    const awake = await computer.agent()
    expect(awake).toMatchObject({ state: 'running', pid: before.pid })
    // It has looked at all its data.
    expect(awake?.resident_bytes).toBeGreaterThan((DATA_MB - 10) * MB)
    expect(timesAsked(llm.requests, 'short')).toBe(1)
    expect(await checkpoints(computer)).toBe(dumped)
  })

  test('is called back by an answer that comes while its memory is on its way out', async () => {
    gates.shut('early')
    const { life } = await computer.state()
    const full = computer.agentMemoryBytes()
    await computer.ask({ id: 'early', prompt: 'early' })
    expect(await until(() => computer.agentMemoryBytes() < full - 2 * MB, 20_000)).toBe(true)
    gates.open('early')
    expect(await computer.outcome('early')).toMatchObject({ answer: 'echo: early', life, intact: true })
    expect(timesAsked(llm.requests, 'early')).toBe(1)
  })

  test('goes to disk when its answer does not come as soon as expected', async () => {
    gates.shut('long')
    const { life } = await computer.state()
    const seen = (await reclaims(computer)).length
    await computer.ask({ id: 'long', prompt: 'long' })
    await waitForReclaim(computer, seen)
    const asleep = await computer.waitForState('checkpointed')
    expect(asleep).toMatchObject({ pid: null, sleep_reason: 'llm' })
    expect(asleep.resident_bytes).toBeLessThan(2 * MB)
    gates.open('long')
    expect(await computer.outcome('long')).toMatchObject({ answer: 'echo: long', life, intact: true })
  })

  test('goes to disk at once when somebody asks for that, and wakes on promote', async () => {
    gates.shut('demoted')
    const { life } = await computer.state()
    const seen = (await reclaims(computer)).length
    await computer.ask({ id: 'demoted', prompt: 'demoted', delayMs: SHORT_WAIT_MS })
    await waitForReclaim(computer, seen)
    expect((await computer.call('POST', '/agents/demote')).json).toMatchObject({ state: 'checkpointed' })
    expect((await computer.call('POST', '/agents/promote')).json).toMatchObject({ state: 'running' })
    gates.open('demoted')
    expect(await computer.outcome('demoted')).toMatchObject({ answer: 'echo: demoted', life, intact: true })
  })
})

/** A process that another one traces: CRIU cannot dump it. */
const UNDUMPABLE = `
import ctypes, os, signal, time
child = os.fork()
if child == 0:
    ctypes.CDLL(None).ptrace(0, 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
os.waitpid(child, os.WUNTRACED)
print('tracing', flush=True)
time.sleep(1000)
`

describe('an agent that cannot be dumped', () => {
  let computer: Computer
  beforeAll(async () => {
    computer = await orb.computer({ runtime_mb: 512 })
    await computer.deployAgent({ llmPort: llm.port, env: { DATA_MB: String(DATA_MB) } })
    await computer.put('agent/code/trace.py', UNDUMPABLE)
    await computer.spawnInAgent('exec python3 trace.py')
    await computer.waitForLine((line) => line === 'tracing')
  })

  const failures = async () =>
    (await computer.lines('orb')).filter((line) => line.startsWith('checkpoint failed: ')).length

  test('sleeps in swap, survives that, and is not dumped again at each call', async () => {
    const before = await computer.state()
    for (const id of ['first', 'second', 'third']) {
      gates.shut(id)
      const [seen, full] = [(await reclaims(computer)).length, computer.agentMemoryBytes()]
      await computer.ask({ id, prompt: id })
      await waitForReclaim(computer, seen)
      expect((await computer.agent())?.state).toBe('frozen')
      expect(computer.agentMemoryBytes()).toBeLessThan(full - GONE_BYTES)
      gates.open(id)
      expect(await computer.outcome(id)).toMatchObject({ answer: `echo: ${id}`, life: before.life, intact: true })
    }
    // For a failure at each of the three calls, their pauses would have to be over: half a minute.
    expect(await failures()).toBeLessThan(3)
    await computer.expectStarts(1)
  })

  test('is dumped again once nothing hinders that and somebody asks for it', async () => {
    const before = await computer.state()
    await computer.sh('pkill -KILL -f trace.py')
    expect((await computer.call('POST', '/agents/demote')).status).toBe(200)
    expect((await computer.call('POST', '/agents/promote')).json).toMatchObject({ state: 'running' })
    gates.shut('again')
    await computer.ask({ id: 'again', prompt: 'again' })
    // The pause is over as well.
    await computer.waitForState('checkpointed')
    gates.open('again')
    expect(await computer.outcome('again')).toMatchObject({ life: before.life, intact: true })
  })
})

describe('when orb ends while an agent is in swap', () => {
  let computer: Computer
  let life: string
  beforeAll(async () => {
    computer = await orb.computer({ runtime_mb: 512 })
    await computer.deployAgent({ llmPort: llm.port, env: { DATA_MB: String(DATA_MB) } })
    life = (await computer.state()).life
    for (let index = 0; index < KNOWN_WAITS; index++) {
      await computer.ask({ id: `soon-${index}`, prompt: 'soon', delayMs: SHORT_WAIT_MS })
      await computer.outcome(`soon-${index}`)
    }
  })

  async function intoSwap(id: string): Promise<void> {
    gates.shut(id)
    const seen = (await reclaims(computer)).length
    await computer.ask({ id, prompt: id })
    await waitForReclaim(computer, seen)
  }

  test('by kill -9, the swap file is adopted and the agent goes on', async () => {
    await intoSwap('killed')
    const { ino } = statSync(swapFile())
    await orb.kill9()
    expect(activeSwap(swapFile())?.usedBytes).toBeGreaterThan((DATA_MB / 2) * MB)
    await orb.restart()
    expect(statSync(swapFile()).ino).toBe(ino)
    expect(await computer.waitForState('running')).toMatchObject({ failure_reason: null })
    expect((await computer.state()).life).toBe(life)
  })

  test('by SIGTERM, the agent comes back into memory, the file goes, the next orb makes another', async () => {
    for (let index = 0; index < KNOWN_WAITS; index++) {
      await computer.ask({ id: `anew-${index}`, prompt: 'anew', delayMs: SHORT_WAIT_MS })
      await computer.outcome(`anew-${index}`)
    }
    await intoSwap('stopped')
    const resident = computer.agentMemoryBytes()
    expect(await orb.terminate()).toBe(0)
    expect([activeSwap(swapFile()), existsSync(swapFile())]).toEqual([null, false])
    expect(computer.agentMemoryBytes()).toBeGreaterThan(resident + GONE_BYTES)
    await orb.restart()
    expect(activeSwap(swapFile())).not.toBeNull()
    expect((await computer.state()).life).toBe(life)
    await computer.expectStarts(1)
  })

  test('orb down takes a file away that a killed orb left', async () => {
    await orb.kill9()
    expect(activeSwap(swapFile())).not.toBeNull()
    await orb.down()
    expect([activeSwap(swapFile()), existsSync(swapFile())]).toEqual([null, false])
    await orb.restart()
  })
})
