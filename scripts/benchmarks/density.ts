/** Many computers on this machine, each with an agent that sleeps on disk: what they cost, and whether orb stays quick. */
import { join } from 'node:path'
import { z } from 'zod'
import { type PrivateOrb, startOrb } from '../support/orb.ts'
import { type Benchmark, type Figure, figuresOf, spreadOf } from './figures.ts'
import { kernelMemory, processMemory } from './memory.ts'
import { DOMAIN, inParallel, SLEEPERS_AT_ONCE, Sleeper } from './sleepers.ts'

const COMPUTERS = 1000
const WAKES = 50
const LISTS = 30
const WARM_UP_WAKES = 3
const PROGRESS_STEP = 100
const KB = 1024
const MB = 1024 * 1024

export const benchmark: Benchmark = {
  title: 'computers with agents that sleep on disk, --rounds of them: memory, wake, list and restart with all of them',
  async run({ dir, rounds: count = COMPUTERS, progress }) {
    const before = kernelMemory()
    const orb = await startOrb(join(dir, 'orb'), { domain: DOMAIN, max_computers: count + 1 })
    const first = await Sleeper.create(orb, 'first')
    const alone = await wakes(Array.from({ length: WARM_UP_WAKES + WAKES }, () => first)).then((all) =>
      all.slice(WARM_UP_WAKES),
    )
    progress(`one agent of ${Math.round(first.rssBytes / MB)} MB wakes in ${spreadOf(alone).p50.toFixed(0)} ms`)

    const sleepers = [first]
    const images: number[] = []
    const began = performance.now()
    await inParallel(count - 1, SLEEPERS_AT_ONCE, async (index) => {
      const sleeper = await Sleeper.create(orb, `sleeper-${index}`)
      images.push(await sleeper.sleep())
      sleepers.push(sleeper)
      if (sleepers.length % PROGRESS_STEP !== 0) return
      // Others are awake meanwhile: a run that is cut off has told something all the same.
      const memory = (kernelMemory().total - before.total + processMemory([orb.pid])) / MB
      const list = spreadOf(await listTimes(orb, 1)).p50
      progress(`${sleepers.length} of ${count} sleep: ${memory.toFixed(0)} MB, list ${list.toFixed(0)} ms`)
    })
    const perSecond = (count - 1) / ((performance.now() - began) / 1000)

    const after = kernelMemory()
    const perComputer = Object.entries(after.parts).map(([name, bytes]): [string, string] => [
      `${name}_kb_per_computer`,
      ((bytes - (before.parts[name] ?? 0)) / KB / count).toFixed(0),
    ])
    const orbBytes = processMemory([orb.pid])
    const initBytes = processMemory(sleepers.flatMap((sleeper) => sleeper.processes()))
    const kernelBytes = after.total - before.total
    const all = kernelBytes + orbBytes + initBytes
    const [allMb, kernelMb, orbMb] = [all, kernelBytes, orbBytes].map((bytes) => Math.round(bytes / MB))
    progress(`${allMb} MB of RAM: kernel ${kernelMb} MB, orb ${orbMb} MB; ${perSecond.toFixed(1)} made per s`)

    const lists = await listTimes(orb, LISTS)
    progress(`GET /v1/computers ${spreadOf(lists).p50.toFixed(1)} ms`)
    const chosen = pick(sleepers, WAKES)
    const many = await wakes(chosen)
    progress(`they wake in ${spreadOf(many).p50.toFixed(0)} ms`)
    const restarts: number[] = []
    const recoveries: number[] = []
    for (const signal of ['SIGTERM', 'SIGKILL'] as const) {
      const { readyMs, recoveredMs } = await orb.restart(signal)
      restarts.push(readyMs)
      recoveries.push(recoveredMs)
      progress(`ready ${readyMs.toFixed(0)} ms after a ${signal}`)
    }
    const afterwards = await wakes(chosen)

    const one = spreadOf(alone).p50
    const single = (name: string, unit: Figure['unit'], measured: number, target?: Figure['target']): Figure => ({
      name,
      unit,
      measured,
      rounds: 1,
      ...(target ? { target } : {}),
    })
    return {
      figures: [
        single('RAM in all', 'MB', all / MB, { atMost: 1024 }),
        single('of it the kernel', 'MB', kernelBytes / MB),
        single('of it orb', 'MB', orbBytes / MB),
        single('of it pid 1 of the computers', 'MB', initBytes / MB),
        single('made, deployed and put to sleep', 'per s', perSecond),
        ...figuresOf('request that wakes, one computer', alone, { unit: 'ms' }),
        ...figuresOf('request that wakes, all computers', many, { unit: 'ms' }),
        single('all / one, p50', 'times', spreadOf(many).p50 / one, { atMost: 2 }),
        single('after a restart / one, p50', 'times', spreadOf(afterwards).p50 / one),
        ...figuresOf('GET /v1/computers', lists, { unit: 'ms', p50: { atMost: 30 } }),
        {
          ...single('restart until ready, the slower', 'ms', Math.max(...restarts), { atMost: 1000 }),
          rounds: restarts.length,
        },
        {
          ...single('restart until all agents are looked after', 'ms', Math.max(...recoveries)),
          rounds: recoveries.length,
        },
      ],
      details: {
        computers: count,
        agent_rss_mb: Math.round(first.rssBytes / MB),
        image_mb: (spreadOf(images).p50 / MB).toFixed(1),
        ...Object.fromEntries(perComputer),
      },
    }
  },
}

/** Wakes one after another, each asleep before and afterwards. */
async function wakes(sleepers: Sleeper[]): Promise<number[]> {
  const took: number[] = []
  for (const sleeper of sleepers) {
    await sleeper.sleep()
    took.push(await sleeper.visit())
    await sleeper.sleep()
  }
  return took
}

/** `count` of them, from all over the list. */
const pick = (sleepers: Sleeper[], count: number): Sleeper[] =>
  Array.from({ length: count }, (_, index) => sleepers[Math.floor((index * sleepers.length) / count)] as Sleeper)

async function listTimes(orb: PrivateOrb, rounds: number): Promise<number[]> {
  const times: number[] = []
  for (let round = 0; round < rounds; round++) {
    const began = performance.now()
    const response = await fetch(`${orb.url}/v1/computers`, { headers: { authorization: `Bearer ${orb.key}` } })
    z.looseObject({ computers: z.array(z.unknown()).nonempty() }).parse(await response.json())
    times.push(performance.now() - began)
  }
  return times
}
