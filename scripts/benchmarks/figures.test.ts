import { describe, expect, test } from 'bun:test'
import { type Figure, figuresOf, isMet, spreadOf } from './figures.ts'
import { tableOf } from './table.ts'

const figure = (fields: Partial<Figure>): Figure => ({ name: 'x', unit: 'ms', measured: 10, rounds: 1, ...fields })

describe('a figure', () => {
  test.each([
    ['nothing to reach', {}, undefined],
    ['at most, reached exactly', { target: { atMost: 10 } }, true],
    ['at most, missed', { target: { atMost: 9.9 } }, false],
    ['at least, reached exactly', { target: { atLeast: 10 } }, true],
    ['at least, missed', { target: { atLeast: 10.1 } }, false],
    ['a peer to compare with alone', { peer: { name: 'p', measured: 1 } }, undefined],
    ['a peer beaten as it must be', { peer: { name: 'p', measured: 20, timesAtLeast: 2 } }, true],
    ['a peer not beaten by enough', { peer: { name: 'p', measured: 19, timesAtLeast: 2 } }, false],
    ['nothing at all beside a peer', { measured: 0, peer: { name: 'p', measured: 19, timesAtLeast: 2 } }, true],
    [
      'the target met, the peer not',
      { target: { atMost: 10 }, peer: { name: 'p', measured: 9, timesAtLeast: 1 } },
      false,
    ],
  ] satisfies [string, Partial<Figure>, boolean | undefined][])('%s', (_, fields, met) => {
    expect(isMet(figure(fields))).toBe(met)
  })

  test('of samples is their nearest rank, beside the same of the peer', () => {
    const samples = Array.from({ length: 200 }, (_, index) => 200 - index)
    expect(spreadOf(samples)).toEqual({ p50: 100, p99: 198, min: 1, max: 200 })
    expect(spreadOf([7])).toEqual({ p50: 7, p99: 7, min: 7, max: 7 })
    expect(() => spreadOf([])).toThrow('nothing was measured')
    const rows = figuresOf('wake', samples, { unit: 'ms', p99: { atMost: 150 }, peer: { name: 'p', samples: [300] } })
    expect(rows.map(({ name, measured, target, peer }) => [name, measured, target, peer?.measured])).toEqual([
      ['wake, p50', 100, undefined, 300],
      ['wake, p99', 198, { atMost: 150 }, undefined],
    ])
  })
})

test('the table says what was measured, what it should be, and how the peer did', () => {
  const peer = { name: 'runc', measured: 450, timesAtLeast: 8 }
  const figures = [
    figure({ name: 'wake', measured: 45.04, target: { atMost: 50 }, peer }),
    figure({ name: 'streams', unit: '', measured: 1000, target: { atLeast: 1001 } }),
  ]
  expect(tableOf([{ title: 'some benchmark', figures }]).split('\n')).toEqual([
    '  figure   measured    target          peer                  ratio',
    'some benchmark',
    '  wake      45.0 ms  <= 50 ms  met     runc: 450 ms  9.99 x (>= 8)',
    '  streams     1,000  >= 1,001  MISSED',
  ])
})
