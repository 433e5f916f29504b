/**
 * An agent of 100 MB from RAM to disk, as `demote` does it: how long the whole takes, and for how long before it is over
 * the agent had not worked any more, by what it wrote down itself.
 */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { stringify } from 'smol-toml'
import { z } from 'zod'
import { agentList } from '../../src/api/cloud/schemas.ts'
import { type Computer, startOrb } from '../support/orb.ts'
import { type Benchmark, type BenchmarkContext, figuresOf, type Result } from './figures.ts'

const AGENT_FILE = join(import.meta.dir, 'checkpoint-agent.js')
const AGENT_MB = 100
const RUNTIME_MB = 512
const DISK_MB = 1024
const DEFAULT_ROUNDS = 30
const WARM_UP_ROUNDS = 2
const TARGET_MS = 150
/** Awake for this long before it goes to disk: its pages are all in by then. */
const AWAKE_MS = 500

const Demoted = z.object({ size_bytes: z.number() })

export const benchmark: Benchmark = { title: 'an agent of 100 MB goes to disk', run }

async function run({ dir, rounds = DEFAULT_ROUNDS, progress }: BenchmarkContext): Promise<Result> {
  const computer = await startAgent(dir)
  const port = await portOf(computer)
  const whole: number[] = []
  const stopped: number[] = []
  let bytes = 0
  for (let round = -WARM_UP_ROUNDS; round < rounds; round++) {
    await Bun.sleep(AWAKE_MS)
    const began = performance.now()
    const demoted = await computer.ask(Demoted, 'POST', '/agents/demote', { port })
    const took = performance.now() - began
    const over = Date.now()
    const last = await computer.ask(z.number(), 'GET', '/files/agent/data/last')
    await computer.ask(z.unknown(), 'POST', '/agents/promote', { port })
    if (round < 0) continue
    bytes = demoted.size_bytes
    whole.push(took)
    stopped.push(over - last)
    progress(`round ${round + 1} of ${rounds}: ${took.toFixed(0)} ms, stopped for ${over - last} ms`)
  }
  return {
    figures: [
      ...figuresOf('checkpoint', whole, { unit: 'ms', p50: { atMost: TARGET_MS } }),
      ...figuresOf('the agent is stopped', stopped, { unit: 'ms', p50: { atMost: TARGET_MS } }),
    ],
    details: { image_bytes: bytes },
  }
}

async function startAgent(dir: string): Promise<Computer> {
  const orb = await startOrb(join(dir, 'orb'), {})
  const computer = await orb.computer('bench', RUNTIME_MB, DISK_MB)
  await computer.put('agent/code/agent.js', readFileSync(AGENT_FILE, 'utf8'))
  await computer.put('agent/code/package.json', '{"type":"module"}')
  const config = { agent: { name: 'bench', lang: 'node', entry: 'agent.js', env: { BENCH_MB: String(AGENT_MB) } } }
  await computer.ask(z.unknown(), 'POST', '/config', stringify(config))
  await computer.ask(z.unknown(), 'POST', '/agents')
  return computer
}

async function portOf(computer: Computer): Promise<number> {
  const { agents } = await computer.ask(agentList, 'GET', '/agents')
  if (agents[0] === undefined) throw new Error('the agent is gone')
  return agents[0].port
}
