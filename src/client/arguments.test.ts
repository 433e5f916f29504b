import { describe, expect, test } from 'bun:test'
import { integerOption, pickAction, readArguments, splitAfterFirst } from './arguments.ts'
import { UsageFailure } from './failure.ts'

const OPTIONS = { timeout: { type: 'string' }, follow: { type: 'boolean', short: 'f' } } as const

test('options stand before, between and after arguments', () => {
  const { values, positionals } = readArguments(['-f', 'one', '--timeout=3', 'two', '--json'], ['A', 'B?'], OPTIONS)
  expect({ ...values }).toEqual({ follow: true, timeout: '3', json: true })
  expect(positionals).toEqual(['one', 'two'])
})

test.each([
  [[], ['COMPUTER'], 'COMPUTER is missing'],
  [[], ['COMPUTER...'], 'COMPUTER is missing'],
  [['a', 'b'], ['COMPUTER'], 'b is one argument too many'],
  [['--nmae'], [], '--nmae'],
  [['--timeout'], [], '--timeout'],
])('%p is refused', (argv, names, message) => {
  expect(() => readArguments(argv, names, OPTIONS)).toThrow(UsageFailure)
  expect(() => readArguments(argv, names, OPTIONS)).toThrow(message)
})

test('one or more', () => {
  expect(readArguments(['a', 'b', 'c'], ['COMPUTER...'], {}).positionals).toEqual(['a', 'b', 'c'])
})

describe('what follows the first argument is not looked at', () => {
  test.each([
    [
      ['--timeout', '5', 'box', 'ls', '-la', '--json'],
      ['--timeout', '5', 'box'],
      ['ls', '-la', '--json'],
    ],
    [['box', '--', '-x'], ['box'], ['-x']],
    [['-f', 'box'], ['-f', 'box'], []],
    [['--json'], ['--json'], []],
  ])('%p', (argv, own, rest) => {
    expect(splitAfterFirst(argv, OPTIONS)).toEqual([own, rest])
  })
})

test('numbers', () => {
  expect([integerOption('tail', '0', 0), integerOption('tail', undefined, 0)]).toEqual([0, undefined])
  for (const bad of ['-1', '1.5', 'x', '']) expect(() => integerOption('tail', bad, 0)).toThrow('--tail')
  expect(() => integerOption('replicas', '0', 1)).toThrow('at least 1')
})

test('subcommands', () => {
  expect(pickAction(['show', 'x'], ['list', 'show'], 'list')).toEqual(['show', ['x']])
  expect(pickAction(['--json'], ['list', 'show'], 'list')).toEqual(['list', ['--json']])
  expect(() => pickAction(['shwo'], ['list', 'show'], 'list')).toThrow('shwo is not one of list, show')
  expect(() => pickAction([], ['list', 'show'], null)).toThrow('is missing')
})
