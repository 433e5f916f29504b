import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdtempSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Arena, type ArenaBody, BLOCK_BYTES } from './arena.ts'

let dir: string
let path: string
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'orb-arena-'))
  path = join(dir, 'requests')
})
afterEach(() => rmSync(dir, { recursive: true }))

const pattern = (length: number, seed: number): Buffer =>
  Buffer.from(Uint8Array.from({ length }, (_, at) => (at * 7 + (at >> 8) + seed) & 0xff))

function all(body: ArenaBody): Buffer {
  const pieces: Buffer[] = []
  for (let at = 0; at < body.end; at += pieces.at(-1)?.length ?? 0) {
    pieces.push(body.read(at))
    expect(pieces.at(-1)?.length).toBeGreaterThan(0)
  }
  return Buffer.concat(pieces)
}

test.each([[[0]], [[1]], [[BLOCK_BYTES]], [[BLOCK_BYTES + 1]], [[10, BLOCK_BYTES, 3 * BLOCK_BYTES, 5]]])(
  'pieces of %p bytes come back whole, beside others',
  (sizes) => {
    const arena = new Arena(path, new Set())
    const bodies = [arena.body(), arena.body()]
    const expected: Buffer[][] = [[], []]
    for (const size of sizes) {
      for (const [index, body] of bodies.entries()) {
        const piece = pattern(size, index + size)
        expected[index]?.push(piece)
        body.append(piece)
      }
    }
    for (const [index, body] of bodies.entries()) expect(all(body).equals(Buffer.concat(expected[index]!))).toBe(true)
    expect(new Set(bodies.flatMap(({ blocks }) => blocks)).size).toBe(bodies.flatMap(({ blocks }) => blocks).length)
  },
)

test('blocks that were given back are used again, and no others', () => {
  const arena = new Arena(path, new Set())
  const stays = arena.body()
  stays.append(pattern(2 * BLOCK_BYTES, 1))
  const size = () => statSync(path).size
  for (let round = 0; round < 5; round++) {
    const goes = arena.body()
    goes.append(pattern(3 * BLOCK_BYTES, round))
    expect(size()).toBe(5 * BLOCK_BYTES)
    goes.remove()
    goes.remove()
  }
  expect(all(stays).equals(pattern(2 * BLOCK_BYTES, 1))).toBe(true)
})

test('the next one finds what is taken, and gives out the rest', () => {
  const before = new Arena(path, new Set())
  const [gone, kept, last] = [before.body(), before.body(), before.body()]
  for (const [seed, body] of [gone, kept, last].entries()) body!.append(pattern(BLOCK_BYTES + 5, seed))
  const arena = new Arena(path, new Set(kept!.blocks))
  expect(statSync(path).size).toBe(4 * BLOCK_BYTES)
  const found = arena.body(kept!.blocks, BLOCK_BYTES + 5)
  const fresh = arena.body()
  fresh.append(pattern(4 * BLOCK_BYTES, 9))
  expect(all(found).equals(pattern(BLOCK_BYTES + 5, 1))).toBe(true)
  expect(all(fresh).equals(pattern(4 * BLOCK_BYTES, 9))).toBe(true)
})

test('one that nobody uses gives much disk back', () => {
  const arena = new Arena(path, new Set())
  const large = arena.body()
  large.append(Buffer.alloc(20 * 1024 * 1024))
  large.remove()
  expect(statSync(path).size).toBe(0)
  const next = arena.body()
  next.append(pattern(BLOCK_BYTES, 3))
  expect(all(next).equals(pattern(BLOCK_BYTES, 3))).toBe(true)
})
