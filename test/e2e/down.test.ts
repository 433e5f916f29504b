import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import type { Computer } from '../support/computer.ts'
import { type Orb, startOrb } from '../support/orb.ts'
import { remains, until } from '../support/sweep.ts'

/** Counts its starts on disk and, in memory, how often it was asked. */
const AGENT = `
import { appendFileSync } from 'node:fs'
appendFileSync('/agent/data/starts', 'x')
setInterval(() => {}, 1000)
`

const down = (orb: Orb) =>
  Bun.spawnSync([process.execPath, join(import.meta.dir, '../../src/main.ts'), 'down', '--data-dir', orb.dataDir])

const tables = (): string => Bun.spawnSync(['nft', 'list', 'tables']).stdout.toString()

describe('orb down', () => {
  let orb: Orb
  let awake: Computer
  let asleep: Computer

  beforeAll(async () => {
    orb = await startOrb()
    awake = await orb.computer()
    asleep = await orb.computer()
    for (const computer of [awake, asleep]) {
      expect((await computer.deployScript('node', AGENT)).status).toBe(201)
      expect((await computer.agent())?.state).toBe('running')
    }
    expect((await asleep.call('POST', '/agents/demote')).status).toBe(200)
  })
  afterAll(() => orb.stop())

  test('refuses while an orb serves the directory, and touches nothing', async () => {
    const { exitCode, stderr } = down(orb)
    expect(stderr.toString()).toContain('stop it first')
    expect(exitCode).toBe(1)
    expect((await awake.agent())?.state).toBe('running')
  })

  test('leaves nothing in the kernel, and all that matters on the disk', async () => {
    const table = `orb_${orb.gateway
      .split('.')
      .map((part) => Number(part).toString(16).padStart(2, '0'))
      .join('')}`
    await orb.terminate()
    const names = [awake.name, asleep.name]
    expect(remains(orb.dataDir, names)).not.toEqual([])
    expect(tables()).toContain(table)

    const { exitCode, stdout } = down(orb)
    expect(stdout.toString()).toContain('2 computers taken down')
    expect(exitCode).toBe(0)
    expect(remains(orb.dataDir, names)).toEqual([])
    expect(tables()).not.toContain(table)
    expect(existsSync(join(orb.dataDir, 'computers', awake.id, 'disk.img'))).toBe(true)
  })

  test('has nothing to do a second time', () => {
    expect(down(orb).stdout.toString()).toContain('nothing of it is up')
  })

  test('is to agents as a reboot: who ran is started afresh, who slept sleeps on', async () => {
    await orb.restart()
    expect((await awake.waitForState('running')).failure_reason).toBeNull()
    expect(await until(async () => (await awake.get('agent/data/starts')) === 'xx')).toBe(true)
    expect((await asleep.agent())?.state).toBe('checkpointed')
    expect((await asleep.call('POST', '/agents/promote')).status).toBe(200)
    expect(await asleep.get('agent/data/starts')).toBe('x')
  })
})
