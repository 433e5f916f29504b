/** The ways to sleep, each through the API and the settings that a user has. */
import { expect } from 'bun:test'
import { until } from '../support/sweep.ts'
import type { MatrixAgent } from './agent.ts'
import { SITUATIONS, type Situation, type WayName } from './programs.ts'
import { type Upstream, wholeAnswer } from './upstream.ts'

const MB = 1024 * 1024
const SLEEP_TIMEOUT_MS = 60_000

/** Questions that are answered soon teach orb that this agent's waits are short: as many as it wants to have seen. */
const KNOWN_WAITS = 4
/** After the agent went to sleep: too soon for a dump to have repaid itself. */
const SHORT_WAIT_MS = 1000
/** What stays of an agent in swap: page tables, kernel stacks, and what a busy machine adds. */
const RESIDENT_BYTES = 12 * MB

export interface Sleep {
  /** Why orb would not, or null when the agent sleeps. */
  refused: string | null
  /** Of memory that were written. */
  bytes: number | null
  sleepMs: number | null
}

export interface Way {
  name: WayName
  /** Settings of orb. */
  env: Record<string, string>
  /** In which orb sends an agent to sleep like this. */
  situations: Situation[]
  /** What must have happened before. */
  prepare?(agent: MatrixAgent, upstream: Upstream): Promise<void>
  /** Sends the agent to sleep: by the freeze ladder where it waits for an answer, else by hand. */
  sleep(agent: MatrixAgent, situation: Situation): Promise<Sleep>
  expectAsleep(agent: MatrixAgent): Promise<void>
  /** How long the last wake took, if that is known; it must have been for `reason`. */
  wakeMs(agent: MatrixAgent, reason: string): Promise<number | null>
}

/** How orb's own lines on what came of sending an agent to sleep begin. */
const TO_DISK = /^(checkpointed \(|checkpoint failed: )/

const CHECKPOINT: Way = {
  name: 'checkpoint',
  env: {},
  situations: SITUATIONS,
  async sleep(agent, situation) {
    const { computer } = agent
    const next = await nextLine(agent, TO_DISK)
    if (situation !== 'plain') {
      const { status, json } = await computer.call('POST', '/agents/demote')
      if (status !== 200) {
        expect([status, json['error']]).toEqual([500, 'checkpoint_failed'])
        expect((await computer.agent())?.state).toBe('running')
        return { refused: String(json['message']), bytes: null, sleepMs: null }
      }
    }
    const line = await next()
    const [, refused] = /^checkpoint failed: (.*)$/.exec(line) ?? []
    if (refused !== undefined) {
      expect((await computer.agent())?.state).toBe('frozen')
      return { refused, bytes: null, sleepMs: null }
    }
    const [, bytes, ms] = /(\d+) bytes in (\d+) ms$/.exec(line) ?? []
    return { refused: null, bytes: Number(bytes), sleepMs: Number(ms) }
  },
  async expectAsleep({ computer }) {
    expect(await computer.waitForState('checkpointed')).toMatchObject({ pid: null, failure_reason: null })
    expect(computer.agentProcesses()).toEqual([])
    expect(computer.memoryBytes()).toBeLessThan(4 * MB)
  },
  async wakeMs({ computer }, reason) {
    const line = (await computer.lines('orb')).findLast((text) => text.startsWith('restored ')) ?? ''
    const [, seen, ms] = /^restored \((\w+)\) in (\d+) ms$/.exec(line) ?? []
    expect(seen).toBe(reason)
    return Number(ms)
  },
}

const TO_SLEEP = /^(checkpoint|reclaim)/

const RECLAIM: Way = {
  name: 'reclaim',
  env: { ORB_SWAP_GB: '4' },
  // Demote is a wish for the disk.
  situations: ['plain'],
  async prepare(agent, upstream) {
    const questions = Array.from({ length: KNOWN_WAITS }, (_, index) => `${agent.computer.shortId}-known-${index}`)
    upstream.hold(...questions)
    const asleep = await nextLine(agent, TO_SLEEP)
    for (const question of questions) await agent.ask(question, 'plain')
    await asleep()
    await Bun.sleep(SHORT_WAIT_MS)
    upstream.release(...questions)
    for (const question of questions) expect(await agent.answer(question)).toBe(wholeAnswer(question, 'plain'))
  },
  async sleep(agent) {
    const line = await (await nextLine(agent, TO_SLEEP))()
    const [, megabytes, ms] = /^reclaimed \(llm\), ([\d.]+) MB to swap in (\d+) ms/.exec(line) ?? []
    if (megabytes === undefined) return { refused: line, bytes: null, sleepMs: null }
    return { refused: null, bytes: Number(megabytes) * MB, sleepMs: Number(ms) }
  },
  async expectAsleep({ computer }) {
    expect((await computer.agent())?.state).toBe('frozen')
    expect(computer.agentMemoryBytes()).toBeLessThan(RESIDENT_BYTES)
  },
  wakeMs: () => Promise.resolve(null),
}

export const WAYS: Way[] = [CHECKPOINT, RECLAIM]

/** Call the result for the next of orb's own lines that `matches`, once it is there. */
async function nextLine({ computer }: MatrixAgent, matches: RegExp): Promise<() => Promise<string>> {
  const all = async () => (await computer.lines('orb')).filter((line) => matches.test(line))
  const before = (await all()).length
  return async () => {
    let line: string | undefined
    await until(async () => {
      line = (await all())[before]
      return line !== undefined
    }, SLEEP_TIMEOUT_MS)
    if (line === undefined) throw new Error(`it does not sleep:\n${(await computer.lines()).slice(-20).join('\n')}`)
    return line
  }
}
