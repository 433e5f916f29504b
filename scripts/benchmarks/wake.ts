/**
 * From the moment that the answer is there to an agent that has read it: orb, and runc with the same program, the same
 * CRIU and the same kernel, round by round in turn. For both the answer is held back until the agent is there again, and
 * the agent's next question is what says that it has read it.
 */
import { join } from 'node:path'
import { freeSubnet } from '../support/orb.ts'
import { type Benchmark, type BenchmarkContext, figuresOf, type Result } from './figures.ts'
import { RuncContainer, runcVersion } from './runc.ts'
import { type Asked, Upstream } from './upstream.ts'
import { AGENT_FILE, type Contender, checkMemory, oneRound, orbContender } from './wake-contenders.ts'

const AGENT_MB = 100
const DEFAULT_ROUNDS = 30
/** Rounds before those that count: files and kernel caches are warm for both alike. */
const WARM_UP_ROUNDS = 2
/** From the answer's first byte to the agent having read it. */
const TARGET_P50_MS = 35
const TARGET_P99_MS = 80
/** How many times faster than `runc restore`. */
const TARGET_RATIO = 8

export const benchmark: Benchmark = {
  title: 'from the answer to an agent of 100 MB that was checkpointed and has read it',
  run,
}

async function run({ dir, rounds = DEFAULT_ROUNDS, onCleanUp, progress }: BenchmarkContext): Promise<Result> {
  const orb = await orbContender(dir, AGENT_MB, onCleanUp)
  const runcs = [
    await runcContender('orb-bench', 'iptables', dir, onCleanUp),
    await runcContender('orb-bench-nft', 'nftables', dir, onCleanUp),
  ]
  const contenders = [orb, ...runcs]
  const times = new Map<string, number[]>(contenders.map(({ name }) => [name, []]))
  const asked = new Map<string, Asked>()
  for (const { name, upstream } of contenders) asked.set(name, await upstream.next())

  for (let round = -WARM_UP_ROUNDS; round < rounds; round++) {
    for (const contender of contenders) {
      const ms = await oneRound(contender, asked)
      if (round >= 0) times.get(contender.name)?.push(ms)
    }
    if (round >= 0)
      progress(
        `round ${round + 1} of ${rounds}: ${contenders.map(({ name }) => `${name} ${times.get(name)?.at(-1)?.toFixed(0)} ms`).join(', ')}`,
      )
  }
  for (const contender of contenders) await checkMemory(contender, asked)

  const [own = [], ...peers] = contenders.map(({ name }) => times.get(name) ?? [])
  const [first, ...others] = runcs.map(({ name }, index) => ({ name, samples: peers[index] ?? [] }))
  return {
    figures: [
      ...figuresOf('wake', own, {
        unit: 'ms',
        p50: { atMost: TARGET_P50_MS },
        p99: { atMost: TARGET_P99_MS },
        peer: first && { ...first, timesAtLeast: TARGET_RATIO },
      }),
      ...others.flatMap(({ name, samples }) => figuresOf(name, samples, { unit: 'ms' })),
    ],
    details: { runc: runcVersion() },
  }
}

/** runc as it comes, and with the faster of CRIU's two network locks, which it has to be told to use. */
async function runcContender(
  name: string,
  lock: 'iptables' | 'nftables',
  dir: string,
  onCleanUp: (work: () => unknown) => void,
): Promise<Contender> {
  const container = new RuncContainer(name, join(dir, name), freeSubnet(), lock)
  container.remove()
  onCleanUp(() => container.remove())
  container.makeNetwork()
  const upstream = new Upstream(container.host)
  onCleanUp(() => upstream.stop())
  container.start(AGENT_FILE, `http://${container.host}:${upstream.port}`)
  return {
    name: lock === 'iptables' ? 'runc checkpoint/restore' : 'runc, network-lock nftables',
    upstream,
    sleep: () => container.checkpoint(),
    wake: () => container.restore(),
  }
}
