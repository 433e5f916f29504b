import { OrbError } from '../errors.ts'

/** Nesting of a request body, the outermost object included (Orb Cloud contract §20). */
const MAX_DEPTH = 32

/** Names that would reach an object's prototype; they are dropped (Orb Cloud contract §21). */
const DROPPED_NAMES = new Set(['__proto__', 'constructor', 'prototype'])

const LONE_SURROGATE_ESCAPE = /\\ud[89a-f]/i

/**
 * Reads a request body as a JSON object whatever its content type; nothing is `{}`. Members that are null are left out, for
 * null means absent (Orb Cloud contract §1.2). Throws `invalid_json`.
 */
export function parseObject(bytes: Uint8Array): Record<string, unknown> {
  const text = new TextDecoder().decode(bytes)
  if (text.trim() === '') return {}
  const value = clean(parse(text), 1)
  if (!isObject(value)) throw new OrbError('invalid_json', 'the body must be a JSON object')
  return value
}

/** JSON that strict parsers take too: a lone surrogate becomes U+FFFD. */
export function toJson(value: unknown): string {
  const text = JSON.stringify(value)
  if (!LONE_SURROGATE_ESCAPE.test(text)) return text
  return JSON.stringify(value, (_, member) => (typeof member === 'string' ? member.toWellFormed() : member))
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    throw new OrbError('invalid_json', 'the body is not valid JSON')
  }
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

function clean(value: unknown, depth: number): unknown {
  if (typeof value === 'string') return value.toWellFormed()
  if (typeof value !== 'object' || value === null) return value
  if (depth > MAX_DEPTH) throw new OrbError('invalid_json', `the body is nested deeper than ${MAX_DEPTH} levels`)
  if (Array.isArray(value)) return value.map((item) => clean(item, depth + 1))
  const members = Object.entries(value).filter(([name, member]) => member !== null && !DROPPED_NAMES.has(name))
  return Object.fromEntries(members.map(([name, member]) => [name.toWellFormed(), clean(member, depth + 1)]))
}
