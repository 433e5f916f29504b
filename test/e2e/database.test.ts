import { afterAll, beforeAll, expect, setDefaultTimeout, test } from 'bun:test'
import { copyFileSync, existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Computer } from '../support/computer.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'
import { until } from '../support/sweep.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

let orb: Orb
let aside: string
beforeAll(async () => {
  orb = await startOrb()
  aside = mkdtempSync(join(tmpdir(), 'orb-test-db-'))
})
afterAll(async () => {
  rmSync(aside, { recursive: true, force: true })
  await orb?.stop()
})

const databaseFiles = () => readdirSync(orb.dataDir).filter((name) => name.startsWith('orb.db'))
const copy = (from: string, to: string, names: string[]) => {
  for (const name of names) copyFileSync(join(from, name), join(to, name))
}
const removeDatabase = () => {
  for (const name of databaseFiles()) rmSync(join(orb.dataDir, name))
}

/** Starts orb; resolves to what it says of leftovers. */
async function startAndSweep(): Promise<string> {
  const from = orb.log.length
  await orb.restart()
  const said = () => /^.*(leftovers|the database is new).*$/m.exec(orb.log.slice(from))?.[0]
  expect(await until(() => said() !== undefined)).toBe(true)
  return said() ?? ''
}

const go = async (computer: Computer, verb: 'demote' | 'promote') =>
  expect((await computer.call('POST', `/agents/${verb}`)).status).toBe(200)

test('a database that is lost: nothing of the computers is taken for a leftover, and with the old one all are there again', async () => {
  const [awake, asleep] = [await orb.computer(), await orb.computer()]
  for (const computer of [awake, asleep]) await computer.deployAgent()
  const before = { awake: await awake.state(), asleep: await asleep.state(), processes: awake.agentProcesses() }
  await go(asleep, 'demote')
  await orb.terminate()
  const names = databaseFiles()
  copy(orb.dataDir, aside, names)
  removeDatabase()

  expect(await startAndSweep()).toContain('the database is new')
  expect((await awake.call('GET', '')).status).toBe(401)
  for (const { id } of [awake, asleep]) expect(existsSync(join(orb.dataDir, 'computers', id, 'disk.img'))).toBe(true)
  expect(readdirSync(join(orb.dataDir, 'checkpoints', asleep.id))).toHaveLength(1)
  expect(awake.agentProcesses()).toEqual(before.processes)

  await orb.terminate()
  removeDatabase()
  copy(aside, orb.dataDir, names)
  expect(await startAndSweep()).toContain('no leftovers')
  expect(awake.agentProcesses()).toEqual(before.processes)
  expect(await awake.state()).toEqual({ ...before.awake, count: before.awake.count + 1 })
  await go(asleep, 'promote')
  expect(await asleep.state()).toEqual({ ...before.asleep, count: before.asleep.count + 1 })
})

test('an older database: what it knows is there, what was made after it is taken out of the kernel and its disk kept', async () => {
  const known = await orb.computer()
  await known.deployAgent()
  const before = await known.state()
  await orb.terminate()
  const names = databaseFiles()
  copy(orb.dataDir, aside, names)
  await orb.restart()
  const later = await orb.computer()
  await later.deployAgent()
  await orb.terminate()
  removeDatabase()
  copy(aside, orb.dataDir, names)

  expect(await startAndSweep()).toMatch(/leftovers were removed .*computers=1/)
  expect(existsSync(join(orb.dataDir, 'computers', later.id, 'disk.img'))).toBe(true)
  expect(orb.log).toContain(`a computer that the database does not know is kept id=${later.id}`)
  expect(later.processes()).toEqual([])
  expect((await later.call('GET', '')).status).toBe(404)
  expect(await known.state()).toEqual({ ...before, count: before.count + 1 })
})
