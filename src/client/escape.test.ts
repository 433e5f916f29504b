import { expect, test } from 'bun:test'
import { EscapeWatch } from './escape.ts'

test.each([
  ['at the very beginning', ['~.'], '', true],
  ['key by key', ['ls\r', '~', '.'], 'ls\r', true],
  ['not within a line', ['a~.'], 'a~.', false],
  ['a tilde and something else', ['~/bin\r'], '~/bin\r', false],
  ['two tildes are one', ['~~.'], '~.', false],
  ['a tilde is kept back until the next key', ['\r~'], '\r', false],
  ['after the tilde and a new line', ['~\r~.'], '~\r', true],
])('%s', (_, typed, sent, leaves) => {
  const watch = new EscapeWatch()
  let all = ''
  let left = false
  for (const keys of typed) {
    const { send, leave } = watch.feed(Buffer.from(keys))
    all += Buffer.from(send).toString()
    left ||= leave
  }
  expect([all, left]).toEqual([sent, leaves])
})
