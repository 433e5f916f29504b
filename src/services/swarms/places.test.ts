import { expect, test } from 'bun:test'
import { Places } from './places.ts'

const turns = () => new Promise<void>((resolve) => setImmediate(resolve))

/** Runs pieces of work, named by their owner and a number, that end when they are told to. */
function setUp(count: number) {
  const places = new Places(count)
  const begun: string[] = []
  const ends = new Map<string, PromiseWithResolvers<string>>()
  const add = (name: string) => {
    const end = Promise.withResolvers<string>()
    ends.set(name, end)
    return places.run(name.slice(0, 1), () => {
      begun.push(name)
      return end.promise
    })
  }
  return { add, begun, ends, places }
}

test('a free place goes to whoever has the fewest', async () => {
  const { add, begun, ends } = setUp(2)
  const all = ['a1', 'a2', 'a3', 'a4', 'b1', 'b2', 'c1'].map(add)
  await turns()
  expect(begun).toEqual(['a1', 'a2'])
  const order: [end: string, next: string][] = [
    ['a2', 'b1'],
    ['a1', 'a3'],
    ['b1', 'c1'],
    ['a3', 'b2'],
    ['c1', 'a4'],
  ]
  for (const [end, next] of order) {
    ends.get(end)?.resolve(end)
    await turns()
    expect(begun.at(-1)).toBe(next)
  }
  for (const [name, { resolve }] of ends) resolve(name)
  expect(await Promise.all(all)).toEqual(['a1', 'a2', 'a3', 'a4', 'b1', 'b2', 'c1'])
})

test('a failure is the caller’s and frees the place', async () => {
  const { add, ends, places } = setUp(1)
  const failing = add('a1')
  ends.get('a1')?.reject(new Error('no'))
  expect(failing).rejects.toThrow('no')
  const atOnce = places.run('a', () => {
    throw new Error('at once')
  })
  expect(atOnce).rejects.toThrow('at once')
  expect(await places.run('a', async () => 'ran')).toBe('ran')
})
