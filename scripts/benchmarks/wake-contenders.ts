/** What the benchmarks of wakes have in common: an agent that asks, sleeps meanwhile, reads the answer and asks on. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { stringify } from 'smol-toml'
import { z } from 'zod'
import { agentList } from '../../src/api/cloud/schemas.ts'
import { type Computer, startOrb } from '../support/orb.ts'
import { type Asked, Upstream } from './upstream.ts'

export const AGENT_FILE = join(import.meta.dir, 'wake-agent.js')
/** An agent is asleep for this long before its answer comes. */
const PAUSE_MS = 100
const POLL_MS = 20
const ASLEEP_TIMEOUT_MS = 60_000
/** What Node itself takes, and room for the page tables. */
const EXTRA_MB = 412
const DISK_MB = 1024

/** One way to sleep and wake. */
export interface Contender {
  name: string
  upstream: Upstream
  sleep(): Promise<void>
  /** What has to be done before the answer may be written. */
  wake(): void
}

/** Milliseconds from the answer to the agent's next question. */
export async function oneRound(contender: Contender, asked: Map<string, Asked>): Promise<number> {
  const { name, upstream } = contender
  const { question, answer } = asked.get(name) ?? (await upstream.next())
  await contender.sleep()
  await Bun.sleep(PAUSE_MS)
  const began = performance.now()
  contender.wake()
  answer('go on')
  const next = await upstream.next()
  const took = performance.now() - began
  if (next.question.round !== question.round + 1) throw new Error(`the agent of ${name} lost its count`)
  asked.set(name, next)
  return took
}

/** @throws Error when the agent's memory is not what it was at its start */
export async function checkMemory({ name, upstream }: Contender, asked: Map<string, Asked>): Promise<void> {
  asked.get(name)?.answer('check')
  if ((await upstream.next()).question.intact !== true)
    throw new Error(`the memory of the agent of ${name} has changed`)
}

/** The product as it is: the agent's call goes through the LLM proxy, whose ladder sends it to sleep. */
export async function orbContender(
  dir: string,
  agentMb: number,
  onCleanUp: (work: () => unknown) => void,
): Promise<Contender> {
  const upstream = new Upstream('127.0.0.1')
  onCleanUp(() => upstream.stop())
  const orb = await startOrb(join(dir, 'orb'), {
    allow_private: `127.0.0.1:${upstream.port}`,
    freeze_after: '50ms',
    checkpoint_after: '100ms',
  })
  const computer = await orb.computer('bench', agentMb + EXTRA_MB, DISK_MB)
  await computer.put('agent/code/agent.js', readFileSync(AGENT_FILE, 'utf8'))
  await computer.put('agent/code/package.json', '{"type":"module"}')
  const config = {
    agent: { name: 'bench', lang: 'node', entry: 'agent.js', env: { BENCH_MB: String(agentMb) } },
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
