import { afterAll, beforeAll, expect, setDefaultTimeout, test } from 'bun:test'
import { randomUUID } from 'node:crypto'
import { cpSync, existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Computer } from '../support/computer.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'
import { remains, until } from '../support/sweep.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

/* Two orbs on one machine: what the first one cleans away must never be the other's. */
let orb: Orb
let other: Orb
let mine: Computer
let theirs: Computer

beforeAll(async () => {
  orb = await startOrb()
  other = await startOrb()
  mine = await orb.computer()
  theirs = await other.computer()
  for (const computer of [mine, theirs]) await computer.deployAgent()
})
afterAll(async () => {
  await orb?.stop()
  await other?.stop()
})

const run = (...command: string[]): string => {
  const { exitCode, stdout, stderr } = Bun.spawnSync(command)
  if (exitCode !== 0) throw new Error(`${command.join(' ')}: ${stderr}`)
  return stdout.toString()
}

/** The hardware address that a computer of `gateway`'s subnet would have in slot 77. */
const strayAddress = (gateway: string): string => {
  const [a = 0, b = 0, c = 0] = gateway.split('.').map(Number)
  return ['02', '6f', ...[a, b, c, 78].map((byte) => byte.toString(16).padStart(2, '0'))].join(':')
}

const swept = (from: number): string[] =>
  orb.log
    .slice(from)
    .split('\n')
    .filter((line) => line.includes('leftovers'))

/** Starts it again; returns what it says of leftovers. */
async function restart(): Promise<string> {
  const from = orb.log.length
  await orb.restart()
  await until(() => swept(from).length > 0)
  return swept(from).join('\n')
}

test('a server in order has no leftovers', async () => {
  await orb.terminate()
  expect(await restart()).toContain('no leftovers')
  expect((await mine.agent())?.state).toBe('running')
})

test('what belongs to no computer is gone after a start, whatever it is; all else stays', async () => {
  const id = randomUUID()
  const name = `orb-${id.slice(0, 8)}`
  const linkOnly = `orb-${randomUUID().slice(0, 8)}`
  const foreign = `orb-${randomUUID().slice(0, 8)}`
  const before = { mine: await mine.state(), theirs: await theirs.state(), processes: mine.agentProcesses() }

  // A computer with all that belongs to one, its row lost: made by this very orb from a row that is then removed.
  const lost = await orb.computer()
  await lost.deployAgent()
  await orb.terminate()
  const { Database } = await import('bun:sqlite')
  const db = new Database(join(orb.dataDir, 'orb.db'), { strict: true })
  db.run('PRAGMA foreign_keys = ON')
  db.query('DELETE FROM computers WHERE id = ?').run(lost.id)
  db.close()
  expect(remains(join(orb.dataDir, 'computers', lost.id), [lost.name])).not.toEqual([])

  // Each kind by itself.
  run('ip', 'netns', 'add', linkOnly)
  run(
    'ip',
    'link',
    'add',
    linkOnly,
    'address',
    strayAddress(orb.gateway),
    'type',
    'veth',
    'peer',
    'name',
    'eth0',
    'netns',
    linkOnly,
  )
  run('ip', 'netns', 'add', foreign)
  run(
    'ip',
    'link',
    'add',
    foreign,
    'address',
    strayAddress(other.gateway),
    'type',
    'veth',
    'peer',
    'name',
    'eth0',
    'netns',
    foreign,
  )
  const dir = join(orb.dataDir, 'computers', id)
  mkdirSync(join(dir, 'disk'), { recursive: true })
  run('truncate', '-s', '8M', join(dir, 'disk.img'))
  run('mkfs.ext4', '-q', join(dir, 'disk.img'))
  run('mount', '-o', 'loop', join(dir, 'disk.img'), join(dir, 'disk'))
  const loop = run('losetup', '-f', '--show', join(dir, 'disk.img')).trim()
  mkdirSync(join(orb.dataDir, 'checkpoints', id, '1'), { recursive: true })
  mkdirSync(join(orb.dataDir, 'checkpoints', mine.id, '999'), { recursive: true })
  writeFileSync(join(orb.dataDir, 'spool', 'hold-1-1'), 'half an answer')
  for (const deleted of [id, lost.id]) writeFileSync(join(orb.dataDir, 'computers', deleted, 'deleted'), '')
  const [runtime = ''] = readdirSync(join(orb.dataDir, 'runtime'))
  const [unused, used] = ['0000000000000001', '0000000000000002'].map((version) =>
    join(orb.dataDir, 'runtime', version),
  )
  for (const version of [unused, used])
    cpSync(join(orb.dataDir, 'runtime', runtime), version ?? '', { recursive: true })
  // A program of an older version is still running.
  const [loader, libraries] = ['criu/ld.so', 'criu/lib'].map((path) => join(used ?? '', path))
  const old = Bun.spawn([loader ?? '', '--library-path', libraries ?? '', '/usr/bin/sleep', '1000'])

  try {
    const told = await restart()
    for (const kind of ['computers', 'directories', 'loopDevices', 'runtimes']) expect(told).toContain(kind)
    expect(remains(join(orb.dataDir, 'computers', id), [name, linkOnly, lost.name])).toEqual([])
    expect(run('losetup', '--list', '--noheadings', '--output', 'NAME')).not.toContain(loop)
    for (const gone of [
      dir,
      join(orb.dataDir, 'computers', lost.id),
      join(orb.dataDir, 'checkpoints', id),
      join(orb.dataDir, 'checkpoints', mine.id, '999'),
      join(orb.dataDir, 'spool', 'hold-1-1'),
      unused ?? '',
    ])
      expect([gone, existsSync(gone)]).toEqual([gone, false])
    expect(existsSync(used ?? '')).toBe(true)
    expect(existsSync(`/sys/class/net/${foreign}`)).toBe(true)
    expect(mine.agentProcesses()).toEqual(before.processes)
    expect(await mine.state()).toEqual({ ...before.mine, count: before.mine.count + 1 })
    expect(await theirs.state()).toEqual({ ...before.theirs, count: before.theirs.count + 1 })
    // Once more: there is nothing left to do, and then nobody runs the old version any more.
    old.kill('SIGKILL')
    await old.exited
    await orb.terminate()
    expect(await restart()).toMatch(/leftovers were removed runtimes=1$/)
    expect(existsSync(used ?? '')).toBe(false)
    await orb.terminate()
    expect(await restart()).toContain('no leftovers')
  } finally {
    old.kill('SIGKILL')
    run('ip', 'netns', 'delete', foreign)
  }
})
