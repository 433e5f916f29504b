/* orb on the server that it is made for: systemd starts it, all controllers are on cgroup v2, and it has its swap file. */
import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { readMemory } from '../../src/runtime/memory.ts'
import { activeSwap } from '../../src/runtime/swap.ts'
import type { Computer } from '../support/computer.ts'
import { Gates, timesAsked } from '../support/gates.ts'
import { type LlmServer, startLlmServer } from '../support/llm-server.ts'
import { until } from '../support/sweep.ts'
import { property, sh, UnitOrb } from './unit.ts'

setDefaultTimeout(300_000)

const CGROUPS = '/sys/fs/cgroup/orb'
const MB = 1024 * 1024
const DATA_MB = 60
/** At least this much of it is gone from memory. */
const GONE_BYTES = 50 * MB
/** Of a computer whose agent is on disk: its pid 1, and what the kernel keeps of its files. */
const ASLEEP_BYTES = 8 * MB
const SLEEP_TIMEOUT_MS = 60_000
const FREEZE_AFTER_MS = 2_000
const CHECKPOINT_AFTER_MS = 4_000
/** An answer that comes this long after the agent's time for the disk is worth no dump. */
const SHORT_WAIT_MS = CHECKPOINT_AFTER_MS + 1_500
/** Answers that the policy wants to have seen. */
const KNOWN_WAITS = 4

const gates = new Gates()
const orb = new UnitOrb({
  ORB_SWAP_GB: '1',
  ORB_FREEZE_AFTER: `${FREEZE_AFTER_MS}ms`,
  ORB_CHECKPOINT_AFTER: `${CHECKPOINT_AFTER_MS}ms`,
})
let llm: LlmServer

beforeAll(() => {
  llm = startLlmServer({ answerWhen: gates.answerWhen })
  orb.install()
})
afterEach(() => gates.openAll())
afterAll(() => llm?.stop())

const cgroupFile = (computer: Computer, name: string): string =>
  readFileSync(join(CGROUPS, computer.name, name), 'utf8').trim()
const eventsOf = (computer: Computer, file: string, name: string): number =>
  Number(new RegExp(`^${name} (\\d+)$`, 'm').exec(cgroupFile(computer, file))?.[1])
const ownLines = (computer: Computer) => computer.lines('orb')
const countLines = async (computer: Computer, start: string) =>
  (await ownLines(computer)).filter((line) => line.startsWith(start)).length

async function deployed(settings: { env?: Record<string, string>; runtimeMb?: number } = {}): Promise<Computer> {
  const computer = await orb.computer({ runtime_mb: settings.runtimeMb ?? 256, disk_mb: 512 })
  await computer.deployAgent({ llmPort: llm.port, env: { DATA_MB: String(DATA_MB), ...settings.env } })
  return computer
}

/** Its question is asked and stays open, and it sleeps on disk. */
async function sleepsThrough(computer: Computer, question: string): Promise<void> {
  gates.shut(question)
  await computer.ask({ id: question, prompt: question })
  await computer.waitForState('checkpointed', SLEEP_TIMEOUT_MS)
}

/** A demote or promote that must succeed. */
async function go(computer: Computer, verb: 'demote' | 'promote'): Promise<void> {
  const { status, text } = await computer.call('POST', `/agents/${verb}`)
  expect([status, text]).toEqual([200, text])
}

test('this is the kind of server that is meant', () => {
  const mounts = readFileSync('/proc/self/mounts', 'utf8')
  expect(mounts).toContain(' /sys/fs/cgroup cgroup2 ')
  expect(mounts).not.toMatch(/ cgroup /)
  expect(readFileSync('/proc/1/comm', 'utf8').trim()).toBe('systemd')
})

test('orb doctor finds everything that it needs', () => {
  const report = sh('/usr/local/bin/orb', 'doctor')
  console.log(report)
  expect(report).toMatch(/^ok +cgroups: v2$/m)
  expect(report).toMatch(/^ok +checkpoints: CRIU [\d.]+ works on this kernel$/m)
  expect(report).toContain('everything that orb needs is there')
})

test('the unit starts, and orb is ready', async () => {
  await orb.start()
  await orb.register()
  expect([property('ActiveState'), property('SubState'), property('NRestarts')]).toEqual(['active', 'running', '0'])
  expect(orb.pid).toBeGreaterThan(0)
  expect(readFileSync(`/proc/${orb.pid}/oom_score_adj`, 'utf8').trim()).toBe('-900')
})

test('processes change their cgroup at once, and memory pressure can be read', () => {
  expect(readFileSync('/proc/self/mounts', 'utf8')).toMatch(/ \/sys\/fs\/cgroup cgroup2 \S*favordynmods/)
  expect(readMemory().stalledPercent).toBeNumber()
})

test('orb makes the swap file that the settings want', () => {
  expect(activeSwap(join(orb.dataDir, 'orb.swap'))?.bytes).toBeGreaterThan(1000 * MB)
})

describe('an agent', () => {
  let computer: Computer
  beforeAll(async () => {
    computer = await deployed()
  })

  test('has its limits in its cgroup, and swaps nothing by itself', () => {
    expect(cgroupFile(computer, 'memory.max')).toBe(String(3 * 256 * MB))
    expect(cgroupFile(computer, 'memory.low')).toBe(String(256 * MB))
    expect(cgroupFile(computer, 'memory.swap.max')).toBe('0')
    expect(cgroupFile(computer, 'pids.max')).toBe('4096')
    expect(cgroupFile(computer, 'cpu.max')).toMatch(/^\d+ 100000$/)
    expect(cgroupFile(computer, 'agent/memory.oom.group')).toBe('1')
  })

  test('reaches its LLM through the proxy, and nothing but its gateway', async () => {
    await computer.ask({ id: 'quick', prompt: 'quick' })
    expect(await computer.outcome('quick')).toMatchObject({ answer: 'echo: quick', intact: true })
    expect((await computer.exec(`curl -sS --max-time 5 http://127.0.0.1:${llm.port}/`)).exit_code).not.toBe(0)
    expect((await computer.exec(`curl -sS --max-time 5 http://${orb.gateway}:8787/health`)).stdout).toContain(
      '"status"',
    )
  })

  test('sleeps through a call on disk, with no process and next to no memory, and wakes with its state', async () => {
    const before = await computer.state()
    const full = computer.agentMemoryBytes()
    await sleepsThrough(computer, 'slow')
    expect(cgroupFile(computer, 'agent/cgroup.procs')).toBe('')
    expect(computer.agentMemoryBytes()).toBeLessThan(ASLEEP_BYTES)
    console.log(`memory: ${full} awake, ${computer.memoryBytes()} asleep, with its computer`)
    expect(computer.memoryBytes()).toBeLessThan(full - GONE_BYTES)
    gates.open('slow')
    expect(await computer.outcome('slow')).toEqual({
      id: 'slow',
      answer: 'echo: slow',
      life: before.life,
      count: before.count + 1,
      intact: true,
    })
    expect(timesAsked(llm.requests, 'slow')).toBe(1)
    expect(await countLines(computer, 'checkpoint failed')).toBe(0)
  })

  test('is frozen by its cgroup before that', async () => {
    gates.shut('frozen')
    await computer.ask({ id: 'frozen', prompt: 'frozen' })
    await computer.waitForState('frozen', SLEEP_TIMEOUT_MS)
    gates.open('frozen')
    expect(await computer.outcome('frozen')).toMatchObject({ answer: 'echo: frozen', intact: true })
    expect(cgroupFile(computer, 'agent/cgroup.events')).toContain('frozen 0')
  })

  test('goes to disk and back by hand', async () => {
    const { life } = await computer.state()
    expect((await computer.call('POST', '/agents/demote')).json).toMatchObject({ state: 'checkpointed' })
    expect(computer.agentProcesses()).toEqual([])
    expect((await computer.call('POST', '/agents/promote')).json).toMatchObject({ state: 'running' })
    expect((await computer.state()).life).toBe(life)
    await computer.expectStarts(1)
    console.log((await ownLines(computer)).join('\n'))
  })
})

describe('an agent whose answers come soon', () => {
  let computer: Computer
  beforeAll(async () => {
    computer = await deployed()
    for (let index = 0; index < KNOWN_WAITS; index++) {
      await computer.ask({ id: `known-${index}`, prompt: 'known', delayMs: SHORT_WAIT_MS })
      await computer.outcome(`known-${index}`)
    }
  })

  test('sleeps in swap, and wakes as the same process', async () => {
    gates.shut('short')
    const before = { ...(await computer.state()), pid: (await computer.agent())?.pid }
    const [full, dumped] = [computer.agentMemoryBytes(), await countLines(computer, 'checkpointed (llm), ')]
    // The policy may have had enough of the answers one earlier.
    const reclaimed = await countLines(computer, 'reclaimed (llm), ')
    await computer.ask({ id: 'short', prompt: 'short' })
    const again = async () => (await countLines(computer, 'reclaimed (llm), ')) > reclaimed
    expect(await until(again, SLEEP_TIMEOUT_MS)).toBe(true)
    const asleep = await computer.agent()
    console.log(`memory: ${full} before, ${computer.agentMemoryBytes()} in swap`, (await ownLines(computer)).at(-1))
    expect(asleep).toMatchObject({ state: 'frozen', pid: before.pid })
    expect(computer.agentMemoryBytes()).toBeLessThan(full - GONE_BYTES)
    expect(asleep?.resident_bytes).toBeLessThan(full - GONE_BYTES)
    expect(Number(cgroupFile(computer, 'memory.swap.current'))).toBeGreaterThan(GONE_BYTES)
    expect(cgroupFile(computer, 'memory.swap.max')).toBe('0')
    gates.open('short')
    expect(await computer.outcome('short')).toMatchObject({
      answer: 'echo: short',
      life: before.life,
      count: before.count + 1,
      intact: true,
    })
    expect(await computer.agent()).toMatchObject({ state: 'running', pid: before.pid })
    expect(await countLines(computer, 'checkpointed (llm), ')).toBe(dumped)
  })
})

describe('limits', () => {
  let neighbour: Computer
  beforeAll(async () => {
    neighbour = await deployed()
  })

  test('an agent beyond its memory is killed whole, and harms nobody else', async () => {
    const { pid, count } = { pid: (await neighbour.agent())?.pid, ...(await neighbour.state()) }
    const computer = await deployed({ runtimeMb: 128, env: { DATA_MB: '1' } })
    await computer.spawnInAgent(`exec python3 -c 'held = b"x" * (500 << 20)'`)
    expect(await computer.waitForState('failed', SLEEP_TIMEOUT_MS)).toMatchObject({ failure_reason: 'oom' })
    expect(computer.agentProcesses()).toEqual([])
    expect(eventsOf(computer, 'memory.events', 'oom_kill')).toBeGreaterThan(0)
    expect(await computer.sh('echo fine')).toBe('fine\n')
    expect((await neighbour.agent())?.pid).toBe(pid)
    expect((await neighbour.state()).count).toBe(count + 1)
  })

  test('processes end at their limit', async () => {
    const computer = await orb.computer({ runtime_mb: 1024, disk_mb: 256 })
    const threads = `
import threading
made, done = 0, threading.Event()
threading.stack_size(32768)
try:
    while made < 5000:
        threading.Thread(target=done.wait, daemon=True).start()
        made += 1
except RuntimeError:
    print(made, flush=True)
import os
os._exit(0)
`
    await computer.put('root/threads.py', threads)
    const made = Number((await computer.exec('exec python3 /root/threads.py', 120)).stdout)
    expect(made).toBeGreaterThan(4000)
    expect(made).toBeLessThan(4096)
    expect((await neighbour.state()).count).toBeGreaterThan(0)
    expect(await computer.sh('echo fine')).toBe('fine\n')
  })
})

describe('when orb ends', () => {
  let awake: Computer
  let asleep: Computer
  let lives: { life: string; pid: number | null | undefined }[]
  beforeAll(async () => {
    awake = await deployed()
    asleep = await deployed()
    lives = []
    for (const computer of [awake, asleep])
      lives.push({ life: (await computer.state()).life, pid: (await computer.agent())?.pid })
    await go(asleep, 'demote')
  })

  async function expectBothThere(): Promise<void> {
    expect(await awake.waitForState('running')).toMatchObject({ pid: lives[0]?.pid, failure_reason: null })
    expect((await awake.state()).life).toBe(lives[0]?.life ?? '')
    expect((await asleep.agent())?.state).toBe('checkpointed')
  }

  test('by kill -9, systemd starts it again, and it finds its agents', async () => {
    await orb.kill9()
    expect(property('NRestarts')).toBe('1')
    await expectBothThere()
  })

  test('by a restart of the unit, too', async () => {
    sh('systemctl', 'restart', 'orb')
    await orb.ready()
    expect([property('ActiveState'), property('Result')]).toEqual(['active', 'success'])
    await expectBothThere()
  })

  test('by systemctl stop, the agents go on', async () => {
    expect(await orb.terminate()).toBe(0)
    expect([property('ActiveState'), property('Result')]).toEqual(['inactive', 'success'])
    expect(awake.agentProcesses()).toContain(lives[0]?.pid ?? 0)
    expect(cgroupFile(awake, 'agent/cgroup.events')).toContain('frozen 0')
    await orb.start()
    await expectBothThere()
  })

  test('the sleeping one wakes with what it had', async () => {
    await go(asleep, 'promote')
    expect((await asleep.state()).life).toBe(lives[1]?.life ?? '')
    await asleep.expectStarts(1)
    await go(asleep, 'demote')
  })

  test('orb down takes everything out of the kernel, and the next orb wakes who slept', async () => {
    expect(await orb.terminate()).toBe(0)
    await orb.down()
    expect(await orb.remains()).toEqual([])
    expect(existsSync(CGROUPS)).toBe(false)
    expect(existsSync('/run/netns') ? readdirSync('/run/netns') : []).toEqual([])
    expect(sh('losetup', '--list', '--noheadings')).toBe('')
    expect(readFileSync('/proc/swaps', 'utf8').trim().split('\n')).toHaveLength(1)
    expect(sh('nft', 'list', 'tables')).toBe('')
    await orb.start()
    await go(asleep, 'promote')
    expect((await asleep.state()).life).toBe(lives[1]?.life ?? '')
  })

  test('computers are deleted, and nothing is left behind', async () => {
    await orb.stop()
    expect(existsSync(CGROUPS)).toBe(false)
  })
})
