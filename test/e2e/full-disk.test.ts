import { afterAll, afterEach, beforeAll, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, mkdtempSync, readdirSync, rmSync, statfsSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Computer } from '../support/computer.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'

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

const freeBytes = (): number => {
  const { bavail, bsize } = statfsSync(place)
  return bavail * bsize
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

test('once there is room again it sleeps and wakes', async () => {
  const before = await computer.state()
  expect((await computer.call('POST', '/agents/demote')).status).toBe(200)
  expect((await computer.call('POST', '/agents/promote')).status).toBe(200)
  expect(await computer.state()).toEqual({ life: before.life, count: before.count + 1 })
  await computer.expectStarts(1)
})
