import { heapStats } from 'bun:jsc'
import { expect, test } from 'bun:test'
import { Scrollback } from './scrollback.ts'

test('keeps the last bytes, from whatever pieces they came', () => {
  for (const size of [1, 3, 7, 64]) {
    const scrollback = new Scrollback(10)
    const all = 'abcdefghijklmnopqrstuvwxyz'
    for (let at = 0; at < all.length; at += size) scrollback.add(all.slice(at, at + size))
    expect([size, scrollback.text()]).toEqual([size, 'qrstuvwxyz'])
  }
})

test('never begins inside a character', () => {
  const scrollback = new Scrollback(10)
  scrollback.add('üüüüüüüüü')
  expect(scrollback.text()).toBe('üüüüü')
  scrollback.add('a')
  expect(scrollback.text()).toBe('üüüüa')
  scrollback.add('🙂🙂')
  expect(scrollback.text()).toBe('a🙂🙂')
  scrollback.add('bc')
  expect(scrollback.text()).toBe('🙂🙂bc')
  scrollback.add('d')
  expect(scrollback.text()).toBe('🙂bcd')
})

test('forgets', () => {
  const scrollback = new Scrollback(10)
  expect(scrollback.text()).toBe('')
  scrollback.add('abc')
  scrollback.clear()
  expect(scrollback.text()).toBe('')
})

test('single bytes are not a buffer each', () => {
  const buffers = () => {
    Bun.gc(true)
    const counts = heapStats().objectTypeCounts
    return (counts['Uint8Array'] ?? 0) + (counts['Buffer'] ?? 0)
  }
  const scrollback = new Scrollback(50_000)
  const before = buffers()
  for (let count = 0; count < 100_000; count++) scrollback.add('x')
  expect(buffers() - before).toBeLessThan(1_000)
  expect(scrollback.text()).toBe('x'.repeat(50_000))
})
