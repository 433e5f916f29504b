import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { BootNotes } from './boot.ts'

let dir: string
let notes: BootNotes

beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), 'orb-boot-'))
  notes = new BootNotes(dir)
})
afterEach(() => rm(dir, { recursive: true, force: true }))

/** As an orb of another boot would have written it. */
async function age(name: string): Promise<void> {
  const text = await readFile(join(dir, name), 'utf8')
  await writeFile(join(dir, name), text.replace(/^[0-9a-f-]{36}/, '00000000-0000-0000-0000-000000000000'))
}

test('without notes nothing is up', async () => {
  expect(await notes.processesLost()).toBe(true)
  expect(await notes.subnet()).toBeNull()
})

test('notes of this boot hold until all is down', async () => {
  await notes.networkUp('10.42.0.0/16')
  expect(await notes.processesLost()).toBe(true)
  await notes.recovered()
  expect(await notes.processesLost()).toBe(false)
  expect(await notes.subnet()).toBe('10.42.0.0/16')
  await notes.allDown()
  expect(await notes.processesLost()).toBe(true)
  expect(await notes.subnet()).toBeNull()
})

test('notes of an earlier boot count for nothing', async () => {
  await notes.networkUp('10.42.0.0/16')
  await notes.recovered()
  await age('subnet')
  await age('boot_id')
  expect(await notes.processesLost()).toBe(true)
  expect(await notes.subnet()).toBeNull()
})

test('criu is asked once in a boot, and again when it is another', async () => {
  expect(await notes.criuWorks('4.2')).toBe(false)
  await notes.noteCriu('4.2')
  expect([await notes.criuWorks('4.2'), await notes.criuWorks('4.3')]).toEqual([true, false])
  await age('criu_works')
  expect(await notes.criuWorks('4.2')).toBe(false)
})
