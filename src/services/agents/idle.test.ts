import { afterEach, describe, expect, test } from 'bun:test'
import type { AgentRow, ComputerRow } from '../../store/types.ts'
import { Activity } from './activity.ts'
import { type IdleAgent, type IdleLife, IdleWindow, periodOf, startIdleSleep } from './idle.ts'

const WINDOW_MS = 8000
const PERIOD_MS = 1000
const CPU_PERCENT = 1
/** CPU time of a period that is just too much. */
const BUSY_US = 10_000

class FakeAgent implements IdleAgent {
  now = 0
  gen = 1
  open = false
  touched = 0
  us = 1_000_000
  packets = 100
  bytes = 10_000
  timed = false
  /** What was asked, most expensive last. */
  asked: string[] = []

  generation = () => this.gen
  inUse = () => this.open
  touchedAt = () => this.touched
  cpuUs = () => {
    this.asked.push('cpu')
    return this.us
  }
  traffic = () => ({ packets: this.packets, bytes: this.bytes })
  hasTimedSleep = () => {
    this.asked.push('threads')
    return this.timed
  }

  transfer(packets: number, bytes: number): void {
    this.packets += packets
    this.bytes += bytes
  }
}

function setUp(windowMs = WINDOW_MS) {
  const agent = new FakeAgent()
  const window = new IdleWindow(windowMs, CPU_PERCENT, agent)
  /** Looks once a period, `each` half a period before every look. Returns how many periods passed until the window was over; null: it was not within `most`. */
  const looksUntilIdle = (each: () => void = () => undefined, most = 100): number | null => {
    for (let looks = 1; looks <= most; looks++) {
      agent.now += PERIOD_MS / 2
      each()
      agent.now += PERIOD_MS / 2
      if (window.look(agent.now)) return looks
    }
    return null
  }
  return { agent, window, looksUntilIdle }
}

/** The first look begins the window. */
const FULL = WINDOW_MS / PERIOD_MS + 1

test('an agent that does nothing is idle when its window is over, not before', () => {
  expect(setUp().looksUntilIdle()).toBe(FULL)
})

test('looks are an eighth of the window apart, within bounds', () => {
  expect([0, 1, 2000, 8000, 40_000, 120_000, 3_600_000].map(periodOf)).toEqual([250, 250, 250, 1000, 5000, 5000, 5000])
})

describe('the window starts anew', () => {
  const DISTURBANCES: [string, (agent: FakeAgent) => void][] = [
    ['with a start, a sleep or a wake', (agent) => agent.gen++],
    ['when a request came and went between two looks', (agent) => Object.assign(agent, { touched: agent.now })],
    ['with CPU time of the limit', (agent) => Object.assign(agent, { us: agent.us + BUSY_US })],
    ['with data on the network', (agent) => agent.transfer(2, 200)],
    ['with counters that went back', (agent) => agent.transfer(-50, -5000)],
  ]

  test.each(DISTURBANCES)('%s', (_, disturb) => {
    const { agent, looksUntilIdle } = setUp()
    expect(looksUntilIdle(undefined, FULL - 1)).toBeNull()
    disturb(agent)
    expect(looksUntilIdle()).toBe(FULL)
  })

  test.each(DISTURBANCES)('as long as it goes on: %s', (_, disturb) => {
    const { agent, looksUntilIdle } = setUp()
    expect(looksUntilIdle(() => disturb(agent))).toBeNull()
    expect(looksUntilIdle()).toBe(FULL - 1)
  })

  test('while something is open, however long, and only counts from the look after', () => {
    const { agent, looksUntilIdle } = setUp()
    agent.open = true
    expect(looksUntilIdle()).toBeNull()
    expect(agent.asked).toEqual([])
    agent.open = false
    expect(looksUntilIdle()).toBe(FULL)
  })

  test('with a thread in a timed sleep, at one look of the window', () => {
    const { agent, looksUntilIdle } = setUp()
    // The agent runs a little all the time.
    const run = () => {
      agent.us += 10
    }
    expect(looksUntilIdle(run, FULL - 2)).toBeNull()
    agent.timed = true
    expect(looksUntilIdle(run, 1)).toBeNull()
    agent.timed = false
    expect(looksUntilIdle(run)).toBe(FULL - 1)
  })

  test('when it is told to', () => {
    const { window, looksUntilIdle } = setUp()
    expect(looksUntilIdle(undefined, FULL - 1)).toBeNull()
    window.restart()
    expect(looksUntilIdle()).toBe(FULL)
  })
})

describe('does not keep an agent awake', () => {
  test('a little CPU time', () => {
    const { agent, looksUntilIdle } = setUp()
    const run = () => {
      agent.us += BUSY_US - 1
    }
    expect(looksUntilIdle(run)).toBe(FULL)
  })

  test('TCP keepalive, with time stamps and without', () => {
    for (const size of [66, 54]) {
      const { agent, looksUntilIdle } = setUp()
      expect(looksUntilIdle(() => agent.transfer(2, 2 * size))).toBe(FULL)
    }
  })

  test('one wakeup right after a look', () => {
    const { agent, window, looksUntilIdle } = setUp()
    expect(looksUntilIdle()).toBe(FULL)
    agent.us += BUSY_US / 2
    expect(window.look(agent.now + 1)).toBe(true)
    agent.us += BUSY_US
    expect(window.look(agent.now + 2)).toBe(false)
  })
})

describe('threads are looked at', () => {
  test('once as long as none of them runs', () => {
    const { agent, looksUntilIdle } = setUp()
    expect(looksUntilIdle()).toBe(FULL)
    expect(agent.asked.filter((what) => what === 'threads')).toHaveLength(1)
  })

  test('once too, when the one look finds a timed sleep: it keeps the agent awake', () => {
    const { agent, looksUntilIdle } = setUp()
    agent.timed = true
    expect(looksUntilIdle()).toBeNull()
    expect(agent.asked.filter((what) => what === 'threads')).toHaveLength(1)
  })

  test('at every look before which one has run', () => {
    const { agent, looksUntilIdle } = setUp()
    const run = () => {
      agent.us++
    }
    expect(looksUntilIdle(run)).toBe(FULL)
    expect(agent.asked.filter((what) => what === 'threads')).toHaveLength(FULL - 1)
  })

  test('not at all when something cheaper says that it is busy', () => {
    const { agent, looksUntilIdle } = setUp()
    expect(looksUntilIdle(() => agent.transfer(1, 1000))).toBeNull()
    expect(agent.asked).not.toContain('threads')
  })
})

/** The timer that all agents share. */
describe('agents', () => {
  /** The shortest there is, in looks: one that begins it and one that ends it. */
  const SHORT_MS = 1
  const PATIENCE_MS = 4000
  const stops: (() => void)[] = []
  afterEach(() => {
    for (const stop of stops.splice(0)) stop()
  })

  class FakeLife implements IdleLife {
    readonly activity = new Activity()
    readonly ladder = { outstanding: 0 }
    readonly deletion = new AbortController()
    readonly deleted = this.deletion.signal
    running = true
    /** How often it was sent to sleep. */
    sent = 0
    /** What its checkpoint does. */
    act: (still: () => boolean) => Promise<unknown> = () => new Promise(() => undefined)

    constructor(readonly computer: ComputerRow) {}

    row(): AgentRow {
      return {
        computerId: this.computer.id,
        phase: 'running',
        generation: 1,
        pid: 1,
        image: null,
        imageBytes: null,
        startedAt: 1,
        exitCode: null,
        stderrTail: null,
        failureReason: null,
        failureMessage: null,
        sleepReason: null,
        codeVersion: null,
        llmOutstanding: false,
        lastWakeMs: null,
      }
    }

    checkpoint(_: 'idle', still: () => boolean): Promise<unknown> {
      this.sent++
      return this.act(still)
    }
  }

  const life = (id: string): FakeLife =>
    new FakeLife({
      id,
      shortId: id,
      orgId: 'o',
      name: 'n',
      runtimeMb: 64,
      diskMb: 64,
      userId: null,
      swarmId: null,
      replicaIndex: null,
      slot: 1,
      base: 'b',
      createdAt: 0,
      updatedAt: 0,
    })

  function start(lives: FakeLife[], windowMs: (id: string) => number | null = () => SHORT_MS): () => void {
    const runtime = { agentCpuUs: () => 0, traffic: () => ({ packets: 0, bytes: 0 }), agentInTimedSleep: () => false }
    const stop = startIdleSleep({
      runtime,
      lives: () => lives,
      windowMs: ({ id }) => windowMs(id),
      cpuPercent: 1,
      usualWindowMs: SHORT_MS,
    })
    stops.push(stop)
    return stop
  }

  async function eventually(condition: () => boolean): Promise<void> {
    const end = performance.now() + PATIENCE_MS
    while (!condition() && performance.now() < end) await Bun.sleep(5)
    expect(condition()).toBe(true)
  }

  test('that are idle are sent to sleep, once; others meanwhile are not', async () => {
    const [idle, asleep, visited, waiting, never] = ['idle', 'asleep', 'visited', 'waiting', 'never'].map(life)
    if (!idle || !asleep || !visited || !waiting || !never) throw new Error('no life')
    asleep.running = false
    visited.activity.begin(() => undefined)
    waiting.ladder.outstanding = 1
    // Comes last and is sent to sleep again and again: so many windows have passed for the others.
    const last = life('last')
    last.act = async () => null
    start([idle, asleep, visited, waiting, never, last], (id) => (id === 'never' ? null : SHORT_MS))
    await eventually(() => last.sent === 3)
    expect([idle, asleep, visited, waiting, never].map(({ sent }) => sent)).toEqual([1, 0, 0, 0, 0])
  })

  test('of any number are all looked at', async () => {
    const lives = Array.from({ length: 100 }, (_, index) => life(String(index)))
    start(lives)
    await eventually(() => lives.every(({ sent }) => sent === 1))
  })

  test('of which one cannot be looked at do not hinder the others', async () => {
    const [broken, other] = [life('broken'), life('other')]
    broken.row = () => {
      throw new Error('this test says so')
    }
    start([broken, other])
    await eventually(() => other.sent === 1)
    expect(broken.sent).toBe(0)
  })

  test('whose dump fails are tried again', async () => {
    const one = life('one')
    one.act = () => Promise.reject(new Error('this test says so'))
    start([one])
    await eventually(() => one.sent === 3)
  })

  const LAST_MOMENT: [string, (one: FakeLife, stop: () => void) => void, boolean][] = [
    ['nothing came: it sleeps', () => undefined, true],
    ['a request came: it does not', (one) => one.activity.begin(() => undefined), false],
    ['a request came and went: it does not', (one) => one.activity.begin(() => undefined).end(), false],
    ['a lease began: it does not', (one) => one.activity.lease(), false],
    ['an LLM call began: it does not', (one) => Object.assign(one.ladder, { outstanding: 1 }), false],
    ['orb is ending: it does not', (_, stop) => stop(), false],
  ]

  test.each(LAST_MOMENT)('are asked once more right before: %s', async (_, meanwhile, sleeps) => {
    const one = life('one')
    const asked: boolean[] = []
    one.act = async (still) => {
      meanwhile(one, stop)
      asked.push(still())
      return new Promise(() => undefined)
    }
    const stop = start([one])
    await eventually(() => asked.length > 0)
    expect(asked).toEqual([sleeps])
  })
})
