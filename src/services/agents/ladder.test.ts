import { afterEach, describe, expect, test } from 'bun:test'
import type { CallOutcome } from '../../proxy/types.ts'
import { Ladder, type LadderOptions } from './ladder.ts'
import type { Choice } from './policy.ts'

const FREEZE_MS = 60
const CHECKPOINT_MS = 150
const WAIT_MS = 4000
/** Timers of this runtime may fire a little before their time. */
const EARLY_MS = 3
/** After this a ladder that could not act looks again. */
const RETRY_MS = 1000

const ladders: Ladder[] = []
afterEach(() => {
  for (const ladder of ladders.splice(0)) ladder.stop()
})

type Deed = 'freeze' | 'reclaim' | 'checkpoint'

class FakeAgent {
  /** What the ladder did, with the time since the agent was made. */
  readonly deeds: { deed: Deed; at: number; still: boolean }[] = []
  /** What it was asked for a choice with. */
  readonly asked: { elapsedMs: number; waits: number[] }[] = []
  readonly answers: number[] = []
  /** Once its time has come; null: to disk. */
  choice: (() => Choice) | null = null
  checkpointAfterMs = CHECKPOINT_MS
  may = true
  /** Microseconds of CPU time per millisecond. */
  load = 0
  /** Added at each look: what a thread that runs for a moment costs. */
  blip = 0
  failFreeze = false
  failReclaim = false
  failCheckpoint = false
  /** Runs inside the transition, before `still` is asked. */
  meanwhile: () => void | Promise<void> = () => undefined
  readonly woken = Promise.resolve()
  prepared = 0
  private looks = 0
  private readonly made = performance.now()

  now(): number {
    return performance.now() - this.made
  }

  maySleep(): boolean {
    return this.may
  }

  forbid(): void {
    this.may = false
  }

  cpuUs(): number {
    this.looks++
    return this.now() * this.load + this.looks * this.blip
  }

  freeze(still: () => boolean): Promise<void> {
    return this.act('freeze', still, this.failFreeze)
  }

  checkpoint(still: () => boolean): Promise<void> {
    return this.act('checkpoint', still, this.failCheckpoint)
  }

  prepareWake(): void {
    this.prepared++
  }

  reclaim(still: () => boolean): Promise<void> {
    return this.act('reclaim', still, this.failReclaim)
  }

  choose(elapsedMs: number, waits: number[]): Choice {
    this.asked.push({ elapsedMs, waits })
    if (this.choice) return this.choice()
    const untilTime = this.checkpointAfterMs - elapsedMs
    if (untilTime > 0) return { sleep: 'stay', lookAgainMs: untilTime }
    return { sleep: 'checkpoint', lookAgainMs: null }
  }

  answered(waitedMs: number): void {
    this.answers.push(waitedMs)
  }

  wake(): Promise<void> {
    return this.woken
  }

  private async act(deed: Deed, still: () => boolean, fail: boolean): Promise<void> {
    const at = this.now()
    await this.meanwhile()
    this.deeds.push({ deed, at, still: still() })
    if (fail) throw new Error('it could not')
  }
}

function setUp(options: Partial<LadderOptions> = {}) {
  const agent = new FakeAgent()
  const all = { freezeAfterMs: FREEZE_MS, checkpointAfterMs: CHECKPOINT_MS, busyCpuPercent: 25, ...options }
  agent.checkpointAfterMs = all.checkpointAfterMs
  const ladder = new Ladder(all, agent)
  ladders.push(ladder)
  const deeds = () => agent.deeds.map(({ deed }) => deed)
  return { agent, ladder, deeds }
}

async function until(done: () => boolean): Promise<void> {
  const deadline = performance.now() + WAIT_MS
  while (!done()) {
    if (performance.now() > deadline) throw new Error('what the test waits for did not come')
    await Bun.sleep(2)
  }
}

/** Lets the agent's clock come to `at`: for what must not have happened by then. */
const clockAt = (agent: FakeAgent, at: number) => until(() => agent.now() >= at)

function waitingCall(ladder: Ladder) {
  const call = ladder.begin()
  call.waiting()
  return call
}

describe('the ladder', () => {
  test('freezes, then checkpoints, each once and not before its time', async () => {
    const { agent, ladder, deeds } = setUp()
    waitingCall(ladder)
    await until(() => agent.deeds.length === 2)
    await clockAt(agent, 2 * CHECKPOINT_MS)
    expect(deeds()).toEqual(['freeze', 'checkpoint'])
    expect(agent.deeds[0]?.at).toBeGreaterThanOrEqual(FREEZE_MS - EARLY_MS)
    expect(agent.deeds[1]?.at).toBeGreaterThanOrEqual(CHECKPOINT_MS - EARLY_MS)
    expect(agent.deeds.every(({ still }) => still)).toBe(true)
  })

  test('an answer between the two: no checkpoint', async () => {
    const { agent, ladder, deeds } = setUp()
    const call = waitingCall(ladder)
    await until(() => agent.deeds.length === 1)
    call.wake()
    await clockAt(agent, CHECKPOINT_MS + FREEZE_MS)
    expect(deeds()).toEqual(['freeze'])
  })

  test('without a call, or while one is being sent, nothing', async () => {
    const { agent, ladder } = setUp()
    ladder.touch()
    ladder.begin()
    await clockAt(agent, 2 * CHECKPOINT_MS)
    expect(agent.deeds).toEqual([])
  })

  test('while one of several is being sent or streamed, nothing', async () => {
    const { agent, ladder, deeds } = setUp()
    waitingCall(ladder)
    const other = ladder.begin()
    await clockAt(agent, CHECKPOINT_MS + FREEZE_MS)
    expect(agent.deeds).toEqual([])
    other.waiting()
    other.wake()
    await clockAt(agent, 2 * (CHECKPOINT_MS + FREEZE_MS))
    expect(agent.deeds).toEqual([])
    other.end('delivered')
    await until(() => agent.deeds.length === 2)
    expect(deeds()).toEqual(['freeze', 'checkpoint'])
  })

  test('an agent that has had its time already while a call was sent is checkpointed once that is over', async () => {
    const { agent, ladder, deeds } = setUp()
    const call = ladder.begin()
    await clockAt(agent, CHECKPOINT_MS + EARLY_MS)
    call.waiting()
    await until(() => agent.deeds.length === 1)
    expect(deeds()).toEqual(['checkpoint'])
  })
})

describe('the clock starts anew', () => {
  const restarts: [string, (ladder: Ladder, other: ReturnType<Ladder['begin']>) => void][] = [
    ['with a new call', (ladder) => void waitingCall(ladder)],
    ['with a delivered answer', (_, other) => other.end('delivered')],
    ['with an answer that was kept from before', (_, other) => other.end('replayed')],
    ['with a wake or a request', (ladder) => ladder.touch()],
  ]
  test.each(restarts)('%s', async (_, restart) => {
    const { agent, ladder, deeds } = setUp({ freezeAfterMs: 40, checkpointAfterMs: 400 })
    waitingCall(ladder)
    const other = waitingCall(ladder)
    await until(() => agent.deeds.length === 1)
    const restarted = agent.now()
    restart(ladder, other)
    await until(() => agent.deeds.length === 3)
    expect(deeds()).toEqual(['freeze', 'freeze', 'checkpoint'])
    expect(agent.deeds[1]?.at).toBeGreaterThanOrEqual(restarted + 40 - EARLY_MS)
    expect(agent.deeds[2]?.at).toBeGreaterThanOrEqual(restarted + 400 - EARLY_MS)
  })

  test.each<CallOutcome>(['client_closed', 'upstream_error', 'kept'])(
    'but not with a call that ended %s',
    async (end) => {
      const { agent, ladder, deeds } = setUp({ checkpointAfterMs: 300 })
      waitingCall(ladder)
      const other = waitingCall(ladder)
      await clockAt(agent, 200)
      other.end(end)
      await until(() => agent.deeds.length === 2)
      expect(deeds()).toEqual(['freeze', 'checkpoint'])
      expect(agent.deeds[1]?.at).toBeLessThan(300 + 180)
    },
  )

  test('nor does the last call’s end leave anything to do', async () => {
    const { agent, ladder } = setUp()
    waitingCall(ladder).end('client_closed')
    await clockAt(agent, 2 * CHECKPOINT_MS)
    expect(agent.deeds).toEqual([])
    expect(ladder.outstanding).toBe(0)
  })
})

describe('who may not sleep', () => {
  test('is looked at again later, and sleeps then', async () => {
    const { agent, ladder, deeds } = setUp()
    agent.may = false
    waitingCall(ladder)
    await clockAt(agent, CHECKPOINT_MS + FREEZE_MS)
    expect(agent.deeds).toEqual([])
    agent.may = true
    await until(() => agent.deeds.length === 1)
    expect(deeds()).toEqual(['checkpoint'])
  })

  test('a busy agent neither freezes nor is checkpointed; once it is idle it is', async () => {
    const { agent, ladder } = setUp()
    agent.load = 300
    waitingCall(ladder)
    await clockAt(agent, CHECKPOINT_MS + FREEZE_MS)
    expect(agent.deeds).toEqual([])
    agent.load = 0
    await until(() => agent.deeds.length === 1)
  })

  test('one below the limit sleeps in time', async () => {
    const { agent, ladder } = setUp()
    agent.load = 200
    waitingCall(ladder)
    await until(() => agent.deeds.length === 2)
    expect(agent.deeds[1]?.at).toBeLessThan(CHECKPOINT_MS + 500)
  })

  // Timers count whole milliseconds and fire up to one too early: a look at the CPU right before the freeze would then
  // measure over next to no time.
  test('a thread that runs for a moment is no load', async () => {
    for (let run = 0; run < 20; run++) {
      const freezeAfterMs = 20.3 + run * 1.37
      const { agent, ladder } = setUp({ freezeAfterMs, checkpointAfterMs: 60_000 })
      agent.blip = 2000
      waitingCall(ladder)
      await until(() => agent.deeds.length === 1)
      expect(agent.deeds[0]?.at).toBeLessThan(freezeAfterMs + 500)
      ladder.stop()
    }
  })

  test('load is that of the last second: work before it does not count', async () => {
    const { agent, ladder } = setUp({ freezeAfterMs: 1200, checkpointAfterMs: 60_000 })
    agent.load = 1000
    waitingCall(ladder)
    await clockAt(agent, 100)
    // From here on its CPU time stands still where it was.
    const used = agent.cpuUs()
    agent.cpuUs = () => used
    await until(() => agent.deeds.length === 1)
    expect(agent.deeds[0]?.at).toBeLessThan(1200 + 500)
  })
})

describe('failures', () => {
  test.each([
    ['freeze', 'failFreeze', 'stay'],
    ['reclaim', 'failReclaim', 'reclaim'],
  ] as const)('a failed %s is not tried again until the clock starts anew', async (deed, failing, sleep) => {
    const { agent, ladder, deeds } = setUp()
    agent[failing] = true
    agent.choice = () => ({ sleep, lookAgainMs: FREEZE_MS })
    waitingCall(ladder)
    await until(() => agent.deeds.length === 1)
    await clockAt(agent, agent.now() + RETRY_MS + CHECKPOINT_MS)
    expect(deeds()).toEqual([deed])
    ladder.touch()
    await until(() => agent.deeds.length === 2)
    expect(deeds()).toEqual([deed, deed])
  })

  test('after a failed dump the agent chooses anew', async () => {
    const { agent, ladder, deeds } = setUp()
    agent.failCheckpoint = true
    waitingCall(ladder)
    await until(() => agent.deeds.length === 2)
    agent.choice = () => ({ sleep: 'reclaim', lookAgainMs: null })
    await until(() => agent.deeds.length === 3)
    expect(deeds()).toEqual(['freeze', 'checkpoint', 'reclaim'])
  })

  test('a failure of what the clock has overtaken does not count', async () => {
    const { agent, ladder, deeds } = setUp()
    agent.failCheckpoint = true
    agent.meanwhile = () => {
      if (agent.deeds.length !== 1) return
      agent.failCheckpoint = true
      ladder.touch()
    }
    waitingCall(ladder)
    await until(() => agent.deeds.length === 4)
    expect(deeds()).toEqual(['freeze', 'checkpoint', 'freeze', 'checkpoint'])
  })
})

describe('the choice', () => {
  test('is asked for with the clock and with how long each call has waited', async () => {
    const { agent, ladder } = setUp()
    waitingCall(ladder)
    await clockAt(agent, FREEZE_MS / 2)
    waitingCall(ladder)
    await until(() => agent.asked.length === 2)
    for (const { elapsedMs, waits } of agent.asked) {
      expect(waits).toHaveLength(2)
      const [older = 0, younger = 0] = waits
      expect(older).toBeGreaterThan(younger)
      // The clock started with the younger call.
      expect(Math.abs(elapsedMs - younger)).toBeLessThan(FREEZE_MS / 4)
    }
  })

  test('is asked for again when it says so, until an answer comes', async () => {
    const { agent, ladder, deeds } = setUp()
    const choices: Choice[] = [
      { sleep: 'stay', lookAgainMs: 20 },
      { sleep: 'reclaim', lookAgainMs: 20 },
      { sleep: 'stay', lookAgainMs: 20 },
      { sleep: 'checkpoint', lookAgainMs: null },
    ]
    agent.choice = () => choices.shift() ?? { sleep: 'stay', lookAgainMs: null }
    waitingCall(ladder)
    await until(() => agent.deeds.length === 4)
    await clockAt(agent, agent.now() + CHECKPOINT_MS)
    expect(deeds()).toEqual(['freeze', 'reclaim', 'freeze', 'checkpoint'])
  })

  test('is not asked for once the answer is there', async () => {
    const { agent, ladder } = setUp()
    agent.choice = () => ({ sleep: 'reclaim', lookAgainMs: 20 })
    const call = waitingCall(ladder)
    await until(() => agent.deeds.length === 2)
    call.wake()
    const asked = agent.asked.length
    await clockAt(agent, agent.now() + CHECKPOINT_MS)
    expect(agent.asked).toHaveLength(asked)
  })
})

describe('what it tells of answers', () => {
  test('one that a freeze was worth counts, once', async () => {
    const { agent, ladder } = setUp()
    const call = waitingCall(ladder)
    await until(() => agent.deeds.length === 1)
    call.wake()
    call.wake()
    expect(agent.answers).toHaveLength(1)
    expect(agent.answers[0]).toBeGreaterThanOrEqual(FREEZE_MS - EARLY_MS)
  })

  test('one that came at once does not, nor one that was never waited for', () => {
    const { agent, ladder } = setUp()
    waitingCall(ladder).wake()
    ladder.begin().wake()
    expect(agent.answers).toEqual([])
  })
})

describe('what a transition asks right before it acts', () => {
  const changes: [string, (ladder: Ladder, call: ReturnType<Ladder['begin']>, agent: FakeAgent) => void][] = [
    ['an answer came', (_, call) => void call.wake()],
    ['the call ended', (_, call) => call.end('client_closed')],
    ['another call began', (ladder) => void ladder.begin()],
    ['somebody asked something of it', (ladder) => ladder.touch()],
    ['it may not sleep any more', (_, __, agent) => agent.forbid()],
  ]
  test.each(changes)('%s meanwhile: not now', async (_, change) => {
    const { agent, ladder } = setUp()
    const call = waitingCall(ladder)
    agent.meanwhile = () => change(ladder, call, agent)
    await until(() => agent.deeds.length === 1)
    expect(agent.deeds[0]?.still).toBe(false)
  })

  test('a checkpoint that was called off because of a build is made after it', async () => {
    const { agent, ladder, deeds } = setUp()
    waitingCall(ladder)
    await until(() => agent.deeds.length === 1)
    agent.meanwhile = () => agent.forbid()
    await until(() => agent.deeds.length === 2)
    expect(agent.deeds[1]?.still).toBe(false)
    agent.meanwhile = () => undefined
    agent.may = true
    // What ends a build.
    ladder.touch()
    await until(() => agent.deeds.length === 4)
    expect(deeds().slice(2)).toEqual(['freeze', 'checkpoint'])
  })
})

describe('calls', () => {
  test('one knows whether the agent slept since it began', () => {
    const { ladder } = setUp()
    const [early, ended] = [ladder.begin(), ladder.begin()]
    ended.end('delivered')
    ladder.fellAsleep()
    const late = ladder.begin()
    expect([early.slept(), late.slept(), ended.slept()]).toEqual([true, false, false])
  })

  test('are outstanding from their begin to their end', () => {
    const { ladder } = setUp()
    const [first, second] = [ladder.begin(), ladder.begin()]
    expect(ladder.outstanding).toBe(2)
    first.waiting()
    first.wake()
    expect(ladder.outstanding).toBe(2)
    first.end('delivered')
    second.end('kept')
    expect(ladder.outstanding).toBe(0)
  })

  test('announce a wake without making one', () => {
    const { agent, ladder } = setUp()
    const call = waitingCall(ladder)
    call.answering()
    expect(agent.prepared).toBe(1)
    expect(ladder.outstanding).toBe(1)
  })

  test('hand on what the agent says of its wake', () => {
    const { agent, ladder } = setUp()
    const call = waitingCall(ladder)
    expect(call.wake()).toBe(agent.woken)
    expect(call.writable()).toBe(agent.woken)
  })
})

test('a stopped ladder does nothing more', async () => {
  const { agent, ladder, deeds } = setUp()
  waitingCall(ladder)
  await until(() => agent.deeds.length === 1)
  ladder.stop()
  await clockAt(agent, 2 * CHECKPOINT_MS)
  expect(deeds()).toEqual(['freeze'])
})
