import { z } from 'zod'
import type { Services } from '../../services/types.ts'
import { json } from '../errors.ts'
import { publicRoute, type Route } from '../route.ts'

const health = z.looseObject({
  status: z.enum(['healthy', 'degraded', 'unhealthy']),
  service: z.string(),
  version: z.string(),
  uptime_secs: z.int(),
  checkpoint: z.enum(['ok', 'unavailable']),
  checks: z.record(z.string(), z.looseObject({ name: z.string(), status: z.string(), details: z.string() })),
  problems: z.array(z.string()).optional(),
})

export const healthRoutes = ({ system }: Services): Route[] => [
  publicRoute({
    method: 'GET',
    path: '/health',
    tag: 'System',
    summary: 'Tell whether this server works; 503 with the same body when it does not',
    answer: health,
    failingStatus: 503,
    errors: [],
    handle() {
      const { httpStatus, body } = system.health()
      return json(body, httpStatus)
    },
  }),
]
