import { z } from 'zod'
import { OrbError } from '../errors.ts'
import { parseTime } from '../time.ts'

/**
 * Zod checks whose messages continue the name of the field: `runtime_mb` + `must be an integer between 64 and 65536`. All
 * requests are described with these, so that every answer to a bad one names what is wrong.
 */
const must = (phrase: string) => ({
  error: (issue: { code?: string; input?: unknown }) =>
    issue.code === 'invalid_type' && issue.input === undefined ? 'is required' : `must be ${phrase}`,
})

export const integer = (min: number, max: number) => {
  const error = must(`an integer between ${min} and ${max}`)
  return z.int(error).min(min, error).max(max, error)
}

export const positiveInteger = () => z.int(must('a positive integer')).min(1, must('a positive integer'))

export const flag = () => z.boolean(must('true or false'))

export const oneOf = <const T extends string>(values: readonly T[]) =>
  z.enum(values, must(`one of: ${values.join(', ')}`))

/** A text of `min` to `max` characters without NUL, which no program could be given. */
export const text = (min: number, max: number) => {
  const error = must(`a string of ${min} to ${max} characters`)
  return z
    .string(error)
    .min(min, error)
    .max(max, error)
    .refine((value) => !value.includes('\0'), 'must not contain NUL')
}

/** A text of one line: no control characters. */
export const line = (min: number, max: number) =>
  text(min, max).regex(/^\P{Cc}*$/u, { error: 'must not contain control characters' })

export const textMap = (maxBytes: number) =>
  z.record(
    text(1, 256),
    z
      .string(must('a string'))
      .refine((value) => !value.includes('\0'), 'must not contain NUL')
      .refine((value) => Buffer.byteLength(value) <= maxBytes, `must be at most ${maxBytes} bytes`),
    must('an object of strings'),
  )

/** At least one of `item`. */
export const list = <S extends z.ZodType>(item: S, of: string) => {
  const error = must(`a list of ${of}, at least one`)
  return z.array(item, error).min(1, error)
}

export const table = () => z.record(z.string(), z.unknown(), must('an object'))

/** An integer in a query string. */
export const queryInteger = (min: number, max: number) =>
  z.preprocess((raw) => (typeof raw === 'string' && /^\d{1,9}$/.test(raw) ? Number(raw) : raw), integer(min, max))

/** `true`, `1`, `false` or `0` in a query string. */
export const queryFlag = () =>
  z.preprocess((raw) => (raw === '1' || raw === 'true' ? true : raw === '0' || raw === 'false' ? false : raw), flag())

/** A point in time in a query string, as `parseTime` reads it. */
export const queryTime = () =>
  z
    .string()
    .refine((value) => parseTime(value) !== null, must('a time such as 2026-04-19T04:05:00Z or 2026-04-19'))
    .meta({ format: 'date-time' })

/** What `schema` makes of a body or query. Throws `invalid_request` with the first problem. */
export function check<S extends z.ZodType>(schema: S, input: unknown): z.output<S> {
  const parsed = schema.safeParse(input)
  if (parsed.success) return parsed.data
  const issue = parsed.error.issues[0]
  const name = issue?.path.map(String).join('.') || 'the body'
  throw new OrbError('invalid_request', `${name} ${issue?.message ?? 'is not valid'}`)
}
