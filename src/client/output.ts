import { CommandFailure } from './failure.ts'

const KIB = 1024
const SIZE_UNITS = ['KiB', 'MiB', 'GiB', 'TiB']
const COLUMN_GAP = '  '
const EMPTY = '-'

// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
const CONTROL = /[\x00-\x08\x0b-\x1f\x7f-\x9f]/g

/** Text of a server's without colours and without what else would command the terminal; lines and tabs stay. */
export const printable = (text: string): string => Bun.stripANSI(text).replace(CONTROL, '?')

export type Cell = string | number | boolean | null | undefined

/** A table with a line of headings, or a sentence where it would be empty. */
export function table(headings: string[], rows: Cell[][], whenEmpty: string): string {
  if (rows.length === 0) return whenEmpty
  const lines = [headings, ...rows.map((row) => row.map(cellText))]
  const widths = headings.map((_, column) => Math.max(...lines.map((line) => Bun.stringWidth(line[column] ?? ''))))
  return lines
    .map((line) =>
      line
        .map((cell, column) => cell + ' '.repeat((widths[column] ?? 0) - Bun.stringWidth(cell)))
        .join(COLUMN_GAP)
        .trimEnd(),
    )
    .join('\n')
}

/** Names and values below each other. */
export const fields = (pairs: [name: string, value: Cell][]): string => {
  const width = Math.max(...pairs.map(([name]) => name.length))
  return pairs.map(([name, value]) => `${name.padEnd(width)}${COLUMN_GAP}${cellText(value)}`).join('\n')
}

const cellText = (cell: Cell): string =>
  cell === null || cell === undefined || cell === '' ? EMPTY : printable(String(cell)).replace(/[\n\t]/g, ' ')

export function sizeText(bytes: number): string {
  let size = bytes
  let unit = 'B'
  for (const next of SIZE_UNITS) {
    if (size < KIB) break
    size /= KIB
    unit = next
  }
  return unit === 'B' ? `${size} B` : `${size.toFixed(1)} ${unit}`
}

export const secondsText = (ms: number): string => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`)

export const plural = (count: number, thing: string): string => `${count} ${thing}${count === 1 ? '' : 's'}`

/** The answer of a command: JSON where it was asked for, else what a person reads. */
export function answer(asJson: boolean, data: unknown, human: () => string): void {
  write(`${asJson ? JSON.stringify(data, null, 2) : human()}\n`)
}

export const write = (text: string | Uint8Array): boolean => process.stdout.write(text)

/** Something that the user should know and that is no part of the answer. */
export const note = (text: string): boolean => process.stderr.write(`${printable(text)}\n`)

/** Asks before something cannot be undone; where nobody can be asked, `--yes` must have been given. */
export function confirm(question: string, yes: boolean): void {
  if (yes) return
  if (!process.stdin.isTTY || !process.stdout.isTTY) {
    throw new CommandFailure(`${question} Say --yes where nobody can be asked`)
  }
  if (!/^y(es)?$/i.test(prompt(`${printable(question)} [y/N]`)?.trim() ?? ''))
    throw new CommandFailure('nothing was done')
}
