import { z } from 'zod'
import type { Services } from '../../services/types.ts'
import { oneOf, queryTime } from '../fields.ts'
import { keyRoute, type Route } from '../route.ts'
import { stats, usage as usageAnswer } from './schemas.ts'

export const usageRoutes = ({ usage }: Services): Route[] => [
  keyRoute({
    method: 'GET',
    path: '/v1/usage',
    tag: 'Usage',
    summary: 'Show what the organisation, or one computer of it, took within a period',
    query: z.object({
      start: queryTime().optional(),
      end: queryTime().optional(),
      computer: z.string().optional(),
    }),
    answer: usageAnswer,
    errors: ['not_found'],
    handle: ({ who, query }) => usage.read(who, query),
  }),
  keyRoute({
    method: 'GET',
    path: '/v1/computers/:id/stats',
    tag: 'Usage',
    summary: 'Show how much of its time the agent of a computer slept, and what the computer costs',
    query: z.object({ window: oneOf(['30d', 'lifetime']).default('30d') }),
    answer: stats,
    errors: ['not_found'],
    handle: ({ who, params, query }) => usage.stats(who, params['id'] ?? '', query.window),
  }),
]
