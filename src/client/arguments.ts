import { type ParseArgsOptionsConfig, parseArgs } from 'node:util'
import { messageOf } from '../errors.ts'
import { UsageFailure } from './failure.ts'

/** Options that every command takes. */
export const COMMON = {
  url: { type: 'string' },
  json: { type: 'boolean', default: false },
} as const satisfies ParseArgsOptionsConfig

/** How many arguments there are beside options, named for messages: `['COMPUTER', 'PATH?']`; a last `NAME...` is one or more. */
export type Names = readonly string[]

/**
 * Reads a command line strictly: unknown options, missing and superfluous arguments are refused by their names. Options may
 * stand anywhere; after `--` there are none.
 */
export function readArguments<const O extends ParseArgsOptionsConfig>(argv: string[], names: Names, options: O) {
  try {
    const { values, positionals } = parseArgs({
      args: argv,
      options: { ...COMMON, ...options },
      allowPositionals: true,
      strict: true,
    })
    checkCount(positionals, names)
    return { values, positionals }
  } catch (thrown) {
    if (thrown instanceof UsageFailure) throw thrown
    throw new UsageFailure(firstSentence(messageOf(thrown)))
  }
}

/** Node adds advice about `--` that fits no command here. */
const firstSentence = (message: string): string => message.split(/\.\s/)[0]?.replace(/\.$/, '') ?? message

function checkCount(positionals: string[], names: Names): void {
  const missing = names[positionals.length]
  if (missing !== undefined && !missing.endsWith('?'))
    throw new UsageFailure(`${missing.replace('...', '')} is missing`)
  if (positionals.length > names.length && !names.at(-1)?.endsWith('...')) {
    throw new UsageFailure(`${positionals[names.length]} is one argument too many`)
  }
}

/**
 * Splits a command line after its first argument that is no option: what follows belongs to another program and is not looked
 * at. A `--` between both is dropped.
 */
export function splitAfterFirst(argv: string[], options: ParseArgsOptionsConfig): [own: string[], rest: string[]] {
  const { tokens } = parseArgs({ args: argv, options: { ...COMMON, ...options }, strict: false, tokens: true })
  const first = tokens.find(({ kind }) => kind === 'positional')
  if (!first) return [argv, []]
  const rest = argv.slice(first.index + 1)
  return [argv.slice(0, first.index + 1), rest[0] === '--' ? rest.slice(1) : rest]
}

/** An option that is a number: null where it is absent. */
export function integerOption(name: string, value: string | undefined, least: number): number | undefined {
  if (value === undefined) return undefined
  const number = Number(value)
  if (!/^\d+$/.test(value) || !Number.isSafeInteger(number) || number < least) {
    throw new UsageFailure(`--${name} must be a whole number of at least ${least}, not ${value}`)
  }
  return number
}

/** The subcommand of a command line that begins with one, or `usual` where none is given. */
export function pickAction<A extends string>(argv: string[], actions: readonly A[], usual: A | null): [A, string[]] {
  const [first, ...rest] = argv
  const action = actions.find((one) => one === first)
  if (action) return [action, rest]
  if (usual !== null && (first === undefined || first.startsWith('-'))) return [usual, argv]
  const which = `one of ${actions.join(', ')}`
  throw new UsageFailure(first === undefined ? `${which} is missing` : `${first} is not ${which}`)
}
