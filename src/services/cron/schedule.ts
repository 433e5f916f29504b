import { Cron, CronPattern } from 'croner'

/** Five fields of lists, ranges, steps and names, no more than the contract promises: croner knows further signs. */
const PART = '(?:\\d{1,2}|[a-z]{3})'
const ITEM = `(?:\\*|${PART}(?:-${PART})?)(?:/\\d{1,2})?`
const FIELD = `${ITEM}(?:,${ITEM})*`
const FIVE_FIELDS = new RegExp(`^\\s*${FIELD}(?:\\s+${FIELD}){4}\\s*$`, 'i')
const ALIAS = /^\s*@(?:hourly|daily|midnight|weekly|monthly|yearly|annually)\s*$/i
const MODE = '5-part'
/** A long list takes croner tens of milliseconds. */
const MAX_CHARACTERS = 256

/** Schedules as croner has parsed them: that takes 0.1 ms, and most computers have the same few. */
const parsed = new Map<string, Cron>()
const MOST_PARSED = 4096

const LONGEST_MONTHS = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]

/** What is wrong with a schedule of cron.json (Orb Cloud contract §15.1), or null. */
export function scheduleProblem(schedule: string): string | null {
  if (schedule.length > MAX_CHARACTERS) return `at most ${MAX_CHARACTERS} characters`
  try {
    if (!ALIAS.test(schedule)) {
      if (!FIVE_FIELDS.test(schedule)) return FORM
      if (!everComes(new CronPattern(schedule, undefined, { mode: MODE }))) return 'a day that no month of it has'
    }
    parse(schedule)
    return null
  } catch {
    return FORM
  }
}

const FORM = 'five fields, minute 0-59, hour 0-23, day 1-31, month 1-12 and weekday 0-7, or one of @hourly … @yearly'

/** The search for a date such as 30 February would go through all years. */
const everComes = ({ starDOW, month, day }: CronPattern): boolean =>
  !starDOW || LONGEST_MONTHS.some((days, index) => month[index] === 1 && day.slice(0, days).includes(1))

/** The first time of a schedule after `after` (both ms since the epoch), in UTC; null if there is none any more. */
export const nextTime = (schedule: string, after: number): number | null =>
  parse(schedule).nextRun(new Date(after))?.getTime() ?? null

function parse(schedule: string): Cron {
  const known = parsed.get(schedule)
  if (known) return known
  if (parsed.size >= MOST_PARSED) parsed.clear()
  const cron = new Cron(schedule.trim(), { mode: MODE, utcOffset: 0 })
  parsed.set(schedule, cron)
  return cron
}
