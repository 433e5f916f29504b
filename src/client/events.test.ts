import { expect, test } from 'bun:test'
import { readEvents } from './events.ts'

/** A stream of the pieces, as a network would cut them. */
const streamOf = (pieces: (string | Uint8Array)[]): ReadableStream<Uint8Array> =>
  new ReadableStream({
    start(controller) {
      for (const piece of pieces)
        controller.enqueue(typeof piece === 'string' ? new TextEncoder().encode(piece) : piece)
      controller.close()
    },
  })

test.each([
  ['names, data and comments', [': ping\n\nevent: exit\ndata: {"a":1}\n\n'], [{ event: 'exit', data: '{"a":1}' }]],
  ['no name', ['data: x\n\n'], [{ event: 'message', data: 'x' }]],
  ['several lines of data', ['data: a\ndata:b\n\n'], [{ event: 'message', data: 'a\nb' }]],
  ['a cut in a line', ['da', 'ta: a', 'b\n', '\n'], [{ event: 'message', data: 'ab' }]],
  [
    'a cut between CR and LF',
    ['data: a\r', '\n\r', '\ndata: b\r\n\r\n'],
    [
      { event: 'message', data: 'a' },
      { event: 'message', data: 'b' },
    ],
  ],
  ['an event without data', ['event: x\n\ndata: y\n\n'], [{ event: 'message', data: 'y' }]],
  ['an event that was cut off', ['data: a\n\ndata: b\n'], [{ event: 'message', data: 'a' }]],
])('reads %s', async (_, pieces, expected) => {
  expect(await Array.fromAsync(readEvents(streamOf(pieces)))).toEqual(expected)
})

test('puts characters together that were cut', async () => {
  const bytes = new TextEncoder().encode('data: ü\n\n')
  const [event] = await Array.fromAsync(readEvents(streamOf([bytes.slice(0, 7), bytes.slice(7)])))
  expect(event?.data).toBe('ü')
})
