import { expect, test } from 'bun:test'
import { nextTime, scheduleProblem } from './schedule.ts'

/** A Sunday. */
const NOW = '2026-04-19T04:05:00Z'

const next = (schedule: string, count = 3): string[] => {
  const times: string[] = []
  for (let at: number | null = Date.parse(NOW); at !== null && times.length < count; ) {
    at = nextTime(schedule, at)
    if (at !== null) times.push(new Date(at).toISOString().slice(0, 16))
  }
  return times
}

test.each([
  ['* * * * *', ['2026-04-19T04:06', '2026-04-19T04:07', '2026-04-19T04:08']],
  ['17 * * * *', ['2026-04-19T04:17', '2026-04-19T05:17', '2026-04-19T06:17']],
  ['1-5/2,7 * * * *', ['2026-04-19T04:07', '2026-04-19T05:01', '2026-04-19T05:03']],
  ['*/20 9-10 * * *', ['2026-04-19T09:00', '2026-04-19T09:20', '2026-04-19T09:40']],
  ['0 0 * Jun-aug *', ['2026-06-01T00:00', '2026-06-02T00:00', '2026-06-03T00:00']],
  ['0 0 * * mon,WED', ['2026-04-20T00:00', '2026-04-22T00:00', '2026-04-27T00:00']],
  ['0 0 * * 0', ['2026-04-26T00:00', '2026-05-03T00:00', '2026-05-10T00:00']],
  ['0 0 * * 7', ['2026-04-26T00:00', '2026-05-03T00:00', '2026-05-10T00:00']],
  ['0 0 * * 6-7', ['2026-04-25T00:00', '2026-04-26T00:00', '2026-05-02T00:00']],
  // Both fields of the day: either of them.
  ['0 0 13 * 5', ['2026-04-24T00:00', '2026-05-01T00:00', '2026-05-08T00:00', '2026-05-13T00:00', '2026-05-15T00:00']],
  ['0 0 13 * *', ['2026-05-13T00:00', '2026-06-13T00:00', '2026-07-13T00:00']],
  ['0 0 29 2 *', ['2028-02-29T00:00', '2032-02-29T00:00', '2036-02-29T00:00']],
  ['0 0 30 2 fri', ['2027-02-05T00:00', '2027-02-12T00:00', '2027-02-19T00:00']],
  ['  5\t4 * *  * ', ['2026-04-20T04:05', '2026-04-21T04:05', '2026-04-22T04:05']],
  ['@hourly', ['2026-04-19T05:00', '2026-04-19T06:00', '2026-04-19T07:00']],
  ['@daily', ['2026-04-20T00:00', '2026-04-21T00:00', '2026-04-22T00:00']],
  ['@weekly', ['2026-04-26T00:00', '2026-05-03T00:00', '2026-05-10T00:00']],
  ['@monthly', ['2026-05-01T00:00', '2026-06-01T00:00', '2026-07-01T00:00']],
  ['@Yearly', ['2027-01-01T00:00', '2028-01-01T00:00', '2029-01-01T00:00']],
])('%s', (schedule, times) => {
  expect(scheduleProblem(schedule)).toBeNull()
  expect(next(schedule, times.length)).toEqual(times)
})

test('the next time is after the given one, and at a full minute', () => {
  const at = (text: string) => nextTime('* * * * *', Date.parse(text))
  expect(at('2026-04-19T04:05:59.999Z')).toBe(Date.parse('2026-04-19T04:06:00Z'))
  expect(at('2026-04-19T04:06:00.000Z')).toBe(Date.parse('2026-04-19T04:07:00Z'))
  expect(at('2026-04-19T04:06:00.001Z')).toBe(Date.parse('2026-04-19T04:07:00Z'))
})

test.each([
  '',
  '* * * *',
  '* * * * * *',
  '60 * * * *',
  '* 24 * * *',
  '* * 0 * *',
  '* * 32 * *',
  '* * * 13 *',
  '* * * * 8',
  '*/0 * * * *',
  '9-3 * * * *',
  '1-2-3 * * * *',
  '* * * foo *',
  // Signs that only croner knows.
  '? * * * *',
  '* * L * *',
  '* * 15W * *',
  '* * * * 5#2',
  '* * * * +1',
  '@reboot',
  '@never',
  '2026-05-01T00:00:00',
])('%p is refused', (schedule) => {
  expect(scheduleProblem(schedule)).toContain('five fields')
})

test.each(['0 0 30 2 *', '0 0 31 2,4,6,9,11 *'])('%s never comes and is refused', (schedule) => {
  expect(scheduleProblem(schedule)).toBe('a day that no month of it has')
})

test('one of more than 256 characters is refused before it is read', () => {
  const longest = `${'1,'.repeat(123)}12 * * * *`
  expect(longest).toHaveLength(256)
  expect(scheduleProblem(longest)).toBeNull()
  expect(scheduleProblem(`${longest} `)).toBe('at most 256 characters')
  expect(scheduleProblem(`@daily${' '.repeat(60_000)}`)).toBe('at most 256 characters')
})
