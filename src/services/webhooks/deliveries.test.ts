import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openStore, type Store } from '../../store/store.ts'
import type { WebhookRow } from '../../store/types.ts'
import type { Metrics } from '../metrics.ts'
import { createOrbMetrics } from '../system.ts'
import { Deliveries, MAX_AT_ONCE, MAX_FAILURES, MAX_WAITING, RETRY_AFTER_MS } from './deliveries.ts'

const START = 1_000_000_000_000
const WAIT_LIMIT_MS = 5_000

/** What a receiver does with an event. */
type Answer = number | Error | Promise<number>

let dir: string
let store: Store
let metrics: Metrics
let deliveries: Deliveries
let clock: number
/** Events that were sent, with the webhook that they were sent to. */
let sent: string[]
let answer: (webhook: WebhookRow, eventId: string) => Answer
let disabled: string[]
let signals: AbortSignal[]

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'orb-deliveries-'))
  store = openStore(join(dir, 'orb.db'))
  store.orgs.insert({ id: 'org', email: 'a@example.com', createdAt: 1 })
  metrics = createOrbMetrics()
  clock = START
  sent = []
  disabled = []
  signals = []
  answer = () => 200
  deliveries = make()
})
afterEach(async () => {
  await deliveries.stop()
  store.close()
  rmSync(dir, { recursive: true })
})

const make = () =>
  new Deliveries({
    webhooks: store.webhooks,
    metrics,
    async send(webhook, { eventId }, signal) {
      sent.push(`${webhook.id} ${eventId}`)
      signals.push(signal)
      const { promise: aborted, reject } = Promise.withResolvers<never>()
      aborted.catch(() => undefined)
      signal.addEventListener('abort', () => reject(signal.reason))
      const outcome = answer(webhook, eventId)
      if (outcome instanceof Error) throw outcome
      return Promise.race([outcome, aborted])
    },
    onDisabled: ({ id }) => void disabled.push(id),
    now: () => clock,
  })

function webhook(id = 'w'): WebhookRow {
  const row: WebhookRow = {
    id,
    orgId: 'org',
    url: 'https://example.com',
    events: ['*'],
    secret: new Uint8Array(),
    disabledReason: null,
    failures: 0,
    createdAt: 1,
  }
  store.webhooks.insert(row)
  return row
}

const queueAt = (row: WebhookRow, createdAt: number, eventId: string): void =>
  store.webhooks.queue({ webhookId: row.id, eventId, type: 'agent.spawned', body: '{}', createdAt })

const queue = (row: WebhookRow, ...eventIds: string[]): void => {
  for (const eventId of eventIds) queueAt(row, clock, eventId)
}

const tell = (row: WebhookRow, ...eventIds: string[]): void => {
  queue(row, ...eventIds)
  deliveries.wake(row)
}

async function until(condition: () => boolean, what: string): Promise<void> {
  const limit = performance.now() + WAIT_LIMIT_MS
  while (!condition()) {
    if (performance.now() > limit) throw new Error(`did not happen: ${what}; sent: ${sent.slice(-10).join(', ')}`)
    await Bun.sleep(1)
  }
}

const find = (row: WebhookRow, eventId: string) =>
  store.webhooks.deliveries(row.id, 5000).find((delivery) => delivery.eventId === eventId)

const ended = (row: WebhookRow, eventId: string, status = 'delivered') =>
  until(() => find(row, eventId)?.status === status, `${eventId} is ${status}`)

const attempted = (row: WebhookRow, eventId: string, times: number) =>
  until(() => find(row, eventId)?.attempts.length === times, `${eventId} is tried ${times} times`)

/** Lets the time come at which the next attempt is due, and orb look at it. */
function passTo(row: WebhookRow, at: number): void {
  clock = at
  deliveries.wake(row)
}

const outcomes = () =>
  [...metrics.render().matchAll(/orb_webhook_deliveries_total\{outcome="(\w+)"\} (\d+)/g)].map(
    ([, outcome, count]) => `${outcome} ${count}`,
  )

test('what waits is sent, in order, and what became of it is written down', async () => {
  const row = webhook()
  tell(row, 'one', 'two')
  await ended(row, 'two')
  await ended(row, 'one')
  expect(sent).toEqual(['w one', 'w two'])
  expect(find(row, 'one')).toMatchObject({
    nextAt: null,
    endedAt: START,
    attempts: [{ at: START, status: 200, error: null, durationMs: expect.any(Number) }],
  })
  expect(outcomes()).toEqual(['delivered 2'])
})

test.each([
  ['an error', new Error('nobody answers'), { status: null, error: 'nobody answers' }],
  ['a redirect', 302, { status: 302, error: 'the receiver answered 302' }],
  ['a failure', 500, { status: 500, error: 'the receiver answered 500' }],
])(
  '%s: it is tried again after 10 s, 1 min, 5 min, 30 min, 2 h, 6 h, not before, and then no more',
  async (_, bad, seen) => {
    const row = webhook()
    answer = (_, eventId) => (eventId === 'marker' ? 200 : bad)
    tell(row, 'bad')
    for (const [index, pause] of RETRY_AFTER_MS.entries()) {
      await attempted(row, 'bad', index + 1)
      const due = find(row, 'bad')?.nextAt ?? 0
      expect(due).toBe(clock + pause)
      // What comes meanwhile does not bring it forward.
      clock = due - 1
      tell(row, `marker`)
      await until(() => store.webhooks.deliveries(row.id, 1)[0]?.status === 'delivered', 'the marker is delivered')
      expect(find(row, 'bad')).toMatchObject({ status: 'waiting', nextAt: due })
      passTo(row, due)
    }
    await ended(row, 'bad', 'failed')
    expect(RETRY_AFTER_MS.map((ms) => ms / 1000)).toEqual([10, 60, 300, 1800, 7200, 21_600])
    expect(find(row, 'bad')?.attempts).toEqual(
      Array.from({ length: 7 }, () => ({ at: expect.any(Number), durationMs: expect.any(Number), ...seen })),
    )
    expect(disabled).toEqual([])
    expect(outcomes()).toEqual(['delivered 6', 'failed 1'])
  },
)

/** Lets an event use up all its attempts. */
async function exhaust(row: WebhookRow, eventId: string): Promise<void> {
  tell(row, eventId)
  for (let attempt = 1; attempt <= RETRY_AFTER_MS.length; attempt++) {
    await attempted(row, eventId, attempt)
    passTo(row, find(row, eventId)?.nextAt ?? 0)
  }
  await ended(row, eventId, 'failed')
}

describe('a webhook is disabled', () => {
  test('after ten events in a row with all attempts used, and what waits then is dropped', async () => {
    const row = webhook()
    answer = () => 503
    for (let n = 1; n < MAX_FAILURES; n++) await exhaust(row, `bad ${n}`)
    answer = () => 200
    tell(row, 'good')
    await ended(row, 'good')
    answer = () => 503
    for (let n = 1; n < MAX_FAILURES; n++) await exhaust(row, `worse ${n}`)
    expect(disabled).toEqual([])
    // The count outlives orb.
    await deliveries.stop()
    deliveries = make()
    const again = store.webhooks.get(row.id) ?? row
    queueAt(again, clock + 365 * 86_400_000, 'waits')
    tell(again, 'last')
    for (let attempt = 1; attempt <= RETRY_AFTER_MS.length; attempt++) {
      await attempted(row, 'last', attempt)
      passTo(again, find(row, 'last')?.nextAt ?? 0)
    }
    await ended(row, 'waits', 'dropped')
    expect(disabled).toEqual([row.id])
    expect(store.webhooks.get(row.id)?.disabledReason).toBe(
      '10 events in a row could not be delivered, the last one: the receiver answered 503',
    )
    expect(store.webhooks.active()).toEqual([])
  })

  test('by 410, at once', async () => {
    const row = webhook()
    answer = () => 410
    tell(row, 'one')
    await until(() => disabled.length > 0, 'it is disabled')
    expect(find(row, 'one')).toMatchObject({ status: 'failed', nextAt: null })
    expect(store.webhooks.get(row.id)?.disabledReason).toBe('the receiver answered 410 Gone')
  })
})

test('of more than a thousand that wait the oldest are dropped', async () => {
  const row = webhook()
  const never = Promise.withResolvers<number>()
  answer = () => never.promise
  const names = Array.from({ length: MAX_WAITING + 5 }, (_, n) => `e${n}`)
  store.transaction(() => queue(row, ...names))
  deliveries.wake(row)
  await until(() => sent.length > 0, 'something is sent')
  expect(sent[0]).toBe('w e5')
  const all = store.webhooks.deliveries(row.id, 5000)
  expect(all.filter(({ status }) => status === 'dropped').map(({ eventId }) => eventId)).toEqual([
    'e4',
    'e3',
    'e2',
    'e1',
    'e0',
  ])
  expect(outcomes()).toEqual(['dropped 5'])
})

describe('a receiver', () => {
  test('that never answers holds up no other, and is not run over', async () => {
    const [slow, quick] = [webhook('slow'), webhook('quick')]
    const gate = Promise.withResolvers<number>()
    answer = ({ id }) => (id === 'slow' ? gate.promise : 200)
    tell(slow, ...Array.from({ length: 20 }, (_, n) => `s${n}`))
    for (let n = 0; n < 20; n++) {
      tell(quick, `q${n}`)
      await ended(quick, `q${n}`)
    }
    expect(sent.filter((line) => line.startsWith('slow'))).toHaveLength(MAX_AT_ONCE)
    gate.resolve(200)
    await ended(slow, 's19')
  })

  test('that fails is tried one event at a time until it is well again', async () => {
    const row = webhook()
    answer = () => 500
    tell(row, 'first')
    await attempted(row, 'first', 1)
    const gate = Promise.withResolvers<number>()
    answer = () => gate.promise
    sent = []
    tell(row, 'a', 'b', 'c', 'd')
    await until(() => sent.length > 0, 'one is sent')
    await Bun.sleep(50)
    expect(sent).toEqual(['w a'])
    gate.resolve(200)
    await ended(row, 'd')
  })
})

test('a stop of orb, and its crash, lose nothing: what has no answer is sent again', async () => {
  const row = webhook()
  const gate = Promise.withResolvers<number>()
  answer = (_, eventId) => (eventId === 'bad' ? 500 : gate.promise)
  tell(row, 'bad')
  await attempted(row, 'bad', 1)
  tell(row, 'open')
  await until(() => sent.includes('w open'), 'it is sent')
  await deliveries.stop()
  expect(find(row, 'open')).toMatchObject({ status: 'waiting', attempts: [] })
  tell(row, 'later')
  await Bun.sleep(50)
  expect(sent).not.toContain('w later')

  answer = () => 200
  deliveries = make()
  deliveries.start()
  await ended(row, 'open')
  await ended(row, 'later')
  expect(sent.filter((line) => line === 'w open')).toHaveLength(2)
  // What failed keeps its time.
  expect(find(row, 'bad')).toMatchObject({ status: 'waiting', nextAt: START + 10_000 })
  passTo(row, START + 10_000)
  await ended(row, 'bad')
  expect(find(row, 'bad')?.attempts.map(({ status }) => status)).toEqual([500, 200])
})

test('what is under way to a webhook that is deleted is called off', async () => {
  const row = webhook()
  answer = () => new Promise<number>(() => {})
  tell(row, 'one')
  await until(() => signals.length > 0, 'it is sent')
  store.webhooks.remove(row.orgId, row.id)
  deliveries.forget(row.id)
  await until(() => signals[0]?.aborted === true, 'it is called off')
  await deliveries.stop()
  expect(store.webhooks.deliveries(row.id, 10)).toEqual([])
})

test('the last hundred that ended are kept', async () => {
  const row = webhook()
  tell(row, ...Array.from({ length: 150 }, (_, n) => `e${n}`))
  await ended(row, 'e149')
  await until(() => sent.length === 150, 'all are sent')
  await until(() => store.webhooks.waitingBeyond(row.id, 0).length === 0, 'all are delivered')
  const kept = store.webhooks.deliveries(row.id, 5000)
  expect(kept).toHaveLength(100)
  expect(kept.at(-1)?.eventId).toBe('e50')
})
