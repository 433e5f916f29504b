import { afterAll, afterEach, beforeAll, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, mkdtempSync, readFileSync, readlinkSync, rmSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Computer } from '../support/computer.ts'
import { Gates, timesAsked } from '../support/gates.ts'
import { type LlmServer, startLlmServer } from '../support/llm-server.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'
import { until } from '../support/sweep.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

const ROUNDS = 20
/** A dump and a restore of the test agent take about this long together: kills fall into all parts of both. */
const CYCLE_MS = 160

const gates = new Gates()
let orb: Orb
let llm: LlmServer

beforeAll(async () => {
  llm = startLlmServer({ answerWhen: gates.answerWhen })
  orb = await startOrb()
})
afterEach(() => gates.openAll())
afterAll(async () => {
  await orb?.stop()
  await llm?.stop()
})

const crash = async (): Promise<void> => {
  await orb.kill9()
  await orb.restart()
}

/** Images on disk of a computer. */
const images = (computer: Computer): Promise<string[]> =>
  readdir(join(orb.dataDir, 'checkpoints', computer.id)).catch(() => [])

/** The test agents among its processes: never more than one. */
const programs = (computer: Computer): number[] =>
  computer.agentProcesses().filter((pid) => {
    // Not its command line: that is memory, which a restored process gets back page by page.
    const exe = `/proc/${pid}/exe`
    return existsSync(exe) && readlinkSync(exe).endsWith('/node')
  })

test('an agent that was on disk when orb was killed wakes on promote with its state', async () => {
  const computer = await orb.computer()
  await computer.deployAgent({ env: { DATA_MB: '100' } })
  const before = await computer.state()
  await computer.call('POST', '/agents/demote')
  await crash()
  expect(await computer.agent()).toMatchObject({ state: 'checkpointed', pid: null, sleep_reason: 'manual' })
  expect(computer.agentProcesses()).toEqual([])
  expect((await computer.call('POST', '/agents/promote')).json).toMatchObject({ status: 'promoted', state: 'running' })
  expect(await computer.state()).toEqual({ life: before.life, count: before.count + 1 })
  await computer.expectStarts(1)
})

test('an agent that ran when orb was killed is found again, the same process and no other', async () => {
  const computer = await orb.computer()
  await computer.deployAgent()
  const before = { view: await computer.agent(), state: await computer.state(), pids: computer.agentProcesses() }
  await crash()
  // Where memory is on cgroup v1, what commands have read counts.
  const resident_bytes = expect.any(Number)
  expect(await computer.agent()).toMatchObject({ ...before.view, resident_bytes })
  expect(computer.agentProcesses()).toEqual(before.pids)
  expect(await computer.state()).toEqual({ life: before.state.life, count: before.state.count + 1 })
  // It is watched as before.
  await computer.sh('pkill -KILL -f "^node agent.mjs"')
  expect(await computer.waitForState('failed')).toMatchObject({ exit_code: 137 })
})

test('an agent that was frozen when orb was killed runs on', async () => {
  gates.shut('thawed')
  const computer = await orb.computer()
  await computer.deployAgent({ llmPort: llm.port })
  const before = await computer.state()
  await computer.ask({ id: 'thawed', prompt: 'thawed', maxRetries: 2 })
  const { pid } = await computer.waitForState('frozen')
  await crash()
  expect(programs(computer)).toEqual(pid === null ? [] : [pid])
  gates.open('thawed')
  expect(await computer.outcome('thawed')).toMatchObject({ answer: 'echo: thawed', life: before.life, intact: true })
  // The first call died with orb, the second is the SDK's own retry.
  expect(timesAsked(llm.requests, 'thawed')).toBe(2)
})

test('an agent that ended while no orb was there is shown with its exit code', async () => {
  const computer = await orb.computer()
  await computer.deployScript(
    'node',
    "process.on('SIGUSR2', () => process.exit(7)); setInterval(() => {}, 1000); console.log('listening')",
  )
  await computer.waitForLine((line) => line === 'listening')
  const [pid] = computer
    .agentProcesses()
    .filter((one) => readFileSync(`/proc/${one}/cmdline`, 'utf8').startsWith('node\0'))
  await orb.kill9()
  process.kill(pid ?? 0, 'SIGUSR2')
  await until(() => computer.agentProcesses().length === 0)
  await orb.restart()
  expect(await computer.agent()).toMatchObject({ state: 'failed', exit_code: 7, failure_reason: 'exit' })
})

test('a stop by SIGTERM leaves agents as they are, and takes no two orbs on one data directory', async () => {
  const awake = await orb.computer()
  await awake.deployAgent()
  const asleep = await orb.computer()
  await asleep.deployAgent()
  const before = [await awake.state(), await asleep.state()]
  await asleep.call('POST', '/agents/demote')
  const second = Bun.spawnSync(orb.commandLine, { env: orb.env, stdout: 'pipe', stderr: 'pipe', timeout: 20_000 })
  expect(second.exitCode).toBe(1)
  expect(second.stderr.toString()).toContain('another orb')
  const elsewhere = mkdtempSync(join(tmpdir(), 'orb-test-'))
  const env = { ...orb.env, ORB_DATA_DIR: elsewhere }
  const third = Bun.spawnSync(orb.commandLine, { env, stdout: 'pipe', stderr: 'pipe', timeout: 20_000 })
  rmSync(elsewhere, { recursive: true })
  expect(third.exitCode).toBe(1)
  expect(third.stderr.toString()).toContain('give this one another by ORB_SUBNET')

  expect(await orb.terminate()).toBe(0)
  expect(programs(awake)).toHaveLength(1)
  await orb.restart()
  expect((await awake.agent())?.state).toBe('running')
  expect((await asleep.agent())?.state).toBe('checkpointed')
  await asleep.call('POST', '/agents/promote')
  expect(await awake.state()).toEqual({ life: before[0]?.life ?? '', count: (before[0]?.count ?? 0) + 1 })
  expect(await asleep.state()).toEqual({ life: before[1]?.life ?? '', count: (before[1]?.count ?? 0) + 1 })
})

test('orb down leaves the data alone, from which agents come back', async () => {
  const asleep = await orb.computer()
  await asleep.deployAgent()
  const awake = await orb.computer()
  await awake.deployAgent()
  const before = [await asleep.state(), await awake.state()]
  await asleep.call('POST', '/agents/demote')
  await orb.terminate()
  await orb.down()
  expect(await orb.remains()).toEqual([])

  await orb.restart()
  expect((await asleep.call('POST', '/agents/promote')).json).toMatchObject({ status: 'promoted' })
  expect(await asleep.state()).toEqual({ life: before[0]?.life ?? '', count: (before[0]?.count ?? 0) + 1 })
  await asleep.expectStarts(1)
  // What was in memory is started afresh, as after a reboot.
  await awake.waitForState('running')
  expect(await awake.lines('orb')).toContainEqual(expect.stringMatching(/recovery/))
  expect(await until(async () => (await awake.get('agent/data/lives')).trim().split('\n').length === 2)).toBe(true)
  expect((await awake.state()).life).not.toBe(before[1]?.life ?? '')
})

test.each([
  ['a file is read', async (on: Computer) => expect(await on.get('agent/code/agent.mjs')).toContain('import')],
  ['a file is written', (on: Computer) => on.put('agent/data/note', 'x')],
  ['its log is read', async (on: Computer) => expect((await on.lines('stdout')).length).toBeGreaterThan(0)],
  ['a command runs in it', async (on: Computer) => expect(await on.sh('echo here')).toContain('here')],
  ['its agent is deployed anew', (on: Computer) => on.deployAgent()],
])('after a reboot a sleeping agent’s computer comes up once %s', async (_, want) => {
  const computer = await orb.computer()
  await computer.deployAgent()
  await computer.call('POST', '/agents/demote')
  await orb.terminate()
  await orb.down()
  await orb.restart()
  expect((await computer.agent())?.state).toBe('checkpointed')
  expect(computer.processes()).toEqual([])
  await want(computer)
  expect(computer.processes().length).toBeGreaterThan(0)
})

test('no kill at any moment of a demote or promote loses or doubles an agent', async () => {
  const computer = await orb.computer()
  await computer.deployAgent({ env: { DATA_MB: '20' } })
  const { life } = await computer.state()
  let count = 1
  for (let round = 0; round < ROUNDS; round++) {
    const verb = round % 2 === 0 ? 'demote' : 'promote'
    const call = computer.call('POST', `/agents/${verb}`).catch(() => undefined)
    await Bun.sleep((CYCLE_MS * Math.floor(round / 2)) / (ROUNDS / 2))
    await crash()
    await call
    const view = await computer.agent()
    const found = `round ${round}, ${verb}, then ${view?.state}`
    expect([found, ['running', 'checkpointed'].includes(view?.state ?? '')]).toEqual([found, true])
    expect([found, programs(computer).length]).toEqual([found, view?.state === 'running' ? 1 : 0])
    const woken = await computer.call('POST', '/agents/promote')
    expect([found, woken.status]).toEqual([found, 200])
    expect([found, await computer.state()]).toEqual([found, { life, count: ++count }])
    expect(programs(computer)).toHaveLength(1)
    if (verb === 'demote') await computer.call('POST', '/agents/demote')
  }
  await computer.expectStarts(1)
  await computer.call('POST', '/agents/promote')
  expect(await until(async () => (await images(computer)).length === 0)).toBe(true)
})
