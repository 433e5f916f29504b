import { describe, expect, test } from 'bun:test'
import { readCronFile, readStoredJob } from './file.ts'

const read = (content: unknown) =>
  readCronFile(
    content instanceof Buffer ? content : Buffer.from(typeof content === 'string' ? content : JSON.stringify(content)),
  )
const job = (more: Record<string, unknown> = {}) => ({ name: 'a', schedule: '* * * * *', command: 'true', ...more })
const FULL = {
  name: 'a',
  schedule: '* * * * *',
  command: 'true',
  env: {},
  working_dir: null,
  timeout_secs: 30,
  enabled: true,
  skip_if_running: true,
}

test('what is left out has its default, null is left out, what is unknown is ignored', () => {
  const file = { version: null, more: 1, jobs: [job({ env: null, working_dir: null, timeout_secs: null, more: 1 })] }
  expect(read(file)).toEqual({ kind: 'good', jobs: [FULL], error: null })
})

test('every field is taken over, and read back from where it is stored', () => {
  const all = {
    name: 'A.b_c-1',
    schedule: '@daily',
    command: 'cd /x && y',
    env: { A: '1', B: '$C' },
    working_dir: '/srv',
    timeout_secs: 21_600,
    enabled: false,
    skip_if_running: false,
  }
  expect(read({ version: 1, jobs: [all] })).toEqual({ kind: 'good', jobs: [all], error: null })
  expect(readStoredJob(JSON.stringify(all))).toEqual(all)
})

test('numbers and booleans in env become strings', () => {
  expect(read({ jobs: [job({ env: { A: 1, B: true, C: 0.5 } })] })).toMatchObject({
    jobs: [{ env: { A: '1', B: 'true', C: '0.5' } }],
  })
})

test('no jobs are no problem', () => {
  expect(read({ jobs: [] })).toEqual({ kind: 'good', jobs: [], error: null })
})

describe('nothing counts of', () => {
  test.each([
    ['an empty file', '', 'not valid JSON'],
    ['half a file', '{"jobs":[', 'not valid JSON'],
    ['what is not UTF-8', Buffer.from('{"jobs":[],"x":"\xff"}', 'latin1'), 'not valid JSON'],
    ['a list', [], 'it must be an object'],
    ['an object without jobs', {}, 'jobs is required'],
    ['jobs of another type', { jobs: {} }, 'jobs must be a list'],
    ['another version', { version: 2, jobs: [] }, 'version must be 1'],
    [
      'more than 100 jobs',
      { jobs: Array.from({ length: 101 }, (_, n) => job({ name: `j${n}` })) },
      'jobs must be at most 100',
    ],
    ['nesting without end', '['.repeat(60_000), 'not valid JSON'],
  ])('%s', (_, content, error) => {
    expect(read(content)).toEqual({ kind: 'broken', error: expect.stringContaining(error) })
  })
})

describe('a bad job does not count, the others do:', () => {
  test.each([
    ['no object', 7, 'jobs[0]: '],
    ['no name', { schedule: '* * * * *', command: 'x' }, 'jobs[0]: name is required'],
    ['bad name', job({ name: 'a b' }), 'jobs[0]: invalid name: a b (expected 1 to 64 letters'],
    ['long name', job({ name: 'x'.repeat(65) }), 'jobs[0]: invalid name'],
    ['no schedule', { name: 'a', command: 'x' }, 'jobs[0]: schedule is required'],
    ['bad schedule', job({ schedule: '61 * * * *' }), 'jobs[0]: invalid schedule: 61 * * * * (expected five fields'],
    [
      'long schedule',
      job({ schedule: `${'0,'.repeat(28_000)}0 * * * *` }),
      `jobs[0]: invalid schedule: ${'0,'.repeat(20)}`,
    ],
    ['end of a long schedule', job({ schedule: `0${' '.repeat(250)}* * * *` }), '(expected at most 256 characters)'],
    ['no command', { name: 'a', schedule: '* * * * *' }, 'jobs[0]: command is required'],
    ['empty command', job({ command: '' }), 'jobs[0]: command is required'],
    ['NUL in the command', job({ command: 'a\0b' }), 'jobs[0]: command must not contain a NUL'],
    ['env of another type', job({ env: [] }), 'jobs[0]: env must be an object'],
    ['list in env', job({ env: { A: [] } }), 'jobs[0]: env.A must be a string'],
    ['= in a name of env', job({ env: { 'A=B': '' } }), 'jobs[0]: env.A=B must be'],
    ['relative directory', job({ working_dir: 'x' }), 'jobs[0]: invalid working_dir: x (expected an absolute path)'],
    ['no time', job({ timeout_secs: 0 }), 'jobs[0]: timeout_secs must be at least 1'],
    ['too much time', job({ timeout_secs: 21_601 }), 'jobs[0]: timeout_secs must be at most 21600'],
    ['half seconds', job({ timeout_secs: 1.5 }), 'jobs[0]: timeout_secs must be an integer'],
    ['text for a flag', job({ enabled: 'yes' }), 'jobs[0]: enabled must be true or false'],
  ])('%s', (_, bad, error) => {
    const file = read({ jobs: [bad, job({ name: 'good' })] })
    expect(file).toEqual({ kind: 'good', jobs: [{ ...FULL, name: 'good' }], error: expect.stringContaining(error) })
  })

  test('of two with one name the second', () => {
    expect(read({ jobs: [job(), job({ command: 'false' })] })).toEqual({
      kind: 'good',
      jobs: [FULL],
      error: 'jobs[1]: the name a is taken',
    })
  })

  test('many problems are told of in few words', () => {
    const file = read({ jobs: Array.from({ length: 14 }, () => 0) })
    expect(file.error?.split('; ')).toHaveLength(11)
    expect(file.error).toEndWith('; and 4 more')
  })
})
