import { z } from 'zod'
import { OrbError } from '../../errors.ts'
import type { Services } from '../../services/types.ts'
import { queryInteger } from '../fields.ts'
import { keyRoute, type Route } from '../route.ts'
import { TERMINAL_SIZE_LIMIT } from '../terminal-socket.ts'

const NAME_PATTERN = /^[A-Za-z0-9_-]{1,64}$/
const USUAL_COLUMNS = 80
const USUAL_ROWS = 24

const size = (usual: number) => queryInteger(1, TERMINAL_SIZE_LIMIT).default(usual)

export const terminalRoutes = ({ terminals }: Services): Route[] => [
  keyRoute({
    method: 'GET',
    path: '/v1/computers/:id/terminal',
    tag: 'Terminal',
    summary: 'Open a shell as a WebSocket; the key may also be the query parameter `key`',
    status: 101,
    keyInQuery: true,
    changes: true,
    query: z.object({
      key: z.string().optional(),
      cols: size(USUAL_COLUMNS),
      rows: size(USUAL_ROWS),
      session: z.string().regex(NAME_PATTERN, 'must be 1 to 64 characters of A-Z, a-z, 0-9, _ and -').optional(),
    }),
    errors: ['not_found', 'invalid_request', 'too_many_sessions'],
    async handle({ request, who, params, query, upgrade }) {
      const id = params['id'] ?? ''
      const session = query.session ?? null
      terminals.check(who, id, session)
      if (!isHandshake(request)) throw notWebSocket()
      const visit = await terminals.open(who, id, { session, size: { columns: query.cols, rows: query.rows } })
      if (upgrade(visit)) return new Response(null, { status: 101 })
      visit.leave()
      throw notWebSocket()
    },
  }),
]

/** RFC 6455 §4.1. */
const isHandshake = ({ headers }: Request): boolean =>
  headers.get('upgrade')?.toLowerCase() === 'websocket' &&
  headers.get('sec-websocket-version') === '13' &&
  headers.has('sec-websocket-key')

const notWebSocket = () => new OrbError('invalid_request', 'this path takes WebSockets only')
