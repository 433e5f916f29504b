/** An orb with one computer, whose agent reaches an upstream on this machine both directly and through the LLM proxy. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { stringify } from 'smol-toml'
import { z } from 'zod'
import { type Computer, freeSubnet, type PrivateOrb, startOrb } from '../support/orb.ts'
import type { BenchmarkContext } from './figures.ts'

const RUNTIME_MB = 1024
const DISK_MB = 1024

/** An address of this machine that nobody else uses, until the benchmark is over. */
export function localAddress({ onCleanUp }: BenchmarkContext): string {
  const address = freeSubnet().replace(/0\/16$/, '1')
  ip('addr', 'add', `${address}/32`, 'dev', 'lo')
  onCleanUp(() => ip('addr', 'delete', `${address}/32`, 'dev', 'lo'))
  return address
}

export interface AgentPlan {
  /** host:port on `localAddress`. */
  upstream: string
  /** Of this directory; the first one is started. */
  files: string[]
  /** What the agent gets as BENCH_PLAN. */
  plan: Record<string, unknown>
}

export async function startAgent(
  { dir }: BenchmarkContext,
  { upstream, files, plan }: AgentPlan,
): Promise<{ orb: PrivateOrb; computer: Computer }> {
  const orb = await startOrb(join(dir, 'orb'), {
    allow_private: upstream,
    sandbox_allow: `${upstream.split(':')[0]}/32`,
  })
  const computer = await orb.computer('bench', RUNTIME_MB, DISK_MB)
  for (const file of files) await computer.put(`agent/code/${file}`, readFileSync(join(import.meta.dir, file), 'utf8'))
  await computer.put('agent/code/package.json', '{"type":"module"}')
  const config = {
    agent: { name: 'bench', lang: 'node', entry: files[0], env: { BENCH_PLAN: JSON.stringify(plan) } },
    llm: { base_url: `http://${upstream}` },
  }
  await computer.ask(z.unknown(), 'POST', '/config', stringify(config))
  await computer.ask(z.unknown(), 'POST', '/agents')
  return { orb, computer }
}

function ip(...args: string[]): void {
  const done = Bun.spawnSync(['ip', ...args], { stderr: 'pipe' })
  if (done.exitCode !== 0) throw new Error(`ip ${args.join(' ')}: ${done.stderr.toString().trim()}`)
}
