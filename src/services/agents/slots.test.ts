import { expect, jest, test } from 'bun:test'
import { Slots } from './slots.ts'

/** Runs pieces of work that end when they are told to, and tells which have begun. */
function setUp(cores: number) {
  const slots = new Slots(cores)
  const begun: string[] = []
  const ends = new Map<string, PromiseWithResolvers<string>>()
  const add = (kind: 'restore' | 'dump', name: string, unwanted?: AbortSignal) => {
    const end = Promise.withResolvers<string>()
    ends.set(name, end)
    const work = () => {
      begun.push(name)
      return end.promise
    }
    return slots.run(kind, work, unwanted)
  }
  return { add, begun, end: (name: string) => ends.get(name)?.resolve(name), ends, slots }
}

/** Lets everything run that waits for nothing but its turn. */
const turns = () => new Promise<void>((resolve) => setImmediate(resolve))

test('as many at once as there are cores, each result to its caller', async () => {
  const { add, begun, end } = setUp(2)
  const all = ['a', 'b', 'c', 'd'].map((name) => add('restore', name))
  await turns()
  expect(begun).toEqual(['a', 'b'])
  end('b')
  await turns()
  expect(begun).toEqual(['a', 'b', 'c'])
  for (const name of ['a', 'c', 'd']) end(name)
  expect(await Promise.all(all)).toEqual(['a', 'b', 'c', 'd'])
})

test('restores come before dumps that wait longer; each kind in its order', async () => {
  const { add, begun, end } = setUp(1)
  const all = [
    add('dump', 'running'),
    add('dump', 'dump 1'),
    add('dump', 'dump 2'),
    add('restore', 'restore 1'),
    add('restore', 'restore 2'),
  ]
  for (const name of ['running', 'restore 1', 'restore 2', 'dump 1', 'dump 2']) {
    await turns()
    expect(begun.at(-1)).toBe(name)
    end(name)
  }
  await Promise.all(all)
  expect(begun).toHaveLength(5)
})

test('dumps leave one place for a restore', async () => {
  const { add, begun, end } = setUp(3)
  const all = ['dump 1', 'dump 2', 'dump 3'].map((name) => add('dump', name))
  all.push(add('restore', 'restore 1'), add('restore', 'restore 2'))
  await turns()
  expect(begun).toEqual(['dump 1', 'dump 2', 'restore 1'])
  end('restore 1')
  await turns()
  expect(begun).toEqual(['dump 1', 'dump 2', 'restore 1', 'restore 2'])
  end('restore 2')
  await turns()
  expect(begun).toHaveLength(4)
  end('dump 1')
  await turns()
  expect(begun.at(-1)).toBe('dump 3')
  for (const name of ['dump 2', 'dump 3']) end(name)
  await Promise.all(all)
})

test('what is unwanted before its turn is not run and holds nobody up', async () => {
  const { add, begun, end } = setUp(1)
  const running = add('restore', 'running')
  const unwanted = new AbortController()
  const dropped = add('dump', 'dropped', unwanted.signal)
  const next = add('dump', 'next', new AbortController().signal)
  unwanted.abort()
  expect(await dropped).toBeNull()
  end('running')
  await running
  await turns()
  expect(begun).toEqual(['running', 'next'])
  end('next')
  expect(await next).toBe('next')
})

test('dumps that nobody asked for come last, and wait while they are held', async () => {
  const { add, begun, end, slots } = setUp(1)
  const nobodys = new AbortController().signal
  const releases = [slots.holdUnasked(), slots.holdUnasked()]
  const all = [add('dump', 'unasked 1', nobodys), add('dump', 'unasked 2', nobodys), add('dump', 'asked')]
  await turns()
  expect(begun).toEqual(['asked'])
  end('asked')
  releases[0]?.()
  releases[0]?.()
  await turns()
  expect(begun).toEqual(['asked'])
  releases[1]?.()
  await turns()
  expect(begun).toEqual(['asked', 'unasked 1'])
  end('unasked 1')
  end('unasked 2')
  expect(await Promise.all(all)).toEqual(['unasked 1', 'unasked 2', 'asked'])
})

test('dumps are held for no more than 15 s of any minute, however many ask for it', async () => {
  jest.useFakeTimers()
  try {
    const slots = new Slots(1)
    const nobodys = new AbortController().signal
    const begun: string[] = []
    const add = (name: string) => slots.run('dump', async () => void begun.push(name), nobodys)
    const settle = async () => {
      for (let turn = 0; turn < 10; turn++) await Promise.resolve()
      return begun.splice(0)
    }
    const first = slots.holdUnasked()
    jest.advanceTimersByTime(10_000)
    first()
    jest.advanceTimersByTime(20_000)
    // 5 s are left.
    const second = slots.holdUnasked()
    void add('second')
    jest.advanceTimersByTime(4_999)
    expect(await settle()).toEqual([])
    jest.advanceTimersByTime(1)
    expect(await settle()).toEqual(['second'])
    const third = slots.holdUnasked()
    void add('third')
    expect(await settle()).toEqual(['third'])
    second()
    third()
    // The first hold is 60 s ago.
    jest.advanceTimersByTime(35_000)
    const fourth = slots.holdUnasked()
    void add('fourth')
    jest.advanceTimersByTime(9_999)
    expect(await settle()).toEqual([])
    fourth()
    expect(await settle()).toEqual(['fourth'])
  } finally {
    jest.useRealTimers()
  }
})

test('work that has begun is not undone', async () => {
  const { add, end } = setUp(1)
  const unwanted = new AbortController()
  const running = add('dump', 'running', unwanted.signal)
  unwanted.abort()
  end('running')
  expect(await running).toBe('running')
})

test('a failure is the caller’s and frees the place', async () => {
  const { add, begun, end, ends } = setUp(1)
  const failing = add('restore', 'failing')
  const next = add('dump', 'next')
  ends.get('failing')?.reject(new Error('no'))
  expect(failing).rejects.toThrow('no')
  await turns()
  expect(begun).toEqual(['failing', 'next'])
  end('next')
  await next
})

test('work that throws before its first await frees the place too', async () => {
  const slots = new Slots(1)
  const failing = slots.run('dump', () => {
    throw new Error('at once')
  })
  expect(failing).rejects.toThrow('at once')
  expect(await slots.run('dump', async () => 'ran')).toBe('ran')
})

test('a place that was handed over is not free for somebody who comes meanwhile', async () => {
  const { add, begun, end } = setUp(1)
  const first = add('dump', 'first')
  const second = add('dump', 'second')
  end('first')
  await first
  const third = add('dump', 'third')
  await turns()
  expect(begun).toEqual(['first', 'second'])
  end('second')
  end('third')
  await Promise.all([second, third])
  expect(begun).toEqual(['first', 'second', 'third'])
})

test('there is always one place', async () => {
  const { add, begun, end } = setUp(0)
  const only = add('dump', 'only')
  await turns()
  expect(begun).toEqual(['only'])
  end('only')
  await only
})
