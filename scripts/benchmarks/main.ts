/** What `scripts/bench` runs once dist/orb is built. */
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { availableParallelism, release } from 'node:os'
import { dirname, join } from 'node:path'
import { z } from 'zod'
import { removeOrb } from '../support/orb.ts'
import { type Benchmark, type Result, ratios } from './figures.ts'
import { wake } from './wake.ts'

const BENCHMARKS: Record<string, Benchmark> = { wake }
const RESULTS = join(import.meta.dir, '../../bench/results.json')
/** On a disk, as the data of a real orb; /tmp may be memory. */
const WORK_PARENT = '/var/tmp'
const EXIT_INTERRUPTED = 130

async function measure(name: string, benchmark: Benchmark, argument: string | undefined): Promise<Result> {
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
        console.error(`clean-up: ${thrown instanceof Error ? thrown.message : thrown}`)
        process.exitCode = 1
      }
    }
  }
  // An interrupted benchmark fails as well: both ways lead here, and both wait for the same end.
  let cleaning: Promise<void> | null = null
  const cleanUp = () => (cleaning ??= cleanUpAll())
  const interrupt = () => void cleanUp().then(() => process.exit(EXIT_INTERRUPTED))
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.once(signal, interrupt)
  try {
    return await benchmark({
      dir,
      argument,
      onCleanUp: (work) => cleanUps.push(work),
      progress: (line) => console.error(`${name}: ${line}`),
    })
  } finally {
    await cleanUp()
  }
}

function print(result: Result): void {
  const { title, rows, target, details } = result
  const width = Math.max(...Object.keys(rows).map((name) => name.length))
  console.log(
    `${title} (${Object.entries(details)
      .map(([key, value]) => `${key} ${value}`)
      .join(', ')})`,
  )
  console.log(`  ${''.padEnd(width)}  ${['p50', 'p99', 'min', 'max'].map((head) => `${head} ms`.padStart(9)).join('')}`)
  for (const [name, { p50_ms, p99_ms, min_ms, max_ms }] of Object.entries(rows)) {
    console.log(
      `  ${name.padEnd(width)}  ${[p50_ms, p99_ms, min_ms, max_ms].map((ms) => ms.toFixed(1).padStart(9)).join('')}`,
    )
  }
  for (const [index, { peer, ratio }] of ratios(result).entries()) {
    const verdict = index > 0 ? '' : `; target: at least ${target} times: ${isMet(result) ? 'met' : 'MISSED'}`
    console.log(`  orb is ${ratio} times faster at p50 than ${peer}${verdict}`)
  }
}

const isMet = (result: Result): boolean => (ratios(result)[0]?.ratio ?? 0) >= result.target

/** Results of benchmarks that were not run now stay. */
function save(name: string, result: Result): void {
  const known = existsSync(RESULTS)
    ? z.record(z.string(), z.unknown()).parse(JSON.parse(readFileSync(RESULTS, 'utf8')))
    : {}
  const machine = { kernel: release(), cpus: availableParallelism() }
  mkdirSync(dirname(RESULTS), { recursive: true })
  writeFileSync(
    RESULTS,
    `${JSON.stringify({ ...known, [name]: { at: new Date().toISOString(), ...machine, ...result, ratios: ratios(result) } }, null, 2)}\n`,
  )
}

const [chosen, argument] = process.argv.slice(2)
if (chosen !== undefined && !(chosen in BENCHMARKS)) {
  console.error(`no benchmark ${chosen}; there are: ${Object.keys(BENCHMARKS).join(', ')}`)
  process.exit(2)
}
try {
  for (const [name, benchmark] of Object.entries(BENCHMARKS)) {
    if (chosen !== undefined && name !== chosen) continue
    const result = await measure(name, benchmark, argument)
    print(result)
    save(name, result)
    if (!isMet(result)) process.exitCode = 1
  }
} catch (thrown) {
  console.error(`the benchmark failed: ${thrown instanceof Error ? thrown.message : thrown}`)
  process.exitCode = 1
}
process.exit()
