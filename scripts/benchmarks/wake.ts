/**
 * From the moment that the answer is there to an agent that has read it: orb, and runc with the same program, the same
 * CRIU and the same kernel, round by round in turn. For both the answer is held back until the agent is there again, and
 * the agent's next question is what says that it has read it.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { stringify } from 'smol-toml'
import { z } from 'zod'
import { agentList } from '../../src/api/cloud/schemas.ts'
import { type Computer, freeSubnet, startOrb } from '../support/orb.ts'
import { type Benchmark, type BenchmarkContext, figuresOf, type Result } from './figures.ts'
import { RuncContainer, runcVersion } from './runc.ts'
import { type Asked, Upstream } from './upstream.ts'

const AGENT_FILE = join(import.meta.dir, 'wake-agent.js')
const DEFAULT_ROUNDS = 30
/** Rounds before those that count: files and kernel caches are warm for both alike. */
const WARM_UP_ROUNDS = 2
/** From the answer's first byte to the agent having read it. */
const TARGET_P50_MS = 35
const TARGET_P99_MS = 80
/** How many times faster than `runc restore`. */
const TARGET_RATIO = 8
/** An agent is asleep for this long before its answer comes. */
const PAUSE_MS = 100
const POLL_MS = 20
const ASLEEP_TIMEOUT_MS = 20_000
const RUNTIME_MB = 512
const DISK_MB = 1024

/** One way to sleep and wake. */
interface Contender {
  name: string
  upstream: Upstream
  sleep(): Promise<void>
  /** What has to be done before the answer may be written. */
  wake(): void
}

export const benchmark: Benchmark = {
  title: 'from the answer to an agent of 100 MB that was checkpointed and has read it',
  run,
}

async function run({ dir, rounds = DEFAULT_ROUNDS, onCleanUp, progress }: BenchmarkContext): Promise<Result> {
  const orb = await startContender(dir, onCleanUp)
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
  for (const { name, upstream } of contenders) {
    asked.get(name)?.answer('check')
    if ((await upstream.next()).question.intact !== true)
      throw new Error(`the memory of the agent of ${name} has changed`)
  }

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

async function oneRound(
  { name, upstream, sleep, wake: wakeUp }: Contender,
  asked: Map<string, Asked>,
): Promise<number> {
  const { question, answer } = asked.get(name) ?? (await upstream.next())
  await sleep()
  await Bun.sleep(PAUSE_MS)
  const began = performance.now()
  wakeUp()
  answer('go on')
  const next = await upstream.next()
  const took = performance.now() - began
  if (next.question.round !== question.round + 1) throw new Error(`the agent of ${name} lost its count`)
  asked.set(name, next)
  return took
}

/** The product as it is: the agent's call goes through the LLM proxy, whose ladder sends it to sleep. */
async function startContender(dir: string, onCleanUp: (work: () => unknown) => void): Promise<Contender> {
  const upstream = new Upstream('127.0.0.1')
  onCleanUp(() => upstream.stop())
  const orb = await startOrb(join(dir, 'orb'), {
    allow_private: `127.0.0.1:${upstream.port}`,
    freeze_after: '50ms',
    checkpoint_after: '100ms',
  })
  const computer = await orb.computer('bench', RUNTIME_MB, DISK_MB)
  await computer.put('agent/code/agent.js', readFileSync(AGENT_FILE, 'utf8'))
  await computer.put('agent/code/package.json', '{"type":"module"}')
  const config = {
    agent: { name: 'bench', lang: 'node', entry: 'agent.js' },
    llm: { base_url: `http://127.0.0.1:${upstream.port}` },
  }
  await computer.ask(z.unknown(), 'POST', '/config', stringify(config))
  await computer.ask(z.unknown(), 'POST', '/agents')
  return { name: 'orb', upstream, sleep: () => untilAsleep(computer), wake: () => undefined }
}

async function untilAsleep(computer: Computer): Promise<void> {
  const deadline = performance.now() + ASLEEP_TIMEOUT_MS
  for (;;) {
    const { agents } = await computer.ask(agentList, 'GET', '/agents')
    if (agents[0]?.state === 'checkpointed') return
    if (agents[0]?.state === 'failed') throw new Error(`the agent has failed: ${agents[0].stderr_tail}`)
    if (performance.now() > deadline) throw new Error('the agent does not fall asleep')
    await Bun.sleep(POLL_MS)
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
