import type { Database } from 'bun:sqlite'
import type { WebhookAttempt, WebhookDeliveryRow, WebhookDeliveryStatus, WebhookRow } from './types.ts'

const WEBHOOK = `id, org_id AS orgId, url, events, secret, disabled_reason AS disabledReason, failures,
  created_at AS createdAt`

const DELIVERY = `id, webhook_id AS webhookId, event_id AS eventId, type, body, created_at AS createdAt, status,
  next_at AS nextAt, ended_at AS endedAt, attempts`

type StoredWebhook = Omit<WebhookRow, 'events'> & { events: string }
type StoredDelivery = Omit<WebhookDeliveryRow, 'attempts'> & { attempts: string }

/** What becomes of a delivery. */
export type WebhookOutcome = Pick<WebhookDeliveryRow, 'status' | 'nextAt' | 'endedAt' | 'attempts'>

/** Ended deliveries of a webhook that are kept to be looked at. */
export const ENDED_DELIVERIES_KEPT = 100

export type WebhookRepository = ReturnType<typeof webhookRepository>

/**
 * Webhooks, and what waits to be sent to them. What an attempt came to does not wait for the disk (`quick`): a crash of orb
 * loses none of it, after a power cut an event may be sent a second time. Those functions are never called within `transaction`.
 */
export function webhookRepository(db: Database, quick: Database) {
  const insert = db.query<void, { [field in keyof StoredWebhook]: StoredWebhook[field] }>(
    `INSERT INTO webhooks (id, org_id, url, events, secret, disabled_reason, failures, created_at)
     VALUES ($id, $orgId, $url, $events, $secret, $disabledReason, $failures, $createdAt)`,
  )
  const list = db.query<StoredWebhook, { orgId: string }>(
    `SELECT ${WEBHOOK} FROM webhooks WHERE org_id = $orgId ORDER BY created_at, rowid`,
  )
  const get = quick.query<StoredWebhook, { id: string }>(`SELECT ${WEBHOOK} FROM webhooks WHERE id = $id`)
  const active = db.query<StoredWebhook, []>(`SELECT ${WEBHOOK} FROM webhooks WHERE disabled_reason IS NULL`)
  const remove = db.query<void, { orgId: string; id: string }>(
    'DELETE FROM webhooks WHERE org_id = $orgId AND id = $id',
  )
  const disable = quick.query<void, { id: string; reason: string }>(
    'UPDATE webhooks SET disabled_reason = $reason WHERE id = $id',
  )
  const countFailures = quick.query<void, { id: string; failures: number }>(
    'UPDATE webhooks SET failures = $failures WHERE id = $id',
  )
  const queue = db.query<void, { webhookId: string; eventId: string; type: string; body: string; createdAt: number }>(
    `INSERT INTO webhook_deliveries (webhook_id, event_id, type, body, created_at, status, next_at, attempts)
     VALUES ($webhookId, $eventId, $type, $body, $createdAt, 'waiting', $createdAt, '[]')`,
  )
  const due = quick.query<StoredDelivery, { webhookId: string; at: number; count: number }>(
    `SELECT ${DELIVERY} FROM webhook_deliveries WHERE webhook_id = $webhookId AND next_at <= $at
     ORDER BY next_at, id LIMIT $count`,
  )
  const nextAt = quick.query<{ at: number | null }, { webhookId: string; after: number }>(
    'SELECT MIN(next_at) AS at FROM webhook_deliveries WHERE webhook_id = $webhookId AND next_at > $after',
  )
  const oldest = quick.query<{ id: number }, { webhookId: string; kept: number }>(
    `SELECT id FROM webhook_deliveries WHERE webhook_id = $webhookId AND next_at IS NOT NULL
     ORDER BY id DESC LIMIT -1 OFFSET $kept`,
  )
  const settle = quick.query<
    void,
    { id: number; status: WebhookDeliveryStatus; nextAt: number | null; endedAt: number | null; attempts: string }
  >(
    `UPDATE webhook_deliveries SET status = $status, next_at = $nextAt, ended_at = $endedAt, attempts = $attempts
     WHERE id = $id`,
  )
  const drop = quick.query<void, { id: number; at: number }>(
    `UPDATE webhook_deliveries SET status = 'dropped', next_at = NULL, ended_at = $at WHERE id = $id`,
  )
  const prune = quick.query<void, { webhookId: string }>(
    `DELETE FROM webhook_deliveries WHERE id IN (SELECT id FROM webhook_deliveries
       WHERE webhook_id = $webhookId AND ended_at IS NOT NULL
       ORDER BY ended_at DESC, id DESC LIMIT -1 OFFSET ${ENDED_DELIVERIES_KEPT})`,
  )
  const deliveries = db.query<StoredDelivery, { webhookId: string; count: number }>(
    `SELECT ${DELIVERY} FROM webhook_deliveries WHERE webhook_id = $webhookId ORDER BY id DESC LIMIT $count`,
  )
  const settleAndPrune = quick.transaction(
    (row: Pick<WebhookDeliveryRow, 'id' | 'webhookId'>, outcome: WebhookOutcome) => {
      const { status, endedAt } = outcome
      settle.run({ id: row.id, status, endedAt, nextAt: outcome.nextAt, attempts: JSON.stringify(outcome.attempts) })
      if (endedAt !== null) prune.run({ webhookId: row.webhookId })
    },
  )
  const dropAll = quick.transaction((webhookId: string, ids: number[], at: number) => {
    for (const id of ids) drop.run({ id, at })
    prune.run({ webhookId })
  })
  return {
    insert: (row: WebhookRow): void => void insert.run({ ...row, events: JSON.stringify(row.events) }),
    /** Oldest first. */
    list: (orgId: string): WebhookRow[] => list.all({ orgId }).map(fromWebhook),
    get(id: string): WebhookRow | null {
      const row = get.get({ id })
      return row && fromWebhook(row)
    },
    /** Of all organisations. */
    active: (): WebhookRow[] => active.all().map(fromWebhook),
    /** With all that waits for it. False when the organisation has no such webhook. */
    remove: (orgId: string, id: string): boolean => remove.run({ orgId, id }).changes > 0,
    disable: (id: string, reason: string): void => void disable.run({ id, reason }),
    setFailures: (id: string, failures: number): void => void countFailures.run({ id, failures }),
    /** Has the event sent, from `createdAt` on. For the transaction of the change that it tells of. */
    queue: (row: { webhookId: string; eventId: string; type: string; body: string; createdAt: number }): void =>
      void queue.run(row),
    /** What may be sent at the time `at`, what has waited longest first. */
    due: (webhookId: string, at: number, count: number): WebhookDeliveryRow[] =>
      due.all({ webhookId, at, count }).map(fromDelivery),
    /** When the first attempt after the time `after` is due, or null. */
    nextAt: (webhookId: string, after: number): number | null => nextAt.get({ webhookId, after })?.at ?? null,
    /** Ids of what waits, but for the newest `kept`. */
    waitingBeyond: (webhookId: string, kept: number): number[] => oldest.all({ webhookId, kept }).map(({ id }) => id),
    settle: (row: Pick<WebhookDeliveryRow, 'id' | 'webhookId'>, outcome: WebhookOutcome): void =>
      settleAndPrune.immediate(row, outcome),
    drop: (webhookId: string, ids: number[], at: number): void => dropAll.immediate(webhookId, ids, at),
    /** Newest event first. */
    deliveries: (webhookId: string, count: number): WebhookDeliveryRow[] =>
      deliveries.all({ webhookId, count }).map(fromDelivery),
  }
}

const fromWebhook = (row: StoredWebhook): WebhookRow => ({ ...row, events: JSON.parse(row.events) })

function fromDelivery(row: StoredDelivery): WebhookDeliveryRow {
  const attempts: WebhookAttempt[] = JSON.parse(row.attempts)
  return { ...row, attempts }
}
