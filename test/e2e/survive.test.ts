import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { runningCriu } from '../../src/runtime/criu-processes.ts'
import type { Computer } from '../support/computer.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'
import { until } from '../support/sweep.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

let orb: Orb
beforeAll(async () => {
  orb = await startOrb()
})
afterAll(() => orb?.stop())

const imageOf = (computer: Computer): string => {
  const dir = join(orb.dataDir, 'checkpoints', computer.id)
  const [image, ...others] = readdirSync(dir)
  expect(others).toEqual([])
  return join(dir, image ?? '')
}

/** A demote or promote that must succeed. */
async function go(computer: Computer, verb: 'demote' | 'promote'): Promise<void> {
  const { status, text } = await computer.call('POST', `/agents/${verb}`)
  expect([status, text]).toEqual([200, text])
}

async function sleeping(megabytes: number) {
  const computer = await orb.computer({ runtime_mb: 1024 })
  await computer.deployAgent({ env: { DATA_MB: String(megabytes) } })
  const before = await computer.state()
  await go(computer, 'demote')
  return { computer, next: { life: before.life, count: before.count + 1 } }
}

test.each(['broken', 'missing'])('a computer whose disk is %s can still be deleted', async (fault) => {
  const computer = await orb.computer()
  await computer.deployAgent()
  await orb.terminate()
  await orb.down()
  const disk = join(orb.dataDir, 'computers', computer.id, 'disk.img')
  rmSync(disk)
  if (fault === 'broken') writeFileSync(disk, 'no file system')
  await orb.restart()
  expect((await computer.call('POST', '/agents/promote')).status).toBe(500)
  expect((await computer.call('DELETE', '')).status).toBe(200)
  expect(existsSync(join(orb.dataDir, 'computers', computer.id))).toBe(false)
})

test('an agent whose last image could not be removed runs on, and sleeps again once that is mended', async () => {
  const { computer, next } = await sleeping(20)
  const kept = join(imageOf(computer), 'inventory.img')
  expect(Bun.spawnSync(['chattr', '+i', kept]).exitCode).toBe(0)
  try {
    await go(computer, 'promote')
    expect(await computer.state()).toEqual(next)
    expect((await computer.call('POST', '/agents/demote')).json).toMatchObject({
      error: 'checkpoint_failed',
      message: 'the image of the last restore cannot be removed; the agent runs on',
    })
    expect(await computer.agent()).toMatchObject({ state: 'running', failure_reason: null })
  } finally {
    Bun.spawnSync(['chattr', '-i', kept])
  }
  await go(computer, 'demote')
  await go(computer, 'promote')
  expect(await computer.state()).toEqual({ ...next, count: next.count + 1 })
})

test('a checkpoint that was damaged while no orb ran is refused with a reason, kept, and good again once it is mended', async () => {
  const { computer, next } = await sleeping(20)
  expect(await orb.terminate()).toBe(0)
  const image = imageOf(computer)
  const pages = readdirSync(image).filter((name) => name.startsWith('pages-'))
  const file = join(image, pages.at(-1) ?? '')
  const whole = readFileSync(file)
  const damaged = Buffer.from(whole)
  damaged[damaged.length >> 1] = (damaged[damaged.length >> 1] ?? 0) ^ 4
  writeFileSync(file, damaged)
  await orb.restart()

  expect((await computer.agent())?.state).toBe('checkpointed')
  const { status, json } = await computer.call('POST', '/agents/promote')
  expect([status, json['error']]).toEqual([500, 'restore_failed'])
  expect(String(json['message'])).toContain(`the content of ${pages.at(-1)} has changed`)
  expect(await computer.agent()).toMatchObject({ state: 'failed', pid: null, failure_reason: 'restore_failed' })
  expect(computer.agentProcesses()).toEqual([])

  // Neither a wake nor a start of orb makes a fresh agent of it.
  await orb.terminate()
  await orb.restart()
  expect((await computer.call('POST', '/agents/promote')).status).toBe(500)
  writeFileSync(file, whole)
  expect((await computer.call('POST', '/agents/promote')).json).toMatchObject({ status: 'promoted' })
  expect(await computer.state()).toEqual(next)
  await computer.expectStarts(1)
})

test('a checkpoint whose end mark was lost is still the agent', async () => {
  const { computer, next } = await sleeping(1)
  await orb.kill9()
  writeFileSync(join(imageOf(computer), 'dump.result'), '')
  await orb.restart()
  await go(computer, 'promote')
  expect(await computer.state()).toEqual(next)
})

test('PUT and exec may change what a sleeping agent has open: it wakes, with the file that it had', async () => {
  const computer = await orb.computer()
  await computer.deployAgent()
  await computer.put('agent/data/held', 'one')
  await computer.spawnInAgent(
    'exec 3</agent/data/held 4>>/agent/data/appended; touch /agent/data/open; ' +
      'until [ -e /agent/data/go ]; do sleep 0.05; done; cat <&3 >/agent/data/copy; echo agent >&4; touch /agent/data/done',
  )
  await computer.sh('until [ -e /agent/data/open ]; do sleep 0.05; done')
  await go(computer, 'demote')
  await computer.put('agent/data/held', 'another, and a longer one')
  await computer.sh('echo exec >> /agent/data/appended; rm -rf /var/log/orb')
  await computer.put('agent/data/go', '')
  await go(computer, 'promote')
  await computer.sh('until [ -e /agent/data/done ]; do sleep 0.05; done')
  expect(await computer.get('agent/data/copy')).toBe('one')
  expect(await computer.get('agent/data/held')).toBe('another, and a longer one')
  expect(await computer.get('agent/data/appended')).toBe('exec\nagent\n')
})

describe('a page daemon that dies', () => {
  const ATTEMPTS = 10

  const daemon = (computer: Computer) =>
    runningCriu(orb.dataDir).filter(({ dir, operation }) => dir.includes(computer.id) && operation === 'lazy-pages')

  /** Kills it as soon as it is there and `when` says so; true if it was there then. */
  async function kill(computer: Computer, when: () => boolean): Promise<boolean> {
    await until(() => when() && daemon(computer).length > 0)
    const found = daemon(computer)
    for (const { pid } of found) process.kill(pid, 'SIGKILL')
    return found.length > 0
  }

  test('before the agent runs: the restore fails, the image is kept, promote tries again', async () => {
    const { computer, next } = await sleeping(300)
    // The restore may be over before the daemon is found.
    for (let times = 1; ; times++) {
      const promoted = computer.call('POST', '/agents/promote')
      const answered = promoted.then(() => true)
      while (daemon(computer).length === 0 && !(await Promise.race([answered, Bun.sleep(0).then(() => false)]))) {}
      for (const { pid } of daemon(computer)) process.kill(pid, 'SIGKILL')
      const { status, json } = await promoted
      if (status === 200 && times < ATTEMPTS) {
        // Too late for this restore, perhaps in time for its last pages.
        const lost = await until(async () => (await computer.agent())?.state === 'failed', 2_000)
        if (!lost) await go(computer, 'demote')
        continue
      }
      expect({ status, json }).toMatchObject({ status: 500, json: { error: 'restore_failed' } })
      break
    }
    expect(await computer.agent()).toMatchObject({ state: 'failed', failure_reason: 'restore_failed' })
    await go(computer, 'promote')
    expect(await computer.state()).toEqual(next)
    await computer.expectStarts(1)
  })

  test('while the agent runs on memory that is not all back: it is failed, never left hanging, and can be had again', async () => {
    const { computer, next } = await sleeping(500)
    await go(computer, 'promote')
    expect(await kill(computer, () => true)).toBe(true)
    expect(await computer.waitForState('failed')).toMatchObject({ failure_reason: 'restore_failed', pid: null })
    expect(await until(() => computer.agentProcesses().length === 0)).toBe(true)
    await go(computer, 'promote')
    expect(await computer.state()).toEqual(next)
    await computer.expectStarts(1)
  })
})

test('after an upgrade agents that run and agents that sleep go on, and the old programs stay until nobody runs them', async () => {
  const { computer: asleep, next } = await sleeping(5)
  const awake = await orb.computer()
  await awake.deployAgent()
  const before = { state: await awake.state(), processes: awake.processes() }
  await orb.terminate()
  // What an orb with other programs in it finds: those of the former one, from which processes run.
  const parent = join(orb.dataDir, 'runtime')
  const [current = ''] = readdirSync(parent)
  const old = join(parent, '00000000000000ff')
  renameSync(join(parent, current), old)
  await orb.restart()
  expect(readdirSync(parent).sort()).toEqual([current, '00000000000000ff'].sort())

  expect(awake.processes()).toEqual(before.processes)
  expect(await awake.state()).toEqual({ ...before.state, count: before.state.count + 1 })
  await go(awake, 'demote')
  await go(awake, 'promote')
  expect(await awake.state()).toEqual({ ...before.state, count: before.state.count + 2 })
  await go(asleep, 'promote')
  expect(await asleep.state()).toEqual(next)

  // Everything of the old version has ended once the computers were taken down.
  await orb.terminate()
  await orb.down()
  await orb.restart()
  expect(await until(() => !existsSync(old))).toBe(true)
  expect(readdirSync(parent)).toEqual([current])
})
