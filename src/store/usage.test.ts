import { Database } from 'bun:sqlite'
import { beforeEach, describe, expect, test } from 'bun:test'
import { agentRepository } from './agents.ts'
import { computerRepository } from './computers.ts'
import { MIGRATIONS, migrate } from './migrations.ts'
import { orgRepository } from './orgs.ts'
import type { AgentPhase, AgentRow, UsageEvent, UsageRow, UsageState } from './types.ts'
import { CLOCK_STEP_MS, usageRepository } from './usage.ts'

const ID = 'aaaaaaaa-0000-4000-8000-000000000000'
const START = Date.UTC(2026, 3, 19)
const MINUTE = 60_000
const EVER = Number.MAX_SAFE_INTEGER

/** A database whose orb can be restarted, on a machine whose clock can be set. */
class World {
  readonly db = new Database(':memory:', { strict: true })
  steady = 0
  /** How far the machine's clock is ahead of what it was at first. */
  offset = 0
  generation = 0
  usage!: ReturnType<typeof usageRepository>
  agents!: ReturnType<typeof agentRepository>
  computers!: ReturnType<typeof computerRepository>

  constructor() {
    this.db.run('PRAGMA foreign_keys = ON')
    migrate(this.db)
    orgRepository(this.db).insert({ id: 'org', email: 'a@example.com', createdAt: START })
    this.restart()
  }

  get now(): number {
    return START + this.steady + this.offset
  }

  pass(ms: number): void {
    this.steady += ms
  }

  restart(): number | null {
    const begun = this.steady
    this.usage = usageRepository(this.db, this.db, { now: () => this.now, steady: () => this.steady - begun })
    this.agents = agentRepository(this.db, this.usage)
    this.computers = computerRepository(this.db, this.usage)
    return this.usage.resume()
  }

  create(id = ID, orgId = 'org'): void {
    this.computers.insert({
      id,
      shortId: id.slice(0, 8),
      orgId,
      name: 'c',
      runtimeMb: 512,
      diskMb: 1024,
      userId: null,
      swarmId: null,
      replicaIndex: null,
      base: 'host',
      createdAt: this.now,
      updatedAt: this.now,
    })
  }

  enter(phase: AgentPhase, event: UsageEvent = {}, id = ID): void {
    this.generation++
    if (phase === 'starting') this.agents.put({ ...AGENT, computerId: id, generation: this.generation }, event)
    else if (!this.agents.update(id, this.generation - 1, { phase, generation: this.generation }, 'crash', event))
      throw new Error('the agent is another')
  }

  took(from = 0, to = EVER): UsageRow {
    const row = this.usage.ofComputer(ID, { from, to })
    if (!row) throw new Error('the computer was not there')
    return row
  }

  /** What the marks say of each stretch of time until now, with none before the first one. */
  stretches(): { from: number; to: number; state: UsageState }[] {
    const marks = this.db
      .query<{ at: number; state: UsageState }, []>('SELECT at, state FROM usage_marks ORDER BY computer, at')
      .all()
    const first = { at: START, state: 'none' as const }
    return [first, ...marks].map(({ at, state }, index) => ({ from: at, to: marks[index]?.at ?? this.now, state }))
  }
}

const AGENT: AgentRow = {
  computerId: ID,
  phase: 'starting',
  generation: 0,
  pid: null,
  image: null,
  imageBytes: null,
  startedAt: null,
  exitCode: null,
  stderrTail: null,
  failureReason: null,
  failureMessage: null,
  sleepReason: null,
  codeVersion: null,
  llmOutstanding: false,
  lastWakeMs: null,
}

let world: World
beforeEach(() => {
  world = new World()
})

/** Deployed at once, a minute in memory, two on disk, three in memory again. */
function threeStretches(): void {
  world.create()
  world.enter('starting')
  world.enter('running')
  world.pass(MINUTE)
  world.enter('checkpointing')
  world.enter('checkpointed', { checkpoint: true })
  world.pass(2 * MINUTE)
  world.enter('restoring')
  world.enter('running', { restoreMs: 50 })
  world.pass(3 * MINUTE)
}

describe('what an agent takes', () => {
  test('is memory while it runs or is frozen, disk from the end of the dump to the end of the restore', () => {
    threeStretches()
    expect(world.took()).toMatchObject({ ramMs: 4 * MINUTE, nvmeMs: 2 * MINUTE, existsMs: 6 * MINUTE })
    world.enter('frozen')
    world.pass(MINUTE)
    world.enter('checkpointing')
    world.pass(MINUTE)
    world.enter('checkpointed', { checkpoint: true })
    world.pass(MINUTE)
    world.enter('restoring')
    world.pass(MINUTE)
    world.enter('running', { restoreMs: 70 })
    expect(world.took()).toMatchObject({ ramMs: 6 * MINUTE, nvmeMs: 4 * MINUTE, existsMs: 10 * MINUTE })
    expect(world.took()).toMatchObject({ checkpoints: 2, restores: 2, restoreMs: 120, failures: 0 })
  })

  test.each<AgentPhase>(['failed', 'stopping', 'starting'])('is nothing once it is %s', (phase) => {
    threeStretches()
    world.enter(phase)
    world.pass(MINUTE)
    expect(world.took()).toMatchObject({ ramMs: 4 * MINUTE, nvmeMs: 2 * MINUTE, existsMs: 7 * MINUTE })
  })

  test('is cut to the window, to the ms, and the future counts nothing', () => {
    threeStretches()
    const at = (minutes: number, ms = 0) => START + minutes * MINUTE + ms
    expect(world.took(at(0, 1), at(1, -1))).toMatchObject({ ramMs: MINUTE - 2, nvmeMs: 0, checkpoints: 0 })
    expect(world.took(at(1, -1), at(3, 1))).toMatchObject({ ramMs: expect.any(Number), nvmeMs: 2 * MINUTE })
    expect(world.took(at(2), at(4))).toMatchObject({ ramMs: MINUTE, nvmeMs: MINUTE, checkpoints: 0, restores: 1 })
    expect(world.took(at(5), at(500))).toMatchObject({ ramMs: MINUTE, existsMs: MINUTE })
    expect(world.took(at(6), at(500))).toMatchObject({ ramMs: 0, existsMs: 0, checkpoints: 0 })
    expect(world.usage.ofComputer(ID, { from: at(-9), to: at(0) })).toBeNull()
  })

  test('counts dumps and restores that failed without a change of what it takes', () => {
    threeStretches()
    world.enter('checkpointing')
    world.enter('running', { failed: true })
    world.pass(MINUTE)
    world.enter('checkpointed', { checkpoint: true })
    world.enter('restoring')
    world.enter('failed', { failed: true })
    world.pass(MINUTE)
    const nothing = world.took().ramMs
    // Tried again: until that has gone well, nothing is in memory.
    world.enter('restoring')
    world.pass(MINUTE)
    expect(world.took()).toMatchObject({ ramMs: nothing, failures: 2, checkpoints: 2, restores: 1 })
    world.enter('running', { restoreMs: 10 })
    world.pass(MINUTE)
    expect(world.took()).toMatchObject({ ramMs: nothing + MINUTE, restores: 2 })
  })

  test('is known when it was started or restored last', () => {
    world.create()
    expect(world.usage.activeAt(ID)).toBeNull()
    world.enter('starting')
    world.pass(5)
    world.enter('running')
    const started = world.now
    world.pass(MINUTE)
    world.enter('frozen')
    world.enter('running', { failed: true })
    expect(world.usage.activeAt(ID)).toBe(started)
    world.enter('checkpointed', { checkpoint: true })
    expect(world.usage.activeAt(ID)).toBe(started)
    world.pass(MINUTE)
    world.enter('running', { restoreMs: 1 })
    expect(world.usage.activeAt(ID)).toBe(world.now)
  })

  test('ends when it is told to have ended, never before what is known', () => {
    threeStretches()
    world.enter('failed', { at: world.now - MINUTE })
    expect(world.took().ramMs).toBe(3 * MINUTE)
    world.enter('starting')
    world.enter('running')
    world.pass(MINUTE)
    world.enter('failed', { at: START })
    const { ramMs } = world.took()
    world.enter('starting')
    world.enter('running')
    world.pass(MINUTE)
    world.enter('failed', { at: world.now + MINUTE })
    expect(world.took().ramMs).toBe(ramMs + MINUTE)
  })

  test('is not written where the phase is not', () => {
    threeStretches()
    expect(world.agents.update(ID, world.generation - 1, { phase: 'failed' })).toBe(false)
    const broken = world.db.transaction(() => {
      world.enter('failed')
      throw new Error('no')
    })
    expect(broken).toThrow('no')
    world.pass(MINUTE)
    expect(world.took().ramMs).toBe(5 * MINUTE)
  })
})

describe('a deleted computer', () => {
  test('is known with all that it took, and takes nothing more', () => {
    threeStretches()
    const { now } = world
    expect(world.computers.remove(ID)).toBe(true)
    expect(world.computers.remove(ID)).toBe(false)
    world.pass(10 * MINUTE)
    expect(world.took()).toMatchObject({ ramMs: 4 * MINUTE, existsMs: 6 * MINUTE, created: 1, deleted: 1 })
    expect(world.took(START + 1, now)).toMatchObject({ created: 0, deleted: 0 })
    expect(world.usage.ofOrg('org', { from: now + 1, to: EVER })).toEqual([])
  })

  test('leaves its short id to the next one', () => {
    world.create()
    world.pass(1)
    world.computers.remove(ID)
    expect(world.usage.find('org', 'aaaaaaaa')).toBe(ID)
    const next = ID.replace(/0$/, '1')
    world.create(next)
    expect(world.usage.find('org', 'aaaaaaaa')).toBe(next)
    expect(world.usage.find('org', ID)).toBe(ID)
    expect(world.usage.find('org', 'aaaaaaa')).toBeNull()
    expect(world.usage.find('org', 'aaaaaaa%')).toBeNull()
    expect(world.usage.find('other', ID)).toBeNull()
  })
})

test('LLM calls are counted by the hour, and go with their computer', () => {
  world.create()
  for (const minutes of [0, 1, 59, 60, 125]) world.usage.countCall(ID, START + minutes * MINUTE)
  expect(world.usage.calls(ID, START)).toBe(5)
  expect(world.usage.calls(ID, START + 61 * MINUTE)).toBe(2)
  expect(world.usage.calls(ID, START + 180 * MINUTE)).toBe(0)
  world.computers.remove(ID)
  expect(() => world.usage.countCall(ID, START)).toThrow('FOREIGN KEY')
})

test('what orb saw last is known to the next one', () => {
  expect(world.usage.resume()).toBeNull()
  world.pass(MINUTE)
  world.usage.seen()
  world.pass(MINUTE)
  world.usage.seen()
  const seen = world.now
  world.pass(MINUTE)
  expect(world.restart()).toBe(seen)
})

test('a database of an orb that did not count yet counts from its migration on', () => {
  const db = new Database(':memory:', { strict: true })
  const counts = MIGRATIONS.findIndex((step) => step.includes('usage_marks'))
  migrate(db, MIGRATIONS.slice(0, counts))
  orgRepository(db).insert({ id: 'org', email: 'a@example.com', createdAt: 1 })
  const phases = ['running', 'frozen', 'checkpointing', 'checkpointed', 'restoring', 'failed', 'starting']
  for (const [slot, phase] of phases.entries()) {
    db.run(
      `INSERT INTO computers (id, short_id, org_id, name, runtime_mb, disk_mb, slot, base, created_at, updated_at)
       VALUES ('${phase}', '${phase}', 'org', 'c', 512, 1024, ${slot + 1}, 'host', 1, 1)`,
    )
    db.run(`INSERT INTO agents (computer_id, phase, generation, llm_outstanding) VALUES ('${phase}', '${phase}', 1, 0)`)
  }
  const before = Date.now()
  migrate(db)
  const usage = usageRepository(db, db, { now: () => Date.now() + MINUTE, steady: () => performance.now() })
  const took = Object.fromEntries(
    phases.map((phase) => {
      const row = usage.ofComputer(phase, { from: 0, to: EVER })
      return [phase, row && [row.ramMs > MINUTE / 2, row.nvmeMs > MINUTE / 2, row.existsMs >= before]]
    }),
  )
  const [ram, nvme, none] = [
    [true, false, true],
    [false, true, true],
    [false, false, true],
  ]
  expect(took).toEqual({
    running: ram,
    frozen: ram,
    checkpointing: ram,
    checkpointed: nvme,
    restoring: nvme,
    failed: none,
    starting: none,
  })
})

describe('a clock', () => {
  const DAY = 24 * 60 * MINUTE

  test('that jumps ahead makes nobody pay for the time that it left out', () => {
    threeStretches()
    world.offset += 365 * DAY
    expect(world.took()).toMatchObject({ ramMs: 4 * MINUTE, nvmeMs: 2 * MINUTE })
    world.pass(MINUTE)
    world.enter('checkpointed', { checkpoint: true })
    world.pass(MINUTE)
    world.offset += DAY
    // Within a transaction of others, as a deploy has it.
    world.db.transaction(() => world.enter('starting'))()
    world.enter('running')
    world.pass(MINUTE)
    expect(world.took()).toMatchObject({ ramMs: 6 * MINUTE, nvmeMs: 3 * MINUTE, existsMs: 9 * MINUTE + 366 * DAY })
  })

  test('that was ahead for a while does not stop the count until it is there again', () => {
    threeStretches()
    world.offset += 365 * DAY
    world.enter('checkpointed', { checkpoint: true })
    world.pass(MINUTE)
    world.offset -= 365 * DAY
    expect(world.took()).toMatchObject({ ramMs: 4 * MINUTE, checkpoints: 2, existsMs: 7 * MINUTE })
    world.pass(MINUTE)
    expect(world.took()).toMatchObject({ ramMs: 4 * MINUTE, nvmeMs: 3 * MINUTE, existsMs: 8 * MINUTE })
    world.enter('running', { restoreMs: 1 })
    world.pass(MINUTE)
    expect(world.took()).toMatchObject({ ramMs: 5 * MINUTE, nvmeMs: 3 * MINUTE, restores: 2 })
  })

  test('that was set back while no orb ran is followed', () => {
    threeStretches()
    world.enter('checkpointed', { checkpoint: true })
    world.offset -= 2 * MINUTE
    world.restart()
    expect(world.took()).toMatchObject({ ramMs: 2 * MINUTE, nvmeMs: 2 * MINUTE, existsMs: 4 * MINUTE, checkpoints: 2 })
    world.pass(MINUTE)
    expect(world.took()).toMatchObject({ ramMs: 2 * MINUTE, nvmeMs: 3 * MINUTE, existsMs: 5 * MINUTE })
  })

  test('that stands still or is put right by a little never lets states overlap', () => {
    world.create()
    for (let round = 0; round < 50; round++) {
      world.enter('starting')
      world.enter('running')
      world.enter('checkpointed', { checkpoint: true })
      world.enter('running', { restoreMs: 0 })
      world.offset -= 10
      world.pass(3)
    }
    const stretches = world.stretches().slice(1, -1)
    expect(stretches.every(({ from, to }) => from < to)).toBe(true)
    world.pass(CLOCK_STEP_MS)
    expect(world.took().checkpoints).toBe(50)
  })
})

/* ---- whatever happens ---- */

/** Numbers from 0 to 1 that are the same in every run (mulberry32). */
function randomFrom(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

const NEXT: Record<AgentPhase, [AgentPhase, UsageEvent][]> = {
  starting: [
    ['running', {}],
    ['failed', {}],
  ],
  running: [
    ['frozen', {}],
    ['checkpointing', {}],
    ['failed', {}],
    ['starting', {}],
  ],
  frozen: [
    ['running', {}],
    ['checkpointing', {}],
    ['failed', {}],
  ],
  checkpointing: [
    ['checkpointed', { checkpoint: true }],
    ['running', { failed: true }],
    ['frozen', { failed: true }],
    ['failed', {}],
  ],
  checkpointed: [
    ['restoring', {}],
    ['restoring', {}],
    ['starting', {}],
  ],
  restoring: [
    ['running', { restoreMs: 5 }],
    ['checkpointed', {}],
    ['failed', { failed: true }],
  ],
  failed: [
    ['starting', {}],
    ['restoring', {}],
  ],
  stopping: [['starting', {}]],
}

type Jump = 'none' | 'ahead' | 'any'

/** Lives a random life; returns what really was, in ms of the steady clock, and how many events there were. */
function live(random: () => number, steps: number, jumps: Jump) {
  const pick = <T>(from: T[]): T => from[Math.floor(random() * from.length)] as T
  const real = { ram: 0, nvme: 0, checkpoints: 0, failures: 0, restores: 0 }
  let phase: AgentPhase = 'starting'
  let takes: UsageState = 'none'
  world.create()
  world.enter('starting')
  for (let step = 0; step < steps; step++) {
    const ms = Math.floor(random() * (random() < 0.1 ? 100 * MINUTE : 5000))
    world.pass(ms)
    if (takes !== 'none') real[takes] += ms
    if (random() < 0.1) {
      // An orb that stops in order has seen all jumps.
      if (jumps === 'ahead') world.usage.seen()
      world.restart()
    }
    if (random() < 0.1) world.usage.seen()
    if (jumps !== 'none' && random() < 0.15) {
      const size = random() ** 3 * 100_000 * MINUTE + CLOCK_STEP_MS + 1
      const kind = jumps === 'ahead' ? 0 : random()
      if (kind < 0.3) world.offset += Math.ceil(size)
      else if (kind < 0.5) world.offset += Math.round((random() - 0.5) * 2 * CLOCK_STEP_MS)
      // Seldom to before the computer was made.
      else world.offset -= Math.round((world.now - START) * random() * (random() < 0.1 ? 1.2 : 1))
      if (random() < 0.2) world.usage.seen()
    }
    if (random() < 0.3) continue
    const [next, event]: [AgentPhase, UsageEvent] = pick(NEXT[phase])
    world.enter(next, event)
    phase = next
    if (phase === 'running' || phase === 'frozen') takes = 'ram'
    else if (phase === 'checkpointed') takes = 'nvme'
    else if (phase === 'failed' || phase === 'starting') takes = 'none'
    real.checkpoints += Number(event.checkpoint ?? false)
    real.failures += Number(event.failed ?? false)
    real.restores += Number(event.restoreMs !== undefined)
  }
  return real
}

/** What the stretches have of a state within a window. */
const naive = (state: UsageState, from: number, to: number): number =>
  world
    .stretches()
    .filter((one) => one.state === state)
    .reduce((sum, one) => sum + Math.max(0, Math.min(one.to, to) - Math.max(one.from, from)), 0)

const SEEDS = Array.from({ length: 25 }, (_, index) => index + 1)

describe('in any life', () => {
  test.each(SEEDS)('without jumps of the clock, each state has its real time (seed %i)', (seed) => {
    const real = live(randomFrom(seed), 150, 'none')
    const took = world.took()
    expect(took).toMatchObject({ ramMs: real.ram, nvmeMs: real.nvme })
    expect(took).toMatchObject({ checkpoints: real.checkpoints, failures: real.failures, restores: real.restores })
  })

  test.each(SEEDS)('jumps ahead cost nothing (seed %i)', (seed) => {
    const real = live(randomFrom(seed), 150, 'ahead')
    const took = world.took()
    expect(took).toMatchObject({ ramMs: real.ram, nvmeMs: real.nvme })
    expect(took).toMatchObject({ checkpoints: real.checkpoints, failures: real.failures, restores: real.restores })
  })

  test.each(SEEDS)('states never overlap, their sum is wall time, any window is exact (seed %i)', (seed) => {
    const random = randomFrom(seed)
    const real = live(random, 150, 'any')
    // Whatever the clock did last is over.
    world.pass(2 * CLOCK_STEP_MS)
    while (world.now < START) world.pass(START - world.now + MINUTE)
    const { now } = world
    const whole = world.took()
    const stretches = world.stretches()
    const between = stretches.slice(0, -1)
    expect(between.every(({ from, to }, index) => (index === 0 ? from <= to : from < to))).toBe(true)
    expect(between.every(({ to }, index) => stretches[index + 1]?.from === to)).toBe(true)
    expect(whole.existsMs).toBe(now - START)
    expect(whole.ramMs + whole.nvmeMs + naive('none', START, now)).toBe(now - START)
    expect(whole).toMatchObject({ checkpoints: real.checkpoints, failures: real.failures, restores: real.restores })
    for (let round = 0; round < 20; round++) {
      const [from, middle, to] = [random(), random(), random()]
        .map((share) => START + Math.floor(share * (now - START)))
        .toSorted((a, b) => a - b) as [number, number, number]
      if (from === middle || middle === to) continue
      const took = world.took(from, to)
      expect([took.ramMs, took.nvmeMs]).toEqual([naive('ram', from, to), naive('nvme', from, to)])
      const [first, second] = [world.took(from, middle), world.took(middle, to)]
      expect(first.ramMs + second.ramMs).toBe(took.ramMs)
      expect(first.checkpoints + second.checkpoints).toBe(took.checkpoints)
    }
  })
})
