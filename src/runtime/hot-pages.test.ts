import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { HotPages, PAGES_LOG } from './hot-pages.ts'
import { build, get, rewriteImage } from './image-file.ts'

const MAGIC = Buffer.from([0x19, 0x43, 0x56, 0x54, 0x49, 0x51, 0x41, 0x56])
const PAGE = 4096n
const START = 0x7f0000000000n
const [PRESENT, LAZY] = [4n, 6n]
const AGENT = 'one'

let dir: string
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'orb-hot-'))
})
afterEach(() => rmSync(dir, { recursive: true }))

/** First page, number of pages, flags: of a run of pages. */
type Run = [first: bigint, pages: bigint, flags: bigint]

const field = (number: number, value: bigint) => ({ number, wire: 0, value })

/** The list of a process' pages, which begins with a message of its own. */
function image(...runs: Run[]): Buffer {
  const messages = [
    build([field(1, 3n)]),
    ...runs.map(([first, pages, flags]) => build([field(1, START + first * PAGE), field(4, flags), field(5, pages)])),
  ]
  return Buffer.concat([MAGIC, ...messages.flatMap((one) => [Buffer.from([one.length, 0, 0, 0]), one])])
}

async function runsIn(name: string): Promise<Run[]> {
  const runs: Run[] = []
  await rewriteImage(join(dir, name), (run) => {
    runs.push([(get(run, 1) - START) / PAGE, get(run, 5), get(run, 4)])
    return null
  })
  return runs.slice(1)
}

const fault = (pid: number, page: bigint) =>
  `(00.012779) uffd: ${pid}-9: #PF at 0x${(START + page * PAGE).toString(16)}\n(00.012791) pr${pid}-2 Read 1 pages\n`

const log = (...faults: string[]) =>
  writeFileSync(join(dir, PAGES_LOG), `(00.000000) uffd: Waiting\n${faults.join('')}`)

test('pages that were asked for are no longer lazy in the next image, all others and other processes stay', async () => {
  const hot = new HotPages()
  log(fault(2, 1n), fault(2, 3n), fault(2, 2n), fault(2, 9n), fault(2, 20n), fault(7, 0n))
  await hot.learn(AGENT, dir)
  const other = image([0n, 4n, LAZY])
  writeFileSync(
    join(dir, 'pagemap-2.img'),
    image([0n, 10n, LAZY], [16n, 4n, LAZY], [20n, 1n, LAZY], [21n, 2n, PRESENT]),
  )
  writeFileSync(join(dir, 'pagemap-3.img'), other)
  await hot.mark(AGENT, dir)
  expect(await runsIn('pagemap-2.img')).toEqual([
    [0n, 1n, LAZY],
    [1n, 3n, PRESENT],
    [4n, 5n, LAZY],
    [9n, 1n, PRESENT],
    [16n, 4n, LAZY],
    [20n, 1n, PRESENT],
    [21n, 2n, PRESENT],
  ])
  expect(Buffer.compare(readFileSync(join(dir, 'pagemap-3.img')), other)).toBe(0)
})

test('what was read with the restore stays known, until newer pages need its room', async () => {
  const hot = new HotPages()
  const hotOf = async () => {
    writeFileSync(join(dir, 'pagemap-2.img'), image([0n, 5000n, LAZY]))
    await hot.mark(AGENT, dir)
    return (await runsIn('pagemap-2.img')).filter(([, , flags]) => flags === PRESENT)
  }
  log(fault(2, 1n))
  await hot.learn(AGENT, dir)
  log(fault(2, 3n))
  await hot.learn(AGENT, dir)
  expect(await hotOf()).toEqual([
    [1n, 1n, PRESENT],
    [3n, 1n, PRESENT],
  ])
  log(...Array.from({ length: 1024 }, (_, index) => fault(2, BigInt(index + 1000))))
  await hot.learn(AGENT, dir)
  expect(await hotOf()).toEqual([[1000n, 1024n, PRESENT]])
})

test('an agent of which nothing is known, or not any more, keeps its image', async () => {
  const hot = new HotPages()
  const before = image([0n, 4n, LAZY])
  writeFileSync(join(dir, 'pagemap-2.img'), before)
  await hot.learn(AGENT, dir)
  log(fault(2, 1n), fault(5, 1n))
  await hot.learn('another', dir)
  await hot.mark(AGENT, dir)
  await hot.learn(AGENT, dir)
  hot.forget(AGENT)
  await hot.mark(AGENT, dir)
  expect(Buffer.compare(readFileSync(join(dir, 'pagemap-2.img')), before)).toBe(0)
  await hot.mark('another', dir)
  expect(await runsIn('pagemap-2.img')).toHaveLength(3)
})
