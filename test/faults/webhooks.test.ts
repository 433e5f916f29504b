import { Database } from 'bun:sqlite'
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from 'bun:test'
import { join } from 'node:path'
import { z } from 'zod'
import { createdWebhook } from '../../src/api/cloud/schemas.ts'
import type { Computer } from '../support/computer.ts'
import { FaultyOrb } from './faulty-orb.ts'
import { expectHonest } from './scene.ts'

setDefaultTimeout(15 * 60_000)

const FEW = 10
const Row = z.object({ id: z.number(), type: z.string(), body: z.string() })
const Body = z.object({ data: z.object({ computer_id: z.string(), reason: z.string().optional() }) })

let faulty: FaultyOrb
let computer: Computer

beforeAll(async () => {
  faulty = await FaultyOrb.start()
  computer = await faulty.orb.computer()
  // Nobody listens there: whatever is told stays where it is.
  await faulty.orb.ask(createdWebhook, 'POST', '/v1/webhooks', { url: 'http://127.0.0.1:1/', events: ['*'] })
})
afterAll(() => faulty?.stop())

/** Orb keeps the newest thousand of what waits: each is looked at once, soon after it was told. */
let seen = 0

/** What was told of the computer since the last look, oldest first. */
function told(): string[] {
  const db = new Database(join(faulty.orb.dataDir, 'orb.db'), { readonly: true })
  try {
    const rows = db
      .query('SELECT id, type, body FROM webhook_deliveries WHERE id > ? ORDER BY id')
      .all(seen)
      .map((row) => Row.parse(row))
    seen = rows.at(-1)?.id ?? seen
    return rows.flatMap(({ type, body }) => {
      const { data } = Body.parse(JSON.parse(body))
      return data.computer_id === computer.id ? [data.reason ? `${type} ${data.reason}` : type] : []
    })
  } finally {
    db.close()
  }
}

/** By what was told so far. */
let state = 'none'

/** What the agent is after these events. Throws where one cannot follow what was told before. */
function follow(events: string[]): string {
  for (const [index, event] of events.entries()) {
    const next = NEXT[state]?.find(([pattern]) => pattern.test(event))?.[1]
    if (!next) throw new Error(`${event} after ${events.slice(Math.max(0, index - 6), index).join(', ')} (${state})`)
    state = next
  }
  return state
}

const END = /^agent\.finished (exit|replaced|restart)$/
const RESPAWN: [RegExp, string] = [/^agent\.spawned recovery$/, 'running']
const NEXT: Record<string, [RegExp, string][]> = {
  none: [[/^agent\.spawned (deploy|recovery)$/, 'running']],
  running: [
    [/^agent\.checkpointed manual$/, 'asleep'],
    [/^agent\.finished restore_failed$/, 'broken'],
    [END, 'none'],
    RESPAWN,
  ],
  asleep: [
    [/^agent\.restored (manual|recovery)$/, 'running'],
    [/^agent\.finished restore_failed$/, 'broken'],
    [END, 'none'],
    RESPAWN,
  ],
  broken: [
    [/^agent\.restored (manual|recovery)$/, 'running'],
    [/^agent\.spawned deploy$/, 'running'],
  ],
}

/** What may have been told, by what orb says of the agent. */
const STATES: Record<string, string[]> = {
  running: ['running'],
  checkpointed: ['asleep'],
  failed: ['broken'],
  // That one whose restore failed is forgotten is no news: it was told to have ended.
  none: ['none', 'broken'],
}

test.each(['fail', 'kill'] as const)(
  'each operation: %s; what is told is what happened, each time once',
  async (mode) => {
    const faults = await faulty.atEach(mode, {
      prepare: async () => void (await computer.deployScript('node', 'setInterval(() => {}, 1000)')),
      work: async () => {
        const steps = ['/agents/demote', '/agents/promote', '/restart']
        for (const step of steps) expectHonest(await computer.call('POST', step))
      },
      check: async () => {
        const view = await computer.agent()
        const said = view?.failure_reason === 'exit' ? 'none' : (view?.state ?? 'none')
        expect(STATES[said] ?? []).toContain(follow(told()))
      },
    })
    expect(faults).toBeGreaterThan(FEW)
  },
)
