import { expect, test } from 'bun:test'
import { Queue, type Queued } from './queue.ts'

interface TestJob extends Queued<string> {
  begun: boolean
  end(answer: string): void
  fail(reason: Error): void
}

function job(kind = 'stored'): TestJob {
  const { promise, resolve, reject } = Promise.withResolvers<string>()
  const made: TestJob = {
    kind,
    begun: false,
    run() {
      made.begun = true
      return promise
    },
    end: resolve,
    fail: reject,
  }
  return made
}

test('runs one after the other, those of other keys beside them', async () => {
  const queue = new Queue<TestJob, string>()
  const [first, second, other] = [job(), job(), job()]
  const answers = [queue.add('a', first), queue.add('a', second), queue.add('b', other)]
  expect([first.begun, second.begun, other.begun]).toEqual([true, false, true])
  expect(queue.jobs('a')).toEqual([first, second])
  first.end('one')
  expect(await answers[0]).toBe('one')
  expect(second.begun).toBe(true)
  expect(queue.jobs('a')).toEqual([second])
  second.end('two')
  other.end('three')
  expect(await Promise.all(answers)).toEqual(['one', 'two', 'three'])
  expect(queue.jobs('a')).toEqual([])
})

test('shows who waits, by kind, and never the one that runs', () => {
  const queue = new Queue<TestJob, string>()
  const [running, waiting] = [job(), job()]
  void queue.add('a', running)
  expect(queue.waiting('a', 'stored')).toBeUndefined()
  void queue.add('a', waiting)
  expect(queue.waiting('a', 'stored')?.job).toBe(waiting)
  expect(queue.waiting('a', 'inline')).toBeUndefined()
  expect(queue.waiting('b', 'stored')).toBeUndefined()
})

test('goes on after a failure, which is its own callers’ alone', async () => {
  const queue = new Queue<TestJob, string>()
  const [first, second] = [job(), job()]
  const failing = queue.add('a', first)
  const following = queue.add('a', second)
  first.fail(new Error('no'))
  await expect(failing).rejects.toThrow('no')
  second.end('two')
  expect(await following).toBe('two')
})

test('is idle when all that runs or waits has ended', async () => {
  const queue = new Queue<TestJob, string>()
  const [first, second] = [job(), job()]
  void queue.add('a', first)
  void queue.add('a', second)
  let idle = false
  const done = queue.idle('a').then(() => {
    idle = true
  })
  first.fail(new Error('no'))
  await Promise.resolve()
  expect(idle).toBe(false)
  second.end('two')
  await done
  expect(queue.jobs('a')).toEqual([])
  await queue.idle('a')
})
