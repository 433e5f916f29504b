import { afterAll, beforeAll, expect, test } from 'bun:test'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { HeldBody, HOLD_MEMORY_BYTES } from './hold.ts'

let dir: string
beforeAll(() => {
  dir = mkdtempSync(join(tmpdir(), 'orb-hold-'))
})
afterAll(() => rmSync(dir, { recursive: true }))

function readAll(held: HeldBody, from = held.start): Buffer {
  const pieces: Buffer[] = []
  for (let at = from; at < held.end; ) {
    const piece = Buffer.from(held.read(at))
    expect(piece.length).toBeGreaterThan(0)
    pieces.push(piece)
    at += piece.length
  }
  return Buffer.concat(pieces)
}

test.each([
  [[]],
  [[1]],
  [[5000, 5000, 1]],
  [[HOLD_MEMORY_BYTES]],
  [[HOLD_MEMORY_BYTES, 1]],
  [[HOLD_MEMORY_BYTES - 1, 2, 3]],
  [[3 * HOLD_MEMORY_BYTES + 7, 10, 70_000]],
])('pieces of %p bytes come back in order, as often as asked', (sizes) => {
  const held = new HeldBody(dir)
  const pieces = sizes.map((size, i) => Buffer.alloc(size, `${i}abcdefghijk`))
  for (const piece of pieces) held.append(piece)
  const all = Buffer.concat(pieces)
  expect(readAll(held).equals(all)).toBe(true)
  expect(readAll(held).equals(all)).toBe(true)
  expect(readAll(held, all.length >> 1).equals(all.subarray(all.length >> 1))).toBe(true)
  expect(readdirSync(dir)).toEqual([])
  held.dispose()
})

test('positions go on after forget, in memory again', () => {
  const held = new HeldBody(dir)
  held.append(Buffer.alloc(2 * HOLD_MEMORY_BYTES, 'a'))
  held.forget()
  expect([held.start, held.end]).toEqual([2 * HOLD_MEMORY_BYTES, 2 * HOLD_MEMORY_BYTES])
  held.append(Buffer.from('next'))
  expect(held.read(held.start).toString()).toBe('next')
  held.dispose()
})
