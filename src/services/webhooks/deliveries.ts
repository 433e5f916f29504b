import { messageOf } from '../../errors.ts'
import { log } from '../../log.ts'
import type { Store } from '../../store/store.ts'
import type { WebhookAttempt, WebhookDeliveryRow, WebhookRow } from '../../store/types.ts'
import type { Metrics } from '../metrics.ts'
import type { Message } from './attempt.ts'

/** Before the second attempt and each after it (Orb Cloud contract §16). */
export const RETRY_AFTER_MS = [10_000, 60_000, 300_000, 1_800_000, 7_200_000, 21_600_000]
/** Events in a row with all attempts used, after which a webhook is disabled (§16). */
export const MAX_FAILURES = 10
/** Events that may wait for one webhook; the oldest beyond are dropped (§16). */
export const MAX_WAITING = 1000
/** By this status a receiver says that it wants nothing any more (§16). */
const GONE = 410
/** Attempts under way at once, to one webhook and to all. One whose last attempt failed is tried one event at a time. */
export const MAX_AT_ONCE = 4
const MAX_AT_ONCE_IN_ALL = 256
/** An event is written down when something else is urgent, such as the answer to the agent that was woken for it. */
const FIRST_LOOK_MS = 20
/** A timer must not outsleep a clock that is set. */
const LONGEST_SLEEP_MS = 60_000
/** A stop of orb waits this long for answers; what has none by then is sent again by the next orb. */
const STOP_GRACE_MS = 2_000

export interface DeliveriesDeps {
  webhooks: Store['webhooks']
  metrics: Metrics
  /** One attempt. Returns the status of the answer. @throws Error with the reason when there is none */
  send(webhook: WebhookRow, message: Message, signal: AbortSignal): Promise<number>
  /** It is sent nothing any more. */
  onDisabled(webhook: WebhookRow): void
  now(): number
}

/** What is known of one webhook while orb runs; what waits for it is in the database. */
interface Lane {
  webhook: WebhookRow
  /** When to look for something to send. */
  lookAt: number
  /** More came since it was counted. */
  grown: boolean
  inFlight: Set<number>
  failing: boolean
  closed: AbortController
}

const AGAIN = new Error('orb stopped')

/**
 * Sends what waits for webhooks, each at its own pace: a receiver that is slow or silent holds up no other. An event leaves
 * the database only as what became of it is written there, so it is sent at least once.
 */
export class Deliveries {
  private readonly lanes = new Map<string, Lane>()
  private inFlight = 0
  private timer: Timer | null = null
  private timerAt = Number.POSITIVE_INFINITY
  private stopped = false
  private readonly running = new Set<Promise<void>>()

  constructor(private readonly deps: DeliveriesDeps) {}

  /** Takes up what a former orb left. */
  start(): void {
    for (const webhook of this.deps.webhooks.active()) this.wake(webhook)
  }

  /** Something waits for it, as soon as the transaction that this is called in has ended. */
  wake(webhook: WebhookRow): void {
    const lane = this.lanes.get(webhook.id) ?? {
      webhook,
      lookAt: 0,
      grown: true,
      inFlight: new Set(),
      failing: false,
      closed: new AbortController(),
    }
    this.lanes.set(webhook.id, lane)
    lane.lookAt = 0
    lane.grown = true
    this.lookLater(this.deps.now() + FIRST_LOOK_MS)
  }

  /** The webhook is gone, and with it what waited. */
  forget(id: string): void {
    const lane = this.lanes.get(id)
    this.lanes.delete(id)
    lane?.closed.abort(new Error('the webhook was deleted'))
  }

  async stop(): Promise<void> {
    this.stopped = true
    if (this.timer) clearTimeout(this.timer)
    await Promise.race([Promise.all(this.running), Bun.sleep(STOP_GRACE_MS)])
    for (const lane of this.lanes.values()) lane.closed.abort(AGAIN)
    await Promise.all(this.running)
  }

  private lookLater(at: number): void {
    if (this.stopped || at >= this.timerAt) return
    if (this.timer) clearTimeout(this.timer)
    this.timerAt = at
    const ms = Math.min(Math.max(0, at - this.deps.now()), LONGEST_SLEEP_MS)
    this.timer = setTimeout(() => this.look(), ms)
  }

  private look(): void {
    this.timer = null
    this.timerAt = Number.POSITIVE_INFINITY
    const now = this.deps.now()
    for (const lane of [...this.lanes.values()]) {
      if (lane.lookAt > now) continue
      // Where there is no room for all, those that wait for it have it first, the next time.
      if (this.inFlight >= MAX_AT_ONCE_IN_ALL) return
      this.lanes.delete(lane.webhook.id)
      this.lanes.set(lane.webhook.id, lane)
      try {
        this.fill(lane, now)
      } catch (error) {
        log('error', 'webhook cannot be looked after', { webhook: lane.webhook.id, error })
        lane.lookAt = now + LONGEST_SLEEP_MS
      }
    }
    const next = Math.min(...[...this.lanes.values()].map(({ lookAt }) => lookAt))
    if (next !== Number.POSITIVE_INFINITY) this.lookLater(next)
  }

  private fill(lane: Lane, now: number): void {
    const { webhooks, metrics } = this.deps
    const { webhook, inFlight } = lane
    if (lane.grown) {
      const surplus = webhooks.waitingBeyond(webhook.id, MAX_WAITING).filter((id) => !inFlight.has(id))
      if (surplus.length > 0) webhooks.drop(webhook.id, surplus, now)
      for (const _ of surplus) metrics.inc('orb_webhook_deliveries_total', { outcome: 'dropped' })
      lane.grown = false
    }
    const room = Math.min(lane.failing ? 1 : MAX_AT_ONCE, MAX_AT_ONCE_IN_ALL - this.inFlight + inFlight.size)
    const due = webhooks.due(webhook.id, now, room + inFlight.size).filter(({ id }) => !inFlight.has(id))
    for (const row of due.slice(0, Math.max(0, room - inFlight.size))) this.begin(lane, row)
    // With no room left, the next attempt that ends looks on.
    const full = inFlight.size >= room
    lane.lookAt = full ? Number.POSITIVE_INFINITY : (webhooks.nextAt(webhook.id, now) ?? Number.POSITIVE_INFINITY)
  }

  private begin(lane: Lane, row: WebhookDeliveryRow): void {
    lane.inFlight.add(row.id)
    this.inFlight++
    const work = this.attempt(lane, row)
      .catch((error) => {
        log('error', 'what became of a webhook delivery cannot be written down', { webhook: row.webhookId, error })
        return this.deps.now() + LONGEST_SLEEP_MS
      })
      .then((lookAt) => {
        lane.inFlight.delete(row.id)
        this.inFlight--
        this.running.delete(work)
        lane.lookAt = Math.min(lane.lookAt, lookAt)
        this.lookLater(lookAt)
      })
    this.running.add(work)
  }

  /** Returns when to look for more. */
  private async attempt(lane: Lane, row: WebhookDeliveryRow): Promise<number> {
    const { webhook, closed } = lane
    const attempt: WebhookAttempt = { at: this.deps.now(), status: null, error: null, durationMs: 0 }
    const began = performance.now()
    try {
      attempt.status = await this.deps.send(webhook, row, closed.signal)
      if (!isSuccess(attempt.status)) attempt.error = `the receiver answered ${attempt.status}`
    } catch (thrown) {
      if (closed.signal.aborted) return 0
      attempt.error = messageOf(thrown)
    }
    attempt.durationMs = Math.round(performance.now() - began)
    lane.failing = attempt.error !== null
    if (!closed.signal.aborted) this.settle(lane, row, attempt)
    return 0
  }

  private settle({ webhook }: Lane, row: WebhookDeliveryRow, attempt: WebhookAttempt): void {
    const { webhooks, metrics, now } = this.deps
    const attempts = [...row.attempts, attempt]
    const retryAfterMs = RETRY_AFTER_MS[attempts.length - 1]
    if (attempt.error === null) {
      webhooks.settle(row, { status: 'delivered', nextAt: null, endedAt: now(), attempts })
      metrics.inc('orb_webhook_deliveries_total', { outcome: 'delivered' })
      this.countFailures(webhook, 0)
      return
    }
    if (attempt.status !== GONE && retryAfterMs !== undefined) {
      webhooks.settle(row, { status: 'waiting', nextAt: now() + retryAfterMs, endedAt: null, attempts })
      return
    }
    webhooks.settle(row, { status: 'failed', nextAt: null, endedAt: now(), attempts })
    metrics.inc('orb_webhook_deliveries_total', { outcome: 'failed' })
    this.countFailures(webhook, webhook.failures + 1)
    if (attempt.status === GONE) this.disable(webhook, 'the receiver answered 410 Gone')
    else if (webhook.failures >= MAX_FAILURES) {
      this.disable(webhook, `${MAX_FAILURES} events in a row could not be delivered, the last one: ${attempt.error}`)
    }
  }

  private countFailures(webhook: WebhookRow, failures: number): void {
    if (webhook.failures === failures) return
    this.deps.webhooks.setFailures(webhook.id, failures)
    webhook.failures = failures
  }

  private disable(webhook: WebhookRow, reason: string): void {
    const { webhooks, metrics, now } = this.deps
    webhooks.disable(webhook.id, reason)
    this.deps.onDisabled(webhook)
    this.forget(webhook.id)
    const left = webhooks.waitingBeyond(webhook.id, 0)
    webhooks.drop(webhook.id, left, now())
    for (const _ of left) metrics.inc('orb_webhook_deliveries_total', { outcome: 'dropped' })
    log('warn', 'webhook disabled', { webhook: webhook.id, reason })
  }
}

const isSuccess = (status: number): boolean => status >= 200 && status < 300
