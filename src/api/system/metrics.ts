import { createHash, timingSafeEqual } from 'node:crypto'
import { OrbError } from '../../errors.ts'
import type { Services } from '../../services/types.ts'
import { bearer } from '../auth.ts'
import { type Call, publicRoute, type Route } from '../route.ts'

/** `token` null: only peers on this host may read. */
export const metricsRoutes = ({ system }: Services, token: string | null): Route[] => [
  publicRoute({
    method: 'GET',
    path: '/metrics',
    tag: 'System',
    summary: 'Numbers for Prometheus; needs ORB_METRICS_TOKEN as bearer, without one a peer on this host',
    otherAnswers: { 'text/plain': 'Prometheus text format 0.0.4' },
    errors: ['unauthorized'],
    handle(call) {
      if (!mayRead(call, token)) throw new OrbError('unauthorized', 'metrics need their token or a peer on this host')
      return new Response(system.metrics(), { headers: { 'content-type': 'text/plain; version=0.0.4; charset=utf-8' } })
    },
  }),
]

function mayRead(call: Call, token: string | null): boolean {
  if (token === null) return call.isLocal
  return timingSafeEqual(sha256(bearer(call.request) ?? ''), sha256(token))
}

const sha256 = (text: string): Uint8Array => createHash('sha256').update(text).digest()
