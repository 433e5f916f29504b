import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { runningCriu } from '../../src/runtime/criu-processes.ts'
import type { Computer } from '../support/computer.ts'
import { type Orb, startOrb } from '../support/orb.ts'
import { until } from '../support/sweep.ts'

/** What is stopped is given up after 30 s and what its memory takes. */
setDefaultTimeout(150_000)

/* Root in a computer sees criu there, and may do to it what it likes. */
let orb: Orb
let neighbour: Computer

beforeAll(async () => {
  orb = await startOrb()
  neighbour = await orb.computer()
  await neighbour.deployAgent()
})
afterAll(() => orb?.stop())

/** Signals all that the pattern finds, again and again until the file /agent/data/peace is there. */
async function attack(computer: Computer, signal: 'KILL' | 'STOP', pattern: string): Promise<void> {
  await computer.sh('rm -f /agent/data/peace /agent/data/over')
  const loop = `until [ -e /agent/data/peace ]; do for p in $(pgrep -f '${pattern}'); do [ $p = $$ ] || kill -${signal} $p; done; done; touch /agent/data/over`
  await computer.sh(`(setsid bash -c "$(cat <<'END'\n${loop}\nEND\n)" >/dev/null 2>&1 &)`)
}
async function peace(computer: Computer): Promise<void> {
  await computer.put('agent/data/peace', '')
  await computer.sh('for i in $(seq 200); do [ -e /agent/data/over ] && exit 0; sleep 0.05; done; exit 1')
}

async function victim(megabytes: number) {
  const computer = await orb.computer({ runtime_mb: 1024 })
  await computer.deployAgent({ env: { DATA_MB: String(megabytes) } })
  const before = await computer.state()
  return { computer, next: { life: before.life, count: before.count + 1 } }
}

/** Others are served meanwhile: commands, and a whole sleep and wake. */
async function expectNeighbourServed(): Promise<void> {
  const before = await neighbour.state()
  expect((await neighbour.call('POST', '/agents/demote')).status).toBe(200)
  expect((await neighbour.call('POST', '/agents/promote')).status).toBe(200)
  expect(await neighbour.state()).toEqual({ life: before.life, count: before.count + 1 })
}

const images = (computer: Computer): string[] => {
  try {
    return readdirSync(join(orb.dataDir, 'checkpoints', computer.id))
  } catch {
    return []
  }
}
const nobodyAtWork = (computer: Computer) => runningCriu(orb.dataDir).every(({ dir }) => !dir.includes(computer.id))

describe('a command in a computer', () => {
  test.each(['KILL', 'STOP'] as const)(
    'that sends SIG%s to criu in a dump: bounded, and the agent is in a state that says so',
    async (signal) => {
      const { computer, next } = await victim(100)
      await attack(computer, signal, 'criu/[c]riu dump')
      const answer = await computer.call('POST', '/agents/demote')
      await peace(computer)
      const agent = await computer.agent()
      expect(await until(() => nobodyAtWork(computer))).toBe(true)
      await expectNeighbourServed()
      expect(images(computer)).toEqual([])
      if (agent?.state === 'running') {
        expect([answer.status, answer.json['error']]).toEqual([500, 'checkpoint_failed'])
        expect(await computer.state()).toEqual(next)
        return
      }
      expect([answer.status, answer.json['error']]).toEqual([409, 'agent_failed'])
      expect(agent).toMatchObject({ state: 'failed', failure_reason: 'exit', pid: null })
      expect(computer.agentProcesses()).toEqual([])
      await computer.deployAgent()
    },
  )

  test.each(['KILL', 'STOP'] as const)(
    'that sends SIG%s to criu in a restore: it fails, the checkpoint is kept, promote tries again',
    async (signal) => {
      const { computer, next } = await victim(100)
      expect((await computer.call('POST', '/agents/demote')).status).toBe(200)
      await attack(computer, signal, 'criu/[c]riu restore')
      const promoted = computer.call('POST', '/agents/promote')
      const answer = await promoted
      await peace(computer)
      expect([answer.status, answer.json['error']]).toEqual([500, 'restore_failed'])
      expect(await computer.agent()).toMatchObject({ state: 'failed', failure_reason: 'restore_failed', pid: null })
      expect(computer.agentProcesses()).toEqual([])
      expect(await until(() => nobodyAtWork(computer))).toBe(true)
      await expectNeighbourServed()
      const again = await computer.call('POST', '/agents/promote')
      expect([again.status, again.text]).toEqual([200, again.text])
      expect(await computer.state()).toEqual(next)
      await computer.expectStarts(1)
    },
  )

  test.each(['KILL', 'STOP'] as const)(
    'that sends SIG%s to the page daemon: the agent is failed in the end, never left hanging, and can be had again',
    async (signal) => {
      const { computer, next } = await victim(600)
      expect((await computer.call('POST', '/agents/demote')).status).toBe(200)
      await attack(computer, signal, 'criu/[c]riu lazy-pages')
      await computer.call('POST', '/agents/promote')
      await expectNeighbourServed()
      expect(await computer.waitForState('failed', 120_000)).toMatchObject({
        failure_reason: 'restore_failed',
        pid: null,
      })
      await peace(computer)
      expect(computer.agentProcesses()).toEqual([])
      expect(await until(() => nobodyAtWork(computer))).toBe(true)
      const again = await computer.call('POST', '/agents/promote')
      expect([again.status, again.text]).toEqual([200, again.text])
      expect(await computer.state()).toEqual(next)
      await computer.expectStarts(1)
    },
  )

  test('that stops the page daemon once the agent runs: a demote meanwhile is answered, the agent is failed, and can be had again', async () => {
    const { computer, next } = await victim(600)
    expect((await computer.call('POST', '/agents/demote')).status).toBe(200)
    expect((await computer.call('POST', '/agents/promote')).status).toBe(200)
    // A command would come too late for some of the time.
    const daemons = runningCriu(orb.dataDir).filter(({ dir }) => dir.includes(computer.id))
    expect(daemons.map(({ operation }) => operation)).toContain('lazy-pages')
    for (const { pid, operation } of daemons) if (operation === 'lazy-pages') process.kill(pid, 'SIGSTOP')
    const demoted = computer.call('POST', '/agents/demote')
    await expectNeighbourServed()
    expect((await demoted).json['error']).toBe('agent_failed')
    expect(await computer.agent()).toMatchObject({ state: 'failed', failure_reason: 'restore_failed', pid: null })
    expect(computer.agentProcesses()).toEqual([])
    expect(await until(() => nobodyAtWork(computer))).toBe(true)
    expect((await computer.call('POST', '/agents/promote')).status).toBe(200)
    expect(await computer.state()).toEqual(next)
    await computer.expectStarts(1)
  })
})
