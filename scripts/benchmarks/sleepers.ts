/** Computers with agents that are put to sleep and woken by requests from outside, for `density` and `ingress`. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { z } from 'zod'
import { demoted, logs } from '../../src/api/cloud/schemas.ts'
import type { Computer, PrivateOrb } from '../support/orb.ts'

export const DOMAIN = 'orb.test'
/** While one waits for its deploy others use the cores; orb dumps no more agents at once than there are cores. */
export const SLEEPERS_AT_ONCE = 8
const AGENT_SOURCE = readFileSync(join(import.meta.dir, 'sleeper-agent.js'), 'utf8')
const AGENT_PORT = 8000
const RUNTIME_MB = 256
const DISK_MB = 1024
/** A program listens some time after it was started. */
const LISTEN_TIMEOUT_MS = 20_000
const POLL_MS = 20

const Visit = z.object({ name: z.string(), visits: z.int(), rssBytes: z.int() })

export class Sleeper {
  /** RAM of the agent before it slept for the first time. */
  rssBytes = 0
  /** What the agent has counted: only one and the same process can go on from there. */
  private visits = 0

  private constructor(
    private readonly computer: Computer,
    private readonly address: string,
  ) {}

  /** A computer with an agent that is awake and listens. */
  static async create(orb: PrivateOrb, name: string): Promise<Sleeper> {
    const computer = await orb.computer(name, RUNTIME_MB, DISK_MB)
    const sleeper = new Sleeper(computer, computer.addressInside())
    await computer.put('agent/code/agent.js', AGENT_SOURCE)
    await computer.put('agent/code/package.json', '{"type":"module"}')
    const orb_config = { agent: { name, lang: 'node', entry: 'agent.js' }, ports: { expose: [AGENT_PORT] } }
    await computer.ask(z.unknown(), 'POST', '/agents', { orb_config })
    await sleeper.untilListening()
    return sleeper
  }

  /** To disk; returns the bytes of its image. */
  async sleep(): Promise<number> {
    return (await this.computer.ask(demoted, 'POST', '/agents/demote')).size_bytes
  }

  /** A request by way of orb; returns the ms until the answer was there. @throws Error when it is not this agent's next one */
  visit(): Promise<number> {
    return this.ask(this.computer.url, { host: `${this.computer.shortId}.${DOMAIN}` })
  }

  /** The same past orb, over the computer's own network. The agent must be awake. */
  visitDirectly(): Promise<number> {
    return this.ask(`http://${this.address}:${AGENT_PORT}`, {})
  }

  /** Host pids of what stays while it sleeps. */
  processes(): number[] {
    return this.computer.standing()
  }

  private async ask(url: string, headers: Record<string, string>): Promise<number> {
    const began = performance.now()
    const response = await fetch(url, { headers, timeout: false })
    const text = await response.text()
    const took = performance.now() - began
    const name = `orb-${this.computer.shortId}`
    if (response.status !== 200) throw new Error(`${name}: ${response.status} ${text} ${await this.lastWords()}`)
    const visit = Visit.parse(JSON.parse(text))
    this.visits++
    this.rssBytes ||= visit.rssBytes
    if (visit.name !== name || visit.visits !== this.visits) {
      throw new Error(
        `${name}: ${visit.name} answered, and for the ${visit.visits}th time instead of the ${this.visits}th`,
      )
    }
    return took
  }

  /** What orb last said of the agent. */
  private async lastWords(): Promise<string> {
    const { lines } = await this.computer.ask(logs, 'GET', '/logs?stream=orb&tail=3')
    return lines.map(({ line }) => line).join('; ')
  }

  private async untilListening(): Promise<void> {
    const deadline = performance.now() + LISTEN_TIMEOUT_MS
    for (;;) {
      const error = await this.visit().then(
        () => null,
        (thrown: unknown) => thrown,
      )
      if (error === null) return
      if (performance.now() > deadline) throw error
      await Bun.sleep(POLL_MS)
    }
  }
}

/** Runs `work` for each of `count` numbers, `atOnce` at a time. */
export async function inParallel(count: number, atOnce: number, work: (index: number) => Promise<void>): Promise<void> {
  let next = 0
  const worker = async () => {
    while (next < count) await work(next++)
  }
  await Promise.all(Array.from({ length: atOnce }, worker))
}
