import { afterEach, expect, test } from 'bun:test'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { unpackBundle } from './bundle.ts'
import { run } from './command.ts'
import { HostView } from './host-view.ts'

const dir = mkdtempSync('/var/tmp/orb-view-')
const inTmp = mkdtempSync('/tmp/orb-view-')
const mounts: string[] = []

async function mounted(name: string): Promise<string> {
  const path = join(dir, name)
  mkdirSync(path, { recursive: true })
  await run(['mount', '-t', 'tmpfs', 'orb-view', path])
  mounts.unshift(path)
  return path
}

afterEach(async () => {
  for (const path of mounts.splice(0)) await run(['umount', path])
  for (const path of [dir, inTmp]) rmSync(path, { recursive: true, force: true })
})

test('shows what is mounted on the way to the kept paths and below them, and nothing else of these or of later', async () => {
  const { init } = await unpackBundle(join(dir, 'data'))
  const outer = await mounted('outer')
  const kept = await mounted('outer/kept with space')
  const below = await mounted('outer/kept with space/below')
  await mounted('outer/kept with space and more')
  await mounted('other/one')
  const devices = join(dir, 'devices')
  mkdirSync(devices)
  const view = await HostView.make(init, devices, ['/proc', '/dev', kept])
  await mounted('outer/kept with space/later')
  const table = await run(['nsenter', `--mount=${view.path}`, 'cat', '/proc/self/mounts'])
  view.close()
  const seen = table
    .split('\n')
    .flatMap((line) => (line.includes(dir) ? [line.split(' ')[1]?.replaceAll('\\040', ' ')] : []))
  expect(seen).toEqual([outer, kept, below, devices])
  expect(table.split('\n').find((line) => line.includes(devices))).toMatch(/ ro,nosuid,noexec\b/)
})

test('/tmp is in memory there, with what is kept below it', async () => {
  const { init } = await unpackBundle(join(dir, 'data'))
  const [devices, kept] = [join(inTmp, 'kept/devices'), join(inTmp, 'kept')]
  mkdirSync(devices, { recursive: true })
  writeFileSync(join(kept, 'file'), 'on disk')
  writeFileSync(join(inTmp, 'other'), '')
  const view = await HostView.make(init, devices, ['/proc', '/dev', kept])
  const inView = (...command: string[]) => run(['nsenter', `--mount=${view.path}`, ...command])
  const type = await inView('stat', '-f', '-c', '%T', '/tmp')
  const all = await inView('find', inTmp)
  const file = await inView('cat', join(kept, 'file'))
  const table = await inView('cat', '/proc/self/mounts')
  view.close()
  expect({ type, file }).toEqual({ type: 'tmpfs\n', file: 'on disk' })
  expect(all.trim().split('\n').sort()).toEqual([inTmp, kept, devices, join(kept, 'file')])
  expect(table.split('\n').find((line) => line.includes(devices))).toMatch(/ ro,nosuid,noexec\b/)
})

test('what cannot be made is said', async () => {
  const { init } = await unpackBundle(join(dir, 'data'))
  expect(
    HostView.make(
      init,
      '/dev',
      Array.from({ length: 40 }, () => '/x'),
    ),
  ).rejects.toThrow('too many options')
})
