import { describe, expect, test } from 'bun:test'
import { Head, Tail } from './output.ts'

const bytes = (text: string): Uint8Array => Buffer.from(text)

describe.each([
  ['Head', Head, 'abcd'],
  ['Tail', Tail, 'efgh'],
] as const)('%s', (_, Kind, kept) => {
  test('keeps all of what is short', () => {
    const output = new Kind(4)
    for (const chunk of ['ab', '', 'cd']) output.push(bytes(chunk))
    expect([output.text(), output.truncated]).toEqual(['abcd', false])
  })

  test('keeps its part of what is long, however it comes', () => {
    for (const chunks of [['abcdefgh'], ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'], ['abc', 'defgh']]) {
      const output = new Kind(4)
      for (const chunk of chunks) output.push(bytes(chunk))
      expect([output.text(), output.truncated]).toEqual([kept, true])
    }
  })

  test('replaces what is not UTF-8', () => {
    const output = new Kind(4)
    output.push(new Uint8Array([0x61, 0xff, 0x62]))
    expect(output.text()).toBe('a\ufffdb')
  })
})

test('the start ends with a whole character', () => {
  const output = new Head(5)
  output.push(bytes('abcé'))
  output.push(bytes('é'))
  expect(output.text()).toBe('abcé')
  const cut = new Head(4)
  cut.push(bytes('abcé'))
  expect([cut.text(), cut.truncated]).toEqual(['abc', true])
})

test('what comes after the close is thrown away', () => {
  const output = new Head(8)
  output.push(bytes('abc'))
  output.close()
  output.push(bytes('def'))
  expect(output.text()).toBe('abc')
})
