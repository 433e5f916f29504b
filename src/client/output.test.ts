import { expect, test } from 'bun:test'
import { printable, sizeText, table } from './output.ts'

test('columns are as wide as what is in them', () => {
  const lines = table(
    ['ID', 'NAME', 'X'],
    [
      ['1', '模型', 2],
      ['22', null, true],
    ],
    'none',
  ).split('\n')
  expect(lines).toEqual(['ID  NAME  X', '1   模型  2', '22  -     true'])
  expect(table(['ID'], [], 'none')).toBe('none')
})

test('what a server sends commands no terminal', () => {
  const shown = printable('\x1b[31mred\x1b[0m\x07\x1b]0;title\x07 é\r')
  expect(shown).toContain('red')
  for (const command of ['\x1b', '\x07', '\r']) expect(shown).not.toContain(command)
  expect(table(['A'], [['a\nb']], '')).toBe('A\na b')
})

test('sizes', () => {
  expect([0, 1023, 1024, 5 * 1024 ** 3].map(sizeText)).toEqual(['0 B', '1023 B', '1.0 KiB', '5.0 GiB'])
})
