/** The table at the end of a run. */
import { type Figure, isMet, ratioOf, type Target, type Unit } from './figures.ts'

const HEADS = ['figure', 'measured', 'target', '', 'peer', 'ratio']
/** Columns of numbers stand to the right. */
const RIGHT = new Set([1, 2, 5])

/** @param sections by benchmark, each with its title */
export function tableOf(sections: { title: string; figures: Figure[] }[]): string {
  const rows = sections.map(({ figures }) => figures.map(cellsOf))
  const widths = HEADS.map((head, column) =>
    Math.max(head.length, ...rows.flat().map((cells) => cells[column]?.length ?? 0)),
  )
  const line = (cells: string[]): string =>
    cells
      .map((cell, column) =>
        RIGHT.has(column) ? cell.padStart(widths[column] ?? 0) : cell.padEnd(widths[column] ?? 0),
      )
      .join('  ')
      .trimEnd()
  const blocks = sections.map(({ title }, index) => [title, ...(rows[index] ?? []).map((cells) => `  ${line(cells)}`)])
  return [`  ${line(HEADS)}`, ...blocks.flat()].join('\n')
}

function cellsOf(figure: Figure): string[] {
  const { name, unit, measured, target, peer } = figure
  const met = isMet(figure)
  const ratio = ratioOf(figure)
  return [
    name,
    amount(measured, unit),
    target === undefined ? '' : targetText(target, unit),
    met === undefined ? '' : met ? 'met' : 'MISSED',
    peer === undefined ? '' : `${peer.name}: ${amount(peer.measured, unit)}`,
    ratio === undefined
      ? ''
      : `${digits(ratio)} x${peer?.timesAtLeast === undefined ? '' : ` (>= ${peer.timesAtLeast})`}`,
  ]
}

const targetText = (target: Target, unit: Unit): string =>
  'atMost' in target
    ? `<= ${number(target.atMost)} ${unit}`.trimEnd()
    : `>= ${number(target.atLeast)} ${unit}`.trimEnd()

const amount = (value: number, unit: Unit): string => `${digits(value)} ${unit}`.trimEnd()

const number = (value: number): string => value.toLocaleString('en-US')

/** As many decimals as mean something. */
function digits(value: number): string {
  const size = Math.abs(value)
  const decimals = Number.isInteger(value) || size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3
  return value.toLocaleString('en-US', { minimumFractionDigits: decimals, maximumFractionDigits: decimals })
}
