/**
 * From the moment that the answer is there to an agent of 100 MB that slept in swap and has read it. The agent's next
 * question is what says so.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { stringify } from 'smol-toml'
import { z } from 'zod'
import { agentList } from '../../src/api/cloud/schemas.ts'
import { startOrb } from '../support/orb.ts'
import { type Benchmark, type BenchmarkContext, figuresOf, type Result } from './figures.ts'
import { Upstream } from './upstream.ts'

const AGENT_FILE = join(import.meta.dir, 'wake-agent.js')
const DEFAULT_ROUNDS = 50
/** orb has to learn first how long answers take; until then the agent sleeps on disk. */
const LEARNING_ROUNDS = 6
const TARGET_P50_MS = 15
const TARGET_P99_MS = 50
/** Every answer takes this long: long enough for the agent to be asleep, and what orb learns to expect. */
const ANSWER_AFTER_MS = 800
const POLL_MS = 20
const ASLEEP_TIMEOUT_MS = 20_000
const RUNTIME_MB = 512
const DISK_MB = 1024
const SWAP_GB = 1
/** With its data in memory it takes more than this, in swap less. */
const RESIDENT_BYTES = 60 * 1024 * 1024

export const benchmark: Benchmark = {
  title: 'from the answer to an agent of 100 MB that was in swap and has read it',
  run,
}

async function run({ dir, rounds = DEFAULT_ROUNDS, onCleanUp, progress }: BenchmarkContext): Promise<Result> {
  const upstream = new Upstream('127.0.0.1')
  onCleanUp(() => upstream.stop())
  const orb = await startOrb(join(dir, 'orb'), {
    allow_private: `127.0.0.1:${upstream.port}`,
    freeze_after: '50ms',
    checkpoint_after: '100ms',
    // Of the short time before this freeze, reading an answer is a larger share than of a real one's.
    busy_cpu_percent: 100,
    swap_gb: SWAP_GB,
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

  const untilAsleep = async (): Promise<{ inSwap: boolean; resident: number }> => {
    const deadline = performance.now() + ASLEEP_TIMEOUT_MS
    for (;;) {
      const [agent] = (await computer.ask(agentList, 'GET', '/agents')).agents
      if (agent?.state === 'failed') throw new Error(`the agent has failed: ${agent.stderr_tail}`)
      const resident = agent?.resident_bytes ?? 0
      if (agent?.state === 'frozen' && resident < RESIDENT_BYTES) return { inSwap: true, resident }
      if (agent?.state === 'checkpointed') return { inSwap: false, resident }
      if (performance.now() > deadline) throw new Error('the agent does not fall asleep')
      await Bun.sleep(POLL_MS)
    }
  }

  const times: number[] = []
  const residents: number[] = []
  let asked = await upstream.next()
  let askedAt = performance.now()
  for (let round = -LEARNING_ROUNDS; round < rounds; round++) {
    const { inSwap, resident } = await untilAsleep()
    if (round >= 0 && !inSwap) throw new Error('the agent sleeps on disk, not in swap')
    await Bun.sleep(Math.max(0, askedAt + ANSWER_AFTER_MS - performance.now()))
    const began = performance.now()
    asked.answer('go on')
    const next = await upstream.next()
    askedAt = performance.now()
    const took = askedAt - began
    if (next.question.round !== asked.question.round + 1) throw new Error('the agent lost its count')
    asked = next
    if (round < 0) continue
    times.push(took)
    residents.push(resident)
    progress(`round ${round + 1} of ${rounds}: ${took.toFixed(1)} ms, ${(resident / 1e6).toFixed(1)} MB stay`)
  }
  asked.answer('check')
  if ((await upstream.next()).question.intact !== true) throw new Error('the memory of the agent has changed')
  return {
    figures: [
      ...figuresOf('wake from swap', times, {
        unit: 'ms',
        p50: { atMost: TARGET_P50_MS },
        p99: { atMost: TARGET_P99_MS },
      }),
      {
        name: 'memory that stays',
        unit: 'MB',
        measured: Math.max(...residents) / (1024 * 1024),
        rounds: residents.length,
      },
    ],
  }
}
