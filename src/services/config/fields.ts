import { z } from 'zod'
import { parseCidr } from '../../cidr.ts'
import { parseDuration } from '../../time.ts'

/** Says what is wrong with a value, or null. */
type Problem<T> = (value: T) => string | null

const MAX_SHOWN_CHARACTERS = 80

/** `invalid <key>: <value> (expected …)` with an example or with the allowed words, Orb Cloud contract §4. */
export const invalid = (key: string, value: unknown, expected: string | readonly string[]): string => {
  const text = String(value)
  const shown = text.length > MAX_SHOWN_CHARACTERS ? `${text.slice(0, MAX_SHOWN_CHARACTERS)}…` : text
  return `invalid ${key}: ${shown} (expected${typeof expected === 'string' ? ` ${expected}` : `: ${expected.join(', ')}`})`
}

/** Messages of a value that is absent or of another type. */
export const needs = (key: string, what: string) => ({
  error: (issue: { input?: unknown }) => (issue.input === undefined ? `${key} is required` : `${key} must be ${what}`),
})

export const checked = <S extends z.ZodType>(schema: S, problem: Problem<z.output<S>>) =>
  schema.superRefine((value, context) => {
    const message = problem(value)
    if (message !== null) context.addIssue({ code: 'custom', message })
  })

/** Reads a value into another form; `read` gives null for what `expected` does not describe. */
const converted = <S extends z.ZodType, T>(
  schema: S,
  key: string,
  expected: string,
  read: (value: z.output<S>) => T | null,
) =>
  schema.transform((value, context) => {
    const result = read(value)
    if (result !== null) return result
    context.addIssue({ code: 'custom', message: invalid(key, value, expected) })
    return z.NEVER
  })

const withoutNul = (key: string, text: string): string | null =>
  text.includes('\0') ? `${key} must not contain a NUL character` : null

/** Text that a program is given: no NUL, which would end it early. */
export const text = (key: string) => checked(z.string(needs(key, 'a string')), (value) => withoutNul(key, value))

export const requiredText = (key: string) =>
  checked(z.string(needs(key, 'a string')), (value) => (value === '' ? `${key} is required` : withoutNul(key, value)))

export const textList = (key: string) => {
  const error = `${key} must be a list of strings`
  return checked(z.array(z.string(error), needs(key, 'a list of strings')), (values) =>
    withoutNul(key, values.join('')),
  )
}

export const table = <S extends z.ZodRawShape>(key: string, shape: S) => z.object(shape, `${key} must be a table`)

/** One of a few words; `shown` is the name of the key in a message. */
export const oneOf = <const V extends readonly string[]>(key: string, values: V, shown = key) =>
  z.enum(values, {
    error: (issue) =>
      typeof issue.input === 'string' ? invalid(shown, issue.input, values) : needs(key, 'a string').error(issue),
  })

const textOrNumber = (key: string, what: string) =>
  z.union([z.string(), z.number()], { error: `${key} must be ${what}` })

/** Milliseconds of a duration (Orb Cloud contract §1.1). */
export const duration = (key: string) =>
  converted(textOrNumber(key, 'a duration'), key, 'a duration such as 120s', (value) => parseDuration(String(value)))

const UNIT_MB: Record<string, number> = { '': 1, MB: 1, GB: 1024 }

/** Megabytes of `"2GB"`, `"512MB"` or a bare number of MB (Orb Cloud contract §4). */
export const size = (key: string) =>
  converted(textOrNumber(key, 'a size'), key, 'a size such as 2GB or 512MB', (value) => {
    const match = /^(\d{1,9}(?:\.\d{1,3})?)\s*(MB|GB|)$/i.exec(String(value).trim())
    const unit = UNIT_MB[match?.[2]?.toUpperCase() ?? '']
    const megabytes = Math.floor(Number(match?.[1]) * (unit ?? 0))
    return megabytes > 0 ? megabytes : null
  })

export const megabytes = (key: string) =>
  checked(z.int(`${key} must be an integer`), (value) =>
    value > 0 ? null : invalid(key, value, 'a positive number of MB'),
  )

/** Whether plain `http` to this address is allowed by the operator. */
export type PlainHttpAllowed = (url: URL) => boolean

const isSecure = (value: string, plainHttpAllowed: PlainHttpAllowed): boolean => {
  // URL accepts spaces around, tabs inside and `https:host`; other programs that read the value do not.
  if (!/^https?:\/\/[^\s\\\p{Cc}]+$/iu.test(value)) return false
  const url = URL.parse(value)
  return url !== null && (url.protocol === 'https:' || plainHttpAllowed(url))
}

const hasCredentials = (value: string): boolean => {
  const url = URL.parse(value)
  return url !== null && (url.username !== '' || url.password !== '')
}

/** The address of a repository: a problem never repeats it, it may hold a password. */
export const gitUrl = (key: string, plainHttpAllowed: PlainHttpAllowed) =>
  checked(requiredText(key), (value) => {
    if (value === '') return null
    if (!isSecure(value, plainHttpAllowed)) return `${key} must be an https:// URL`
    return hasCredentials(value) ? `${key} must not contain credentials` : null
  })

/** The address of an LLM. */
export const baseUrl = (key: string, plainHttpAllowed: PlainHttpAllowed) =>
  checked(text(key), (value) => {
    if (hasCredentials(value)) return `${key} must not contain credentials`
    if (/[?#]/.test(value)) return `${key} must not contain a query or fragment`
    return isSecure(value, plainHttpAllowed) ? null : invalid(key, value, 'an https:// URL')
  })

const HOST_LABEL = '[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?'
// A last label of digits alone would be a broken IPv4 address.
const HOST = new RegExp(`^(?:\\*\\.)?(?:${HOST_LABEL}\\.)*(?!\\d+$)${HOST_LABEL}$`, 'i')
const MAX_HOST_CHARACTERS = 253

/** A host, `*.host`, IP or CIDR that a computer may reach. */
export const isDestination = (value: string): boolean =>
  parseCidr(value) !== null || (value.length <= MAX_HOST_CHARACTERS && HOST.test(value))
