import { afterAll, afterEach, beforeAll, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, mkdtempSync, readdirSync, rmSync, statfsSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { runningCriu } from '../../src/runtime/criu-processes.ts'
import type { Computer } from '../support/computer.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'
import { isCriu, parentOf, until } from '../support/sweep.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

const MB = 1024 * 1024
const AGENT_MB = 100

/* The data directory has a file system of its own, which other files fill up. */
let place: string
let orb: Orb
let computer: Computer

beforeAll(async () => {
  place = mkdtempSync(join(tmpdir(), 'orb-full-'))
  expect(Bun.spawnSync(['mount', '-t', 'tmpfs', '-o', 'size=400m', 'orb-full', place]).exitCode).toBe(0)
  orb = await startOrb({ parentDir: place })
  computer = await orb.computer()
  await computer.deployAgent({ env: { DATA_MB: String(AGENT_MB) } })
})
afterAll(async () => {
  await orb?.stop()
  expect(Bun.spawnSync(['umount', place]).exitCode).toBe(0)
  rmSync(place, { recursive: true })
})

const freeBytes = (where = place): number => {
  const { bavail, bsize } = statfsSync(where)
  return bavail * bsize
}
/** Host pids of criu itself, and of the process in the computer that waits for its result. */
const atWork = () => {
  const all = runningCriu(orb.dataDir).map(({ pid }) => pid)
  const criu = all.filter(isCriu)
  const isRecorder = (pid: number) => ![null, orb.pid].includes(parentOf(pid)) && !criu.includes(pid)
  return { criu, recorder: all.filter(isRecorder) }
}
const signal = (pids: number[], name: NodeJS.Signals) => {
  for (const pid of pids) process.kill(pid, name)
}
const ballast = () => join(place, 'ballast')
const leaveFree = (bytes: number) => writeFileSync(ballast(), new Uint8Array(freeBytes() - bytes))
const leaveFiles = (count: number) => {
  const { files, ffree } = statfsSync(place)
  const options = `remount,size=400m,nr_inodes=${files - ffree + count}`
  expect(Bun.spawnSync(['mount', '-o', options, place]).exitCode).toBe(0)
}

afterEach(() => {
  rmSync(ballast(), { force: true })
  leaveFiles(10_000)
})

test.each([
  ['for its memory', () => leaveFree(20 * MB), /do not fit into the 20 MB/],
  ['for its files', () => leaveFiles(12), /No space left on device/],
])('a checkpoint without room %s: 507, the agent goes on, nothing of it is left', async (_, fill, reason) => {
  const before = await computer.state()
  fill()
  const free = freeBytes()
  const { status, json } = await computer.call('POST', '/agents/demote')
  expect([status, json['error']]).toEqual([507, 'disk_full'])
  expect(String(json['message'])).toMatch(reason)
  expect(await computer.agent()).toMatchObject({ state: 'running', failure_reason: null })
  expect(await computer.state()).toEqual({ life: before.life, count: before.count + 1 })
  const images = join(orb.dataDir, 'checkpoints', computer.id)
  expect(existsSync(images) ? readdirSync(images) : []).toEqual([])
  // Its log, orb's log and the database may have grown.
  expect(freeBytes()).toBeGreaterThan(free - MB)
})

test('a disk that fills up in the middle of a checkpoint: 507, the agent goes on, nothing of it is left', async () => {
  const before = await computer.state()
  const demoted = computer.call('POST', '/agents/demote')
  expect(await until(() => atWork().criu.length > 0)).toBe(true)
  const { criu } = atWork()
  signal(criu, 'SIGSTOP')
  // The memory would have fitted in when the checkpoint began.
  expect(freeBytes()).toBeGreaterThan(AGENT_MB * MB)
  leaveFree(2 * MB)
  signal(criu, 'SIGCONT')
  const { status, json } = await demoted
  expect([status, json['error']]).toEqual([507, 'disk_full'])
  expect(String(json['message'])).toMatch(/No space left on device/)
  expect(await computer.agent()).toMatchObject({ state: 'running', failure_reason: null })
  expect(await computer.state()).toEqual({ life: before.life, count: before.count + 1 })
  expect(readdirSync(join(orb.dataDir, 'checkpoints', computer.id))).toEqual([])
  expect(freeBytes()).toBeGreaterThan(MB)
})

test('once there is room again it sleeps and wakes', async () => {
  const before = await computer.state()
  expect((await computer.call('POST', '/agents/demote')).status).toBe(200)
  expect((await computer.call('POST', '/agents/promote')).status).toBe(200)
  expect(await computer.state()).toEqual({ life: before.life, count: before.count + 1 })
  await computer.expectStarts(1)
})

test('a disk that is full once the checkpoint is written: the result of that has room, and the agent is not lost', async () => {
  // A file system for the checkpoints alone: the disks of computers do not survive one that is full to the last byte.
  const checkpoints = join(orb.dataDir, 'checkpoints')
  await orb.terminate()
  expect(Bun.spawnSync(['mount', '-t', 'tmpfs', '-o', 'size=300m', 'orb-full', checkpoints]).exitCode).toBe(0)
  try {
    await orb.restart()
    const before = await computer.state()
    const demoted = computer.call('POST', '/agents/demote')
    expect(await until(() => atWork().criu.length > 0)).toBe(true)
    const { recorder } = atWork()
    signal(recorder, 'SIGSTOP')
    expect(await until(() => atWork().criu.length === 0)).toBe(true)
    expect(computer.agentProcesses()).toEqual([])
    const filler = join(checkpoints, computer.id, 'filler')
    Bun.spawnSync(['sh', '-c', `cat /dev/zero > ${filler}`], { stderr: 'ignore' })
    expect(freeBytes(checkpoints)).toBe(0)
    signal(recorder, 'SIGCONT')
    expect(await demoted).toMatchObject({ status: 200, json: { status: 'demoted' } })
    await orb.kill9()
    await orb.restart()
    expect(await computer.agent()).toMatchObject({ state: 'checkpointed', failure_reason: null })
    rmSync(filler, { force: true })
    expect((await computer.call('POST', '/agents/promote')).status).toBe(200)
    expect(await computer.state()).toEqual({ life: before.life, count: before.count + 1 })
    await computer.expectStarts(1)
  } finally {
    await until(() => runningCriu(orb.dataDir).length === 0)
    await orb.terminate()
    expect(Bun.spawnSync(['umount', checkpoints]).exitCode).toBe(0)
    await orb.restart()
  }
})
