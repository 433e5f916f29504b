import { randomBytes } from 'node:crypto'
import type { AllowEntry } from '../../addresses.ts'
import { OrbError } from '../../errors.ts'
import { UpstreamLinks } from '../../proxy/upstream-link.ts'
import type { Store } from '../../store/store.ts'
import type { WebhookDeliveryRow, WebhookRow } from '../../store/types.ts'
import { isoTime, isoTimeOrNull } from '../../time.ts'
import { newId } from '../ids.ts'
import type { Metrics } from '../metrics.ts'
import type { Principal, Services, WebhookDeliveryView, WebhookView } from '../types.ts'
import type { Vault } from '../vault.ts'
import { sendOnce } from './attempt.ts'
import { Deliveries } from './deliveries.ts'
import { Outbox } from './outbox.ts'
import { checkedTarget } from './target.ts'

const MAX_WEBHOOKS_PER_ORG = 20
const SECRET_BYTES = 32

export interface WebhooksDeps {
  store: Pick<Store, 'webhooks' | 'transaction'>
  vault: Pick<Vault, 'seal' | 'open'>
  metrics: Metrics
  /** ORB_ALLOW_PRIVATE. */
  allowPrivate: readonly AllowEntry[]
  now?: () => number
}

export type Webhooks = Services['webhooks'] & {
  /** Where the rest of orb says what has happened. */
  outbox: Outbox
  /** Begins to send, also what a former orb left. */
  start(): void
  stop(): Promise<void>
}

/** Orb Cloud contract §16. */
export function createWebhooks(deps: WebhooksDeps): Webhooks {
  const { store, vault, metrics, allowPrivate, now = Date.now } = deps
  const links = new UpstreamLinks({ allowPrivate })
  const deliveries = new Deliveries({
    webhooks: store.webhooks,
    metrics,
    send: async (webhook, message, signal) => {
      // Once more, for the operator may have withdrawn what was allowed when it was made.
      const target = checkedTarget(webhook.url, allowPrivate)
      return sendOnce(links, target, message, vault.open(webhook.secret, webhook.id), signal)
    },
    onDisabled: (webhook) => outbox.remove(webhook),
    now,
  })
  const outbox = new Outbox(store, (webhook) => deliveries.wake(webhook), now)

  function own(who: Principal, id: string): WebhookRow {
    const row = store.webhooks.get(id)
    if (row?.orgId !== who.orgId) throw new OrbError('not_found', 'no such webhook')
    return row
  }

  return {
    outbox,
    start: () => deliveries.start(),
    stop: () => deliveries.stop(),

    create(who, input) {
      checkedTarget(input.url, allowPrivate)
      const id = newId('whk')
      const secret = input.secret ?? `whsec_${randomBytes(SECRET_BYTES).toString('base64url')}`
      const row: WebhookRow = {
        id,
        orgId: who.orgId,
        url: input.url,
        events: [...new Set(input.events)],
        secret: vault.seal(secret, id),
        disabledReason: null,
        failures: 0,
        createdAt: now(),
      }
      if (store.webhooks.list(who.orgId).length >= MAX_WEBHOOKS_PER_ORG) {
        throw new OrbError('quota_exceeded', `an organisation has at most ${MAX_WEBHOOKS_PER_ORG} webhooks`)
      }
      store.webhooks.insert(row)
      outbox.add(row)
      const { disabled_reason: _, ...view } = viewOf(row)
      return { ...view, secret }
    },

    list(who) {
      const webhooks = store.webhooks.list(who.orgId).map(viewOf)
      return { webhooks, total: webhooks.length }
    },

    remove(who, id) {
      if (!store.webhooks.remove(who.orgId, id)) throw new OrbError('not_found', 'no such webhook')
      outbox.remove({ orgId: who.orgId, id })
      deliveries.forget(id)
      return { id, deleted: true }
    },

    deliveries(who, id, limit) {
      const rows = store.webhooks.deliveries(own(who, id).id, limit)
      return { webhook_id: id, deliveries: rows.map(deliveryView) }
    },
  }
}

const viewOf = (row: WebhookRow): WebhookView => ({
  id: row.id,
  url: row.url,
  events: row.events,
  active: row.disabledReason === null,
  disabled_reason: row.disabledReason,
  created_at: isoTime(row.createdAt),
})

const deliveryView = (row: WebhookDeliveryRow): WebhookDeliveryView => ({
  event_id: row.eventId,
  type: row.type,
  created_at: isoTime(row.createdAt),
  status: row.status,
  attempts: row.attempts.map(({ at, status, error, durationMs }) => ({
    at: isoTime(at),
    response_status: status,
    error,
    duration_ms: durationMs,
  })),
  next_attempt_at: isoTimeOrNull(row.nextAt),
})
