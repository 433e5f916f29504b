/** The wake of an agent of 1 GB: its pages follow while it runs. From the answer to an agent that has read it. */
import { type Benchmark, type BenchmarkContext, figuresOf, type Result } from './figures.ts'
import type { Asked } from './upstream.ts'
import { checkMemory, oneRound, orbContender } from './wake-contenders.ts'

const AGENT_MB = 1024
const DEFAULT_ROUNDS = 10
const WARM_UP_ROUNDS = 1
const TARGET_P50_MS = 80

export const benchmark: Benchmark = {
  title: 'from the answer to an agent of 1 GB that was checkpointed and has read it',
  run,
}

async function run({ dir, rounds = DEFAULT_ROUNDS, onCleanUp, progress }: BenchmarkContext): Promise<Result> {
  const orb = await orbContender(dir, AGENT_MB, onCleanUp)
  const asked = new Map<string, Asked>([[orb.name, await orb.upstream.next()]])
  const samples: number[] = []
  for (let round = -WARM_UP_ROUNDS; round < rounds; round++) {
    const ms = await oneRound(orb, asked)
    if (round < 0) continue
    samples.push(ms)
    progress(`round ${round + 1} of ${rounds}: ${ms.toFixed(0)} ms`)
  }
  await checkMemory(orb, asked)
  return { figures: figuresOf('wake, 1 GB', samples, { unit: 'ms', p50: { atMost: TARGET_P50_MS } }) }
}
