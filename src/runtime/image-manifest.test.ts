import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { checkImage, ImageError, noteHashes, noteSizes } from './image-manifest.ts'

const MIB = 1024 * 1024
const never = new AbortController().signal

let dir: string
beforeEach(async () => {
  dir = mkdtempSync(join(tmpdir(), 'orb-manifest-'))
  writeFileSync(join(dir, 'core-1.img'), 'core of the agent')
  writeFileSync(join(dir, 'pages-1.img'), new Uint8Array(9 * MIB).fill(7))
  writeFileSync(join(dir, 'orb.json'), '{}')
  writeFileSync(join(dir, 'restore.log'), 'not part of it')
})
afterEach(() => rmSync(dir, { recursive: true }))

function flip(name: string, at: number): void {
  const path = join(dir, name)
  const bytes = readFileSync(path)
  bytes[at] = (bytes[at] ?? 0) ^ 1
  writeFileSync(path, bytes)
}

const problem = (whole: boolean): Promise<string | null> =>
  checkImage(dir, whole).then(
    () => null,
    (thrown) => (thrown instanceof ImageError ? thrown.message : Promise.reject(thrown)),
  )

describe('an image with hashes', () => {
  beforeEach(async () => {
    expect(await noteSizes(dir)).toBe(17 + 9 * MIB)
    await noteHashes(dir, never)
  })

  test('is whole as long as nobody touches it, whatever its logs say', async () => {
    writeFileSync(join(dir, 'restore.log'), 'longer than it was before')
    expect([await problem(false), await problem(true)]).toEqual([null, null])
  })

  test.each([
    ['core-1.img', 3],
    ['orb.json', 1],
  ])('a changed bit in %s is found at once', async (name, at) => {
    flip(name, at)
    expect(await problem(false)).toBe(`the checkpoint is damaged: the content of ${name} has changed`)
  })

  test.each([0, 5 * MIB, 9 * MIB - 1])(
    'a changed bit in byte %d of its pages is found by a look at all',
    async (at) => {
      flip('pages-1.img', at)
      expect(await problem(false)).toBeNull()
      expect(await problem(true)).toBe('the checkpoint is damaged: the content of pages-1.img has changed')
    },
  )

  test.each(['core-1.img', 'pages-1.img', 'orb.json'])('%s that is gone is named', async (name) => {
    rmSync(join(dir, name))
    expect(await problem(false)).toBe(`the checkpoint is damaged: ${name} is missing`)
  })

  test.each(['core-1.img', 'pages-1.img'])('%s that is cut is named', async (name) => {
    truncateSync(join(dir, name), 5)
    expect(await problem(false)).toMatch(new RegExp(`damaged: ${name} has 5 bytes instead of \\d+$`))
  })

  test('a manifest that cannot be read is damage too', async () => {
    truncateSync(join(dir, 'manifest.json'), 10)
    expect(await problem(false)).toBe('the checkpoint is damaged: manifest.json cannot be read')
  })
})

test('before the hashes are there sizes count', async () => {
  await noteSizes(dir)
  flip('core-1.img', 3)
  expect(await problem(true)).toBeNull()
  truncateSync(join(dir, 'core-1.img'), 5)
  expect(await problem(false)).toContain('core-1.img has 5 bytes')
})

test('hashing that is called off leaves the sizes', async () => {
  await noteSizes(dir)
  await noteHashes(dir, AbortSignal.abort())
  flip('pages-1.img', 3)
  expect(await problem(true)).toBeNull()
})

test('an image without a manifest is not judged, and one that is removed meanwhile is no error', async () => {
  expect(await problem(true)).toBeNull()
  await noteSizes(dir)
  rmSync(join(dir, 'core-1.img'))
  await noteHashes(dir, never)
})
