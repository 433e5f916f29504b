import { z } from 'zod'
import type { Settings } from '../../config.ts'
import type { Services } from '../../services/types.ts'
import { integer, text } from '../fields.ts'
import { keyRoute, type Route } from '../route.ts'
import { executed } from './schemas.ts'

/** Limits of the Orb Cloud contract §8 and §20. */
const COMMAND_CHARACTERS = 128 * 1024
const MAX_TIMEOUT_S = 600

export const execRoutes = ({ exec }: Services, settings: Settings): Route[] => [
  keyRoute({
    method: 'POST',
    path: '/v1/computers/:id/exec',
    tag: 'Exec',
    summary: 'Run a shell command beside the agent',
    body: z.object({
      command: text(1, COMMAND_CHARACTERS),
      timeout_secs: integer(1, MAX_TIMEOUT_S).default(Math.max(1, Math.round(settings.execTimeoutMs / 1000))),
    }),
    answer: executed,
    errors: ['not_found', 'too_many_sessions'],
    handle: ({ who, params, body }) => exec.run(who, params['id'] ?? '', body),
  }),
]
