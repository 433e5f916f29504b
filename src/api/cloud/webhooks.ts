import { z } from 'zod'
import type { Services } from '../../services/types.ts'
import { ALL_EVENTS, EVENT_TYPES } from '../../services/webhooks/outbox.ts'
import { MAX_URL_CHARACTERS } from '../../services/webhooks/target.ts'
import { list, oneOf, queryInteger, text } from '../fields.ts'
import { keyRoute, type Route } from '../route.ts'
import { createdWebhook, deletedWebhook, webhookDeliveries, webhookList } from './schemas.ts'

/** Deliveries that are shown: the most that wait and the last that ended fit in. */
const DEFAULT_DELIVERIES = 100
const MAX_DELIVERIES = 1100

const events = list(oneOf([...EVENT_TYPES, ALL_EVENTS]), 'event types')

export const webhookRoutes = ({ webhooks }: Services): Route[] => [
  keyRoute({
    method: 'POST',
    path: '/v1/webhooks',
    tag: 'Webhooks',
    summary: 'Have events sent to a URL',
    body: z.object({ url: text(1, MAX_URL_CHARACTERS), events, secret: text(16, 256).optional() }),
    answer: createdWebhook,
    status: 201,
    errors: ['quota_exceeded'],
    handle: ({ who, body }) => webhooks.create(who, body),
  }),
  keyRoute({
    method: 'GET',
    path: '/v1/webhooks',
    tag: 'Webhooks',
    summary: 'List webhooks',
    answer: webhookList,
    errors: [],
    handle: ({ who }) => webhooks.list(who),
  }),
  keyRoute({
    method: 'DELETE',
    path: '/v1/webhooks/:id',
    tag: 'Webhooks',
    summary: 'Delete a webhook with all that waits for it',
    answer: deletedWebhook,
    errors: ['not_found'],
    handle: ({ who, params }) => webhooks.remove(who, params['id'] ?? ''),
  }),
  keyRoute({
    method: 'GET',
    path: '/v1/webhooks/:id/deliveries',
    tag: 'Webhooks',
    summary: 'Show what was sent and what waits, newest event first',
    query: z.object({ limit: queryInteger(1, MAX_DELIVERIES).default(DEFAULT_DELIVERIES) }),
    answer: webhookDeliveries,
    errors: ['not_found'],
    handle: ({ who, params, query }) => webhooks.deliveries(who, params['id'] ?? '', query.limit),
  }),
]
