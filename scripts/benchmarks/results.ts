/** bench/results.json: the last run of each benchmark. */
import { existsSync, mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { availableParallelism, cpus, release } from 'node:os'
import { dirname, join } from 'node:path'
import { z } from 'zod'
import { isMet, type Result, ratioOf } from './figures.ts'

const REPOSITORY = join(import.meta.dir, '../..')
export const RESULTS = join(REPOSITORY, 'bench/results.json')

/** Results of benchmarks that were not run now stay. */
export function saveResult(name: string, title: string, { figures, details }: Result): void {
  const known = existsSync(RESULTS)
    ? z.record(z.string(), z.unknown()).parse(JSON.parse(readFileSync(RESULTS, 'utf8')))
    : {}
  known[name] = {
    date: new Date().toISOString(),
    commit: commit(),
    kernel: release(),
    cores: availableParallelism(),
    cpu: cpus()[0]?.model ?? '',
    title,
    details: details ?? {},
    figures: figures.map((figure) => ({ ...figure, met: isMet(figure), ratio: ratioOf(figure) })),
  }
  mkdirSync(dirname(RESULTS), { recursive: true })
  writeFileSync(`${RESULTS}.new`, `${JSON.stringify(known, rounded, 2)}\n`)
  renameSync(`${RESULTS}.new`, RESULTS)
}

/** Microseconds are as far as any figure here can be trusted. */
const rounded = (_key: string, value: unknown): unknown =>
  typeof value === 'number' ? Number(value.toFixed(3)) : value

/** Empty outside of a clone. */
function commit(): string {
  const git = (...args: string[]): string =>
    Bun.spawnSync(['git', '-c', `safe.directory=${REPOSITORY}`, '-C', REPOSITORY, ...args])
      .stdout.toString()
      .trim()
  const head = git('rev-parse', '--short=12', 'HEAD')
  return head !== '' && git('status', '--porcelain', '--untracked-files=no') !== '' ? `${head}-dirty` : head
}
