import { describe, expect, test } from 'bun:test'
import { FIRST_BACKOFF_MS, Habits, LONGEST_BACKOFF_MS } from './habits.ts'

function setUp() {
  const clock = { now: 1_000_000 }
  return { clock, habits: new Habits(() => clock.now) }
}

test('nothing is known of a new agent, and it may be dumped', () => {
  const { habits } = setUp()
  expect([habits.history, habits.dumpMs, habits.restoreMs, habits.dumpBackoffMs]).toEqual([[], null, null, 0])
})

test('the last sixteen answers count', () => {
  const { habits } = setUp()
  for (let wait = 1; wait <= 20; wait++) habits.answered(wait)
  expect(habits.history).toEqual(Array.from({ length: 16 }, (_, index) => index + 5))
})

describe('failed dumps', () => {
  test('each doubles the pause, up to a limit', () => {
    const { clock, habits } = setUp()
    const pauses: number[] = []
    for (let failure = 0; failure < 12; failure++) {
      habits.dumpFailed()
      pauses.push(habits.dumpBackoffMs)
      clock.now += habits.dumpBackoffMs
      expect(habits.dumpBackoffMs).toBe(0)
    }
    expect(pauses.slice(0, 3)).toEqual([FIRST_BACKOFF_MS, 2 * FIRST_BACKOFF_MS, 4 * FIRST_BACKOFF_MS])
    expect(pauses.at(-1)).toBe(LONGEST_BACKOFF_MS)
  })

  test('the pause runs off with the clock', () => {
    const { clock, habits } = setUp()
    habits.dumpFailed()
    clock.now += FIRST_BACKOFF_MS - 1
    expect(habits.dumpBackoffMs).toBe(1)
    clock.now += 5
    expect(habits.dumpBackoffMs).toBe(0)
  })

  test.each([
    ['a dump that succeeds', (habits: Habits) => habits.dumped(null)],
    ['a new start', (habits: Habits) => habits.startedAnew()],
  ])('%s ends the pause, and the next failure is a first one again', (_, reset) => {
    const { habits } = setUp()
    habits.dumpFailed()
    habits.dumpFailed()
    reset(habits)
    expect(habits.dumpBackoffMs).toBe(0)
    habits.dumpFailed()
    expect(habits.dumpBackoffMs).toBe(FIRST_BACKOFF_MS)
  })
})

test('a dump that says nothing of the next one leaves the last time as it was', () => {
  const { habits } = setUp()
  habits.dumped(120)
  habits.dumped(null)
  habits.restored(40)
  expect([habits.dumpMs, habits.restoreMs]).toEqual([120, 40])
})

test('a new start forgets all', () => {
  const { habits } = setUp()
  habits.answered(3000)
  habits.dumped(120)
  habits.restored(40)
  habits.startedAnew()
  expect([habits.history, habits.dumpMs, habits.restoreMs]).toEqual([[], null, null])
})
