import type { Store } from '../../store/store.ts'
import type { ComputerRow, WebhookRow } from '../../store/types.ts'
import { isoTime } from '../../time.ts'
import type { AgentNews } from '../agents/news.ts'
import { newId } from '../ids.ts'

/** What a webhook may ask for (Orb Cloud contract §16). */
export const EVENT_TYPES = [
  'agent.spawned',
  'agent.checkpointed',
  'agent.restored',
  'agent.finished',
  'computer.created',
  'computer.destroyed',
] as const

export const ALL_EVENTS = '*'

/** What others are told. */
export type News =
  | AgentNews
  | { type: 'computer.created' | 'computer.destroyed'; data: { runtime_mb: number; disk_mb: number } }

/** Both have no agent, or none any more. */
export const computerNews = (type: 'computer.created' | 'computer.destroyed', computer: ComputerRow): News => ({
  type,
  data: { runtime_mb: computer.runtimeMb, disk_mb: computer.diskMb },
})

/**
 * Writes events down for the webhooks that want them, in the transaction of what they tell of: what was stored is told, what
 * was not is not. Who wants what is kept in memory, so that an event which nobody wants costs nothing.
 */
export class Outbox {
  private readonly watchers = new Map<string, WebhookRow[]>()

  /** @param onQueued something waits for this webhook, once the transaction has ended */
  constructor(
    private readonly store: Pick<Store, 'webhooks'>,
    private readonly onQueued: (webhook: WebhookRow) => void,
    private readonly now: () => number,
  ) {
    for (const webhook of store.webhooks.active()) this.add(webhook)
  }

  add(webhook: WebhookRow): void {
    this.watchers.set(webhook.orgId, [...(this.watchers.get(webhook.orgId) ?? []), webhook])
  }

  remove({ orgId, id }: Pick<WebhookRow, 'orgId' | 'id'>): void {
    const rest = (this.watchers.get(orgId) ?? []).filter((webhook) => webhook.id !== id)
    if (rest.length > 0) this.watchers.set(orgId, rest)
    else this.watchers.delete(orgId)
  }

  isWatched(orgId: string): boolean {
    return this.watchers.has(orgId)
  }

  /** To be called within the transaction that stores what it is about. */
  tell(computer: ComputerRow, { type, data }: News): void {
    const watchers = this.watchers.get(computer.orgId)?.filter(({ events }) => wants(events, type)) ?? []
    if (watchers.length === 0) return
    const createdAt = this.now()
    const event = {
      id: newId('evt'),
      type,
      created_at: isoTime(createdAt),
      org_id: computer.orgId,
      data: {
        computer_id: computer.id,
        computer_name: computer.name,
        swarm_id: computer.swarmId,
        port: null,
        pid: null,
        ...data,
      },
    }
    const body = JSON.stringify(event)
    for (const webhook of watchers) {
      this.store.webhooks.queue({ webhookId: webhook.id, eventId: event.id, type, body, createdAt })
      this.onQueued(webhook)
    }
  }
}

const wants = (events: string[], type: string): boolean => events.includes(ALL_EVENTS) || events.includes(type)
