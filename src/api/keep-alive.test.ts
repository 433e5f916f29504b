import { afterEach, beforeEach, expect, jest, test } from 'bun:test'
import { KeepAlive } from './keep-alive.ts'

beforeEach(() => void jest.useFakeTimers())
afterEach(() => void jest.useRealTimers())

function watch() {
  const seen = { pings: 0, dead: 0 }
  const keepAlive = new KeepAlive({ ping: () => void seen.pings++, dead: () => void seen.dead++ })
  return { seen, keepAlive }
}

test('a side that answers is asked every 25 seconds, for ever', () => {
  const { seen, keepAlive } = watch()
  jest.advanceTimersByTime(24_999)
  expect(seen.pings).toBe(0)
  for (let count = 1; count <= 100; count++) {
    jest.advanceTimersByTime(count === 1 ? 1 : 25_000)
    expect(seen).toEqual({ pings: count, dead: 0 })
    keepAlive.pong()
  }
  keepAlive.stop()
})

test('one that has not answered for 60 seconds is given up, once', () => {
  const { seen, keepAlive } = watch()
  jest.advanceTimersByTime(30_000)
  keepAlive.pong()
  jest.advanceTimersByTime(59_999)
  expect(seen.dead).toBe(0)
  jest.advanceTimersByTime(1)
  expect(seen).toEqual({ pings: 3, dead: 1 })
  jest.advanceTimersByTime(600_000)
  expect(seen).toEqual({ pings: 3, dead: 1 })
})

test('one that is closed is left alone', () => {
  const { seen, keepAlive } = watch()
  keepAlive.stop()
  jest.advanceTimersByTime(600_000)
  expect(seen).toEqual({ pings: 0, dead: 0 })
})
