/** The ways to sleep, each through the API and the settings that a user has. */
import { expect } from 'bun:test'
import type { Computer } from '../support/computer.ts'
import { until } from '../support/sweep.ts'
import type { Situation, WayName } from './programs.ts'

const MB = 1024 * 1024
const SLEEP_TIMEOUT_MS = 60_000

export interface Sleep {
  /** Why orb would not, or null when the agent sleeps. */
  refused: string | null
  bytes: number | null
  sleepMs: number | null
}

export interface Way {
  name: WayName
  /** Settings of orb. */
  env: Record<string, string>
  /** Sends the agent to sleep: by the freeze ladder where it waits for an answer, else by hand. */
  sleep(computer: Computer, situation: Situation): Promise<Sleep>
  expectAsleep(computer: Computer): Promise<void>
  /** How long the last wake took; it must have been for `reason`. */
  wakeMs(computer: Computer, reason: string): Promise<number>
}

const CHECKPOINT: Way = {
  name: 'checkpoint',
  env: {},
  async sleep(computer, situation) {
    const old = await outcomes(computer)
    if (situation !== 'plain') {
      const { status, json } = await computer.call('POST', '/agents/demote')
      if (status !== 200) {
        expect([status, json['error']]).toEqual([500, 'checkpoint_failed'])
        expect((await computer.agent())?.state).toBe('running')
        return { refused: String(json['message']), bytes: null, sleepMs: null }
      }
    }
    let outcome: string | undefined
    await until(async () => {
      outcome = (await outcomes(computer))[old.length]
      return outcome !== undefined
    }, SLEEP_TIMEOUT_MS)
    if (outcome === undefined) throw new Error(`it never slept:\n${(await computer.lines()).slice(-20).join('\n')}`)
    const refused = /^checkpoint failed: (.*)$/.exec(outcome)?.[1]
    if (refused !== undefined) {
      expect((await computer.agent())?.state).toBe('frozen')
      return { refused, bytes: null, sleepMs: null }
    }
    const [bytes, ms] = /(\d+) bytes in (\d+) ms$/.exec(outcome)?.slice(1).map(Number) ?? []
    return { refused: null, bytes: bytes ?? null, sleepMs: ms ?? null }
  },
  async expectAsleep(computer) {
    expect(await computer.waitForState('checkpointed')).toMatchObject({ pid: null, failure_reason: null })
    expect(computer.agentProcesses()).toEqual([])
    expect(computer.memoryBytes()).toBeLessThan(4 * MB)
  },
  async wakeMs(computer, reason) {
    const line = (await computer.lines('orb')).findLast((text) => text.startsWith('restored ')) ?? ''
    const [, seen, ms] = /^restored \((\w+)\) in (\d+) ms$/.exec(line) ?? []
    expect(seen).toBe(reason)
    return Number(ms)
  },
}

/** orb's own lines on what came of putting it on disk, oldest first. */
const outcomes = async (computer: Computer): Promise<string[]> =>
  (await computer.lines('orb')).filter((line) => /^(checkpointed \(|checkpoint failed: )/.test(line))

export const WAYS: Way[] = [CHECKPOINT]
