/** What `scripts/bench` runs once dist/orb is built. */
import { mkdtemp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { z } from 'zod'
import { removeOrb } from '../support/orb.ts'
import type { Benchmark, Figure, Result } from './figures.ts'
import { RESULTS, saveResult } from './results.ts'
import { tableOf } from './table.ts'

/** In the order in which they run. Each file exports its `benchmark`. */
const BENCHMARKS: Record<string, () => Promise<{ benchmark: Benchmark }>> = {
  wake: () => import('./wake.ts'),
  reclaim: () => import('./reclaim.ts'),
  proxy: () => import('./proxy.ts'),
  streams: () => import('./streams.ts'),
  'wake-1gb': () => import('./wake-1gb.ts'),
  checkpoint: () => import('./checkpoint.ts'),
  density: () => import('./density.ts'),
  ingress: () => import('./ingress.ts'),
  swarm: () => import('./swarm.ts'),
}

/** On a disk, as the data of a real orb; /tmp may be memory. */
const WORK_PARENT = '/var/tmp'
const EXIT_BROKEN = 1
const EXIT_USAGE = 2
const EXIT_INTERRUPTED = 130

async function measure(name: string, benchmark: Benchmark, rounds: number | undefined): Promise<Result> {
  const dir = await mkdtemp(join(WORK_PARENT, 'orb-bench-'))
  const cleanUps: (() => unknown)[] = [
    () => rm(dir, { recursive: true, force: true }),
    () => removeOrb(join(dir, 'orb')),
  ]
  const cleanUpAll = async () => {
    for (let work = cleanUps.pop(); work; work = cleanUps.pop()) {
      try {
        await work()
      } catch (thrown) {
        console.error(`${name}: clean-up: ${reasonOf(thrown)}`)
        process.exitCode = EXIT_BROKEN
      }
    }
  }
  // An interrupted benchmark fails as well: both ways lead here, and both wait for the same end.
  let cleaning: Promise<void> | null = null
  const cleanUp = () => (cleaning ??= cleanUpAll())
  const interrupt = () => void cleanUp().then(() => process.exit(EXIT_INTERRUPTED))
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const
  for (const signal of signals) process.once(signal, interrupt)
  try {
    return await benchmark.run({
      dir,
      rounds,
      onCleanUp: (work) => cleanUps.push(work),
      progress: (line) => console.error(`${name}: ${line}`),
    })
  } finally {
    await cleanUp()
    for (const signal of signals) process.off(signal, interrupt)
  }
}

const reasonOf = (thrown: unknown): string => (thrown instanceof Error ? thrown.message : String(thrown))

function parseCommandLine(): { names: string[]; rounds: number | undefined } {
  const { values, positionals } = parseArgs({ options: { rounds: { type: 'string' } }, allowPositionals: true })
  const unknown = positionals.find((name) => !(name in BENCHMARKS))
  if (unknown !== undefined)
    throw new Error(`no benchmark ${unknown}; there are: ${Object.keys(BENCHMARKS).join(', ')}`)
  const rounds = z.coerce.number().int().min(1).optional().safeParse(values.rounds)
  if (!rounds.success) throw new Error('--rounds must be a whole number from 1 on')
  const names = Object.keys(BENCHMARKS).filter((name) => positionals.length === 0 || positionals.includes(name))
  return { names, rounds: rounds.data }
}

async function main(): Promise<void> {
  const { names, rounds } = parseCommandLine()
  const sections: { title: string; figures: Figure[] }[] = []
  for (const name of names) {
    try {
      const benchmark = (await BENCHMARKS[name]?.())?.benchmark
      if (benchmark === undefined) continue
      const result = await measure(name, benchmark, rounds)
      saveResult(name, benchmark.title, result)
      sections.push({ title: `${name}: ${benchmark.title}`, figures: result.figures })
    } catch (thrown) {
      console.error(`${name}: the benchmark failed: ${reasonOf(thrown)}`)
      process.exitCode = EXIT_BROKEN
    }
  }
  if (sections.length === 0) return
  console.log(tableOf(sections))
  console.error(`the figures are in ${RESULTS}`)
}

try {
  await main()
} catch (thrown) {
  console.error(reasonOf(thrown))
  process.exitCode = EXIT_USAGE
}
process.exit()
