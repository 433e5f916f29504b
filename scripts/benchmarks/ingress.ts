/** Requests from outside: to an agent that sleeps on disk, to one that is awake, and to many sleepers at the same moment. */
import { join } from 'node:path'
import { startOrb } from '../support/orb.ts'
import { type Benchmark, type Figure, figuresOf, spreadOf } from './figures.ts'
import { DOMAIN, inParallel, SLEEPERS_AT_ONCE, Sleeper } from './sleepers.ts'

const ROUNDS = 50
const AWAKE_REQUESTS = 1000
const SIMULTANEOUS = 200
/** Rounds before those that count: files and kernel caches are warm, connections are open. */
const WARM_UP_ROUNDS = 3
const ONE_IN = 100

export const benchmark: Benchmark = {
  title: 'requests from outside to agents that sleep on disk, and to one that is awake',
  async run({ dir, rounds = ROUNDS, progress }) {
    const orb = await startOrb(join(dir, 'orb'), { domain: DOMAIN, wake_timeout: '120s' })
    const sleepers = [await Sleeper.create(orb, 'first')]
    const first = sleepers[0] as Sleeper
    const rss = first.rssBytes

    const held: number[] = []
    for (let round = -WARM_UP_ROUNDS; round < rounds; round++) {
      await first.sleep()
      const ms = await first.visit()
      if (round >= 0) held.push(ms)
    }
    progress(`held until awake: p50 ${spreadOf(held).p50.toFixed(1)} ms`)

    const [through, direct]: [number[], number[]] = [[], []]
    for (let request = -ONE_IN; request < AWAKE_REQUESTS; request++) {
      const ms = [await first.visit(), await first.visitDirectly()] as const
      if (request < 0) continue
      through.push(ms[0])
      direct.push(ms[1])
    }
    const added = spreadOf(through).p50 - spreadOf(direct).p50
    progress(`awake: ${added.toFixed(2)} ms more than directly`)

    await first.sleep()
    await inParallel(SIMULTANEOUS - 1, SLEEPERS_AT_ONCE, async (index) => {
      const sleeper = await Sleeper.create(orb, `sleeper-${index}`)
      await sleeper.sleep()
      sleepers.push(sleeper)
      if (sleepers.length % ONE_IN === 0) progress(`${sleepers.length} of ${SIMULTANEOUS} computers sleep`)
    })
    const began = performance.now()
    const visits = await Promise.allSettled(sleepers.map((sleeper) => sleeper.visit()))
    const took = performance.now() - began
    const answered = visits.filter(({ status }) => status === 'fulfilled').length
    for (const visit of visits) if (visit.status === 'rejected') progress(String(visit.reason))

    const single = (name: string, unit: Figure['unit'], measured: number, target?: Figure['target']): Figure => ({
      name,
      unit,
      measured,
      rounds: 1,
      ...(target ? { target } : {}),
    })
    return {
      figures: [
        ...figuresOf('request to a sleeping agent', held, { unit: 'ms', p50: { atMost: 60 } }),
        ...figuresOf('request to an awake agent', through, { unit: 'ms', peer: { name: 'direct', samples: direct } }),
        { ...single('added to an awake request, p50', 'ms', added, { atMost: 0.5 }), rounds: AWAKE_REQUESTS },
        single(`${SIMULTANEOUS} sleepers asked at once, answered`, '', answered, { atLeast: SIMULTANEOUS }),
        single('until the last of them was answered', 's', took / 1000),
      ],
      details: { agent_rss_mb: Math.round(rss / 1024 / 1024) },
    }
  },
}
