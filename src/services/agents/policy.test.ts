import { describe, expect, test } from 'bun:test'
import {
  type Choice,
  chooseSleep,
  expectedRemainingMs,
  LONGEST_RECLAIM_MS,
  LOW_MEMORY_SHARE,
  LOW_SWAP_SHARE,
  REPAY_FACTOR,
  repayingWaitMs,
  type Situation,
  SOONEST_LOOK_MS,
  STALLED_PERCENT,
} from './policy.ts'

const MB = 1024 * 1024
const GB = 1024 * MB
const NO_SWAP = { totalBytes: 0, freeBytes: 0 }
const SWAP = { totalBytes: GB, freeBytes: GB }
const FULL_SWAP = { totalBytes: GB, freeBytes: LOW_SWAP_SHARE * GB - 1 }
const PLENTY = { availableShare: 0.8, stalledPercent: 0 }
const SHORT = { availableShare: LOW_MEMORY_SHARE / 2, stalledPercent: null }
const STALLED = { availableShare: 0.8, stalledPercent: STALLED_PERCENT + 1 }

/** A dump and a restore of 100 ms: worth it from 2 s on. Answers take 6 s, of which 5 s have passed. */
const SITUATION: Situation = {
  elapsedMs: 5000,
  checkpointAfterMs: 5000,
  waits: [5000],
  history: [6000, 6000, 6000],
  bytes: 100 * MB,
  residentBytes: 100 * MB,
  dumpMs: 60,
  restoreMs: 40,
  canCheckpoint: true,
  dumpBackoffMs: 0,
  reclaimedMs: null,
  swap: SWAP,
  memory: PLENTY,
}

const choose = (over: Partial<Situation> = {}): Choice => chooseSleep({ ...SITUATION, ...over })
const sleepOf = (over: Partial<Situation> = {}) => choose(over).sleep

const KNOWN = [6000, 6000, 6000]
const LONG = [600_000, 600_000, 600_000]

/** Everything that can be, in combination. */
const EVERY: Situation[] = [2000, 4999, 5000, 30_000].flatMap((elapsedMs) =>
  [[], KNOWN, LONG, [elapsedMs + 10, elapsedMs + 10, elapsedMs + 10]].flatMap((history) =>
    [true, false].flatMap((canCheckpoint) =>
      [0, 4000].flatMap((dumpBackoffMs) =>
        [null, 0, 3000, LONGEST_RECLAIM_MS].flatMap((reclaimedMs) =>
          [NO_SWAP, SWAP, FULL_SWAP, { totalBytes: GB, freeBytes: 50 * MB }].flatMap((swap) =>
            [PLENTY, SHORT, STALLED].map((memory) => ({
              ...SITUATION,
              elapsedMs,
              waits: [elapsedMs],
              history,
              canCheckpoint,
              dumpBackoffMs,
              reclaimedMs,
              swap,
              memory,
            })),
          ),
        ),
      ),
    ),
  ),
)

describe('in every situation', () => {
  test('no checkpoint before its time, none that is not possible, none while failed ones are waited out', () => {
    for (const now of EVERY) {
      if (now.elapsedMs < now.checkpointAfterMs || !now.canCheckpoint || now.dumpBackoffMs > 0) {
        expect([now, chooseSleep(now).sleep]).not.toEqual([now, 'checkpoint'])
      }
    }
  })

  test('nothing goes to swap that has no room there, nor what is there already', () => {
    for (const now of EVERY) {
      if (now.swap.freeBytes <= now.residentBytes || now.reclaimedMs !== null) {
        expect([now, chooseSleep(now).sleep]).not.toEqual([now, 'reclaim'])
      }
    }
  })

  test('without swap it is the plain ladder', () => {
    for (const now of EVERY.filter(({ swap, reclaimedMs }) => swap === NO_SWAP && reclaimedMs === null)) {
      const plain = now.elapsedMs >= now.checkpointAfterMs && now.canCheckpoint && now.dumpBackoffMs === 0
      expect([now, chooseSleep(now).sleep]).toEqual([now, plain ? 'checkpoint' : 'stay'])
    }
  })

  test('whoever is not on disk is looked at again, unless nothing can change', () => {
    for (const now of EVERY) {
      const { sleep, lookAgainMs } = chooseSleep(now)
      const settled = sleep === 'checkpoint' || (!now.canCheckpoint && now.elapsedMs >= now.checkpointAfterMs)
      expect([now, lookAgainMs === null]).toEqual([now, settled])
      if (lookAgainMs !== null) expect(lookAgainMs).toBeGreaterThan(0)
    }
  })

  test('nobody stays in swap for ever who can be dumped', () => {
    const over = EVERY.filter(
      (now) =>
        now.reclaimedMs === LONGEST_RECLAIM_MS && now.elapsedMs >= now.checkpointAfterMs && now.memory === PLENTY,
    )
    expect(over.length).toBeGreaterThan(0)
    for (const now of over.filter(({ canCheckpoint, dumpBackoffMs }) => canCheckpoint && dumpBackoffMs === 0)) {
      expect([now, chooseSleep(now).sleep]).toEqual([now, 'checkpoint'])
    }
  })
})

describe('before the time of the checkpoint', () => {
  const early = { elapsedMs: 2000, waits: [2000] }

  test('it stays in memory, and the question comes again at that time', () => {
    expect(choose(early)).toEqual({ sleep: 'stay', lookAgainMs: 3000 })
  })

  test.each([
    ['little memory is left', SHORT],
    ['tasks wait for memory', STALLED],
  ])('it goes to swap at once when %s', (_, memory) => {
    expect(choose({ ...early, memory })).toEqual({ sleep: 'reclaim', lookAgainMs: 3000 })
    expect(sleepOf({ ...early, memory, swap: NO_SWAP })).toBe('stay')
    expect(sleepOf({ ...early, memory, swap: FULL_SWAP })).toBe('stay')
  })
})

describe('when the time has come', () => {
  test('a wait that ends soon is spent in swap', () => {
    expect(choose()).toEqual({ sleep: 'reclaim', lookAgainMs: 2000 })
  })

  test('a long one on disk', () => {
    expect(sleepOf({ history: LONG })).toBe('checkpoint')
  })

  test('what repays a dump and a restore divides the two', () => {
    const limit = repayingWaitMs(SITUATION)
    expect(limit).toBe(REPAY_FACTOR * 100)
    expect(sleepOf({ history: Array(3).fill(5000 + limit) })).toBe('reclaim')
    expect(sleepOf({ history: Array(3).fill(5000 + limit + 1) })).toBe('checkpoint')
    // Slower dumps move the limit.
    expect(sleepOf({ history: Array(3).fill(5000 + limit + 1), dumpMs: 600 })).toBe('reclaim')
  })

  test('of unknown waits nothing is expected: disk', () => {
    expect(sleepOf({ history: [] })).toBe('checkpoint')
    expect(sleepOf({ history: [6000, 6000] })).toBe('checkpoint')
    // Longer than any before.
    expect(sleepOf({ elapsedMs: 7000, waits: [7000] })).toBe('checkpoint')
  })

  test('without room in swap: disk', () => {
    expect(sleepOf({ swap: NO_SWAP })).toBe('checkpoint')
    expect(sleepOf({ swap: FULL_SWAP })).toBe('checkpoint')
    const little = { swap: { totalBytes: GB, freeBytes: 200 * MB }, bytes: 300 * MB }
    expect(sleepOf({ ...little, residentBytes: 300 * MB })).toBe('checkpoint')
    // Most of it is there from the last time.
    expect(sleepOf({ ...little, residentBytes: 20 * MB })).toBe('reclaim')
  })

  test('an agent whose dumps fail goes to swap, and is tried again when their pause is over', () => {
    const failing = { history: LONG, dumpBackoffMs: 40_000 }
    expect(choose(failing)).toEqual({ sleep: 'reclaim', lookAgainMs: 40_000 })
    expect(choose({ ...failing, reclaimedMs: 10 })).toEqual({ sleep: 'stay', lookAgainMs: 40_000 })
    expect(choose({ ...failing, swap: NO_SWAP })).toEqual({ sleep: 'stay', lookAgainMs: 40_000 })
    expect(choose({ ...failing, dumpBackoffMs: 3 })).toEqual({ sleep: 'reclaim', lookAgainMs: SOONEST_LOOK_MS })
    expect(sleepOf({ ...failing, reclaimedMs: 40_010, dumpBackoffMs: 0 })).toBe('checkpoint')
  })

  test('on a host that cannot checkpoint swap is all there is', () => {
    expect(choose({ canCheckpoint: false, history: LONG })).toEqual({ sleep: 'reclaim', lookAgainMs: null })
    expect(choose({ canCheckpoint: false, history: LONG, reclaimedMs: 9 }).sleep).toBe('stay')
  })
})

describe('in swap', () => {
  const inSwap = { elapsedMs: 6000, waits: [6000], reclaimedMs: 1000 }

  test('it stays while its answer is still expected soon', () => {
    expect(choose({ ...inSwap, history: [6500, 6500, 6500] })).toEqual({ sleep: 'stay', lookAgainMs: SOONEST_LOOK_MS })
  })

  test('it goes to disk when the wait has outlasted what was expected', () => {
    expect(sleepOf({ ...inSwap, history: KNOWN })).toBe('checkpoint')
    expect(sleepOf({ ...inSwap, history: LONG })).toBe('checkpoint')
  })

  test('that its pages have to be read first counts as a cost', () => {
    expect(repayingWaitMs({ ...SITUATION, reclaimedMs: 0 })).toBeGreaterThan(repayingWaitMs(SITUATION) + 1000)
    const history = Array(3).fill(6000 + repayingWaitMs(SITUATION) + 1000)
    expect(sleepOf({ ...inSwap, history })).toBe('stay')
  })

  test('it stays while memory is short, and goes to disk when swap is', () => {
    expect(choose({ ...inSwap, history: LONG, memory: SHORT })).toEqual({ sleep: 'stay', lookAgainMs: SOONEST_LOOK_MS })
    expect(sleepOf({ ...inSwap, history: [6500, 6500, 6500], swap: FULL_SWAP })).toBe('checkpoint')
  })

  test('it is looked at again before its longest time is over', () => {
    const dumpMs = 60_000
    const { sleep, lookAgainMs } = choose({ ...inSwap, history: LONG, dumpMs, reclaimedMs: LONGEST_RECLAIM_MS - 5000 })
    expect([sleep, lookAgainMs]).toEqual(['stay', 5000])
  })
})

describe('what remains of a wait', () => {
  test.each<[string, number[], number[], number | null]>([
    ['half of those that took longer', [1000], [2000, 3000, 9000], 2000],
    ['those that took less say nothing', [1000], [500, 900, 2000, 3000, 9000], 2000],
    ['too few: unknown', [1000], [500, 2000, 3000], null],
    ['no history: unknown', [1000], [], null],
    ['the call that is answered first', [1000, 1900], [2000, 2000, 2000], 100],
    ['a call beyond all known ones counts not', [1000, 5000], [2000, 2000, 2000], 1000],
  ])('%s', (_, waits, history, expected) => {
    expect(expectedRemainingMs({ waits, history })).toBe(expected)
  })
})

test('unmeasured costs are estimated by size', () => {
  const of = (bytes: number) => repayingWaitMs({ ...SITUATION, bytes, dumpMs: null, restoreMs: null }) / REPAY_FACTOR
  expect(of(100 * MB)).toBeGreaterThan(100)
  expect(of(100 * MB)).toBeLessThan(300)
  expect(of(GB)).toBeGreaterThan(5 * of(100 * MB))
})
