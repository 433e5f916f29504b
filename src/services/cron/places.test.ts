import { afterAll, beforeEach, expect, test } from 'bun:test'
import type { ComputerRow } from '../../store/types.ts'
import { Places } from './places.ts'
import { TestStore, testJob } from './testing.ts'

const db = new TestStore()
const computers = new Map<string, ComputerRow>()
/** Its organisation is the first letter of its name. */
function computer(name: string): ComputerRow {
  const known = computers.get(name) ?? db.computer(name, name.slice(0, 1))
  computers.set(name, known)
  return known
}
const run = (on: string, job = 'x') => ({ computer: computer(on), job: testJob(job) })
const names = (runs: { computer: ComputerRow; job: { name: string } }[]) =>
  runs.map((one) => `${one.computer.id} ${one.job.name}`)

afterAll(() => db.remove())

let places: Places<ReturnType<typeof run>>
beforeEach(() => {
  places = new Places()
})
const add = (count: number, on: string) =>
  Array.from({ length: count }, (_, n) => {
    const one = run(on, `${n}`)
    places.add(one)
    return one
  })

test('a computer has 4 places, an organisation 8, the server 16', () => {
  add(5, 'a1')
  expect(names(places.fill())).toEqual(['a1 0', 'a1 1', 'a1 2', 'a1 3'])
  add(5, 'a2')
  add(5, 'a3')
  expect(places.fill()).toHaveLength(4)
  expect(places.all()).toHaveLength(8)
  for (const on of ['b1', 'b2', 'b3', 'c1', 'c2']) add(5, on)
  places.fill()
  expect(Object.entries(Object.groupBy(places.all(), (one) => one.computer.orgId)).map(([, of]) => of?.length)).toEqual(
    [8, 4, 4],
  )
})

test('a free place goes to the organisation with the fewest runs, then to its computer with the fewest', () => {
  const [first] = add(4, 'a1')
  const others = [...add(4, 'a2'), ...add(2, 'b1'), ...add(4, 'c1'), ...add(2, 'c2')]
  expect(places.fill()).toHaveLength(16)
  add(1, 'c1')
  const late = [run('a3', 'late'), run('b1', 'late'), run('b2', 'late')]
  for (const one of late) places.add(one)
  const free = (gone: typeof first) => {
    if (gone) places.leave(gone)
    return names(places.fill())
  }
  expect(free(first)).toEqual(['b2 late'])
  expect(free(others[0])).toEqual(['b1 late'])
  expect(free(others[6])).toEqual(['c1 0'])
  expect(free(others[1])).toEqual(['a3 late'])
})

test('computers with as many runs take turns, each with its own in their order', () => {
  const held = [...add(4, 'a1'), ...add(4, 'a2'), ...add(4, 'b1'), ...add(4, 'b2')]
  places.fill()
  add(3, 'c1')
  add(2, 'c2')
  const served = held.slice(0, 5).flatMap((gone) => {
    places.leave(gone)
    return names(places.fill())
  })
  expect(served).toEqual(['c1 0', 'c2 0', 'c1 1', 'c2 1', 'c1 2'])
})

test('what is dropped waits no more', () => {
  const runs = add(6, 'a1')
  places.fill()
  expect([places.isWaiting('a1', '3'), places.isBusy('a1', '3')]).toEqual([false, true])
  expect([places.isWaiting('a1', '4'), places.isBusy('a1', '4')]).toEqual([true, true])
  expect(runs.slice(3, 5).map((one) => places.drop(one))).toEqual([false, true])
  expect(places.isBusy('a1', '4')).toBe(false)
  expect(names(places.dropAll())).toEqual(['a1 5'])
  expect(places.isBusy('a1', '5')).toBe(false)
  expect(places.all()).toHaveLength(4)
})

test('a job that waits twice waits until both are gone', () => {
  add(4, 'a1')
  const both = [run('a1', 'twice'), run('a1', 'twice')] as const
  for (const one of both) places.add(one)
  places.fill()
  places.drop(both[0])
  expect(places.isWaiting('a1', 'twice')).toBe(true)
  places.drop(both[1])
  expect(places.isWaiting('a1', 'twice')).toBe(false)
})
