import { expect, test } from 'bun:test'
import { readBody, timely } from './body.ts'

const IDLE_MS = 50

test('a body passes as it is, and one over the limit is refused', async () => {
  const request = () => new Request('http://orb', { method: 'POST', body: 'twelve bytes' })
  expect(Buffer.from(await readBody(request(), 12)).toString()).toBe('twelve bytes')
  expect(readBody(request(), 11)).rejects.toMatchObject({ code: 'payload_too_large' })
})

test('a body whose rest does not come is given up, and its source is told', async () => {
  const cancelled = Promise.withResolvers<void>()
  const half = new ReadableStream<Uint8Array>({
    start: (controller) => controller.enqueue(Buffer.from('half')),
    cancel: () => cancelled.resolve(),
  })
  const reader = timely(half, IDLE_MS).getReader()
  expect(Buffer.from((await reader.read()).value ?? []).toString()).toBe('half')
  expect(reader.read()).rejects.toMatchObject({ code: 'invalid_request' })
  await cancelled.promise
})

test('a slow body that goes on coming is no late one', async () => {
  const pieces = ['a', 'b', 'c', 'd']
  const slow = new ReadableStream<Uint8Array>({
    async pull(controller) {
      const piece = pieces.shift()
      await Bun.sleep(IDLE_MS / 2)
      if (piece === undefined) controller.close()
      else controller.enqueue(Buffer.from(piece))
    },
  })
  expect(await new Response(timely(slow, IDLE_MS * 4)).text()).toBe('abcd')
})
