import { z } from 'zod'
import { OrbError } from '../../errors.ts'
import type { Services } from '../../services/types.ts'
import { flag, oneOf, positiveInteger, table, textMap } from '../fields.ts'
import { keyRoute, type Route } from '../route.ts'
import { SECRET_BYTES } from './builds.ts'
import { agentList, demoted, deployed, promoted, restarted } from './schemas.ts'

const deployBody = z.object({
  org_secrets: textMap(SECRET_BYTES).optional(),
  orb_config: table().optional(),
  task: oneOf(['start', 'restart']).optional(),
  count: positiveInteger().optional(),
  replace: flag().default(true),
})

const portBody = z.object({ port: positiveInteger().optional() })

const SLEEP_ERRORS = [
  'not_found',
  'agent_not_found',
  'port_not_found',
  'agent_failed',
  'checkpoint_unavailable',
] as const

export const agentRoutes = ({ agents }: Services): Route[] => [
  keyRoute({
    method: 'POST',
    path: '/v1/computers/:id/agents',
    tag: 'Agents',
    summary: 'Deploy the agent',
    access: 'deploy',
    body: deployBody,
    answer: deployed,
    status: 201,
    errors: [
      'not_found',
      'invalid_config',
      'missing_secrets',
      'no_config',
      'agent_exists',
      'spawn_failed',
      'build_failed',
      'no_capacity',
      'disk_full',
    ],
    handle({ who, params, body }) {
      const { org_secrets, orb_config, replace, count = 1 } = body
      if (count !== 1) {
        throw new OrbError('invalid_request', 'count must be 1: a computer has one agent, for more use /v1/swarms')
      }
      return agents.deploy(who, params['id'] ?? '', { org_secrets, orb_config, replace })
    },
  }),
  keyRoute({
    method: 'GET',
    path: '/v1/computers/:id/agents',
    tag: 'Agents',
    summary: 'List the agents and their states',
    access: 'deploy',
    answer: agentList,
    errors: ['not_found'],
    handle: ({ who, params }) => agents.list(who, params['id'] ?? ''),
  }),
  keyRoute({
    method: 'POST',
    path: '/v1/computers/:id/agents/demote',
    tag: 'Agents',
    summary: 'Put the agent to sleep on disk',
    body: portBody,
    answer: demoted,
    errors: [...SLEEP_ERRORS, 'checkpoint_failed', 'disk_full'],
    handle: ({ who, params, body }) => agents.demote(who, params['id'] ?? '', body.port),
  }),
  keyRoute({
    method: 'POST',
    path: '/v1/computers/:id/agents/promote',
    tag: 'Agents',
    summary: 'Wake the agent',
    body: portBody,
    answer: promoted,
    errors: [...SLEEP_ERRORS, 'restore_failed', 'no_capacity'],
    handle: ({ who, params, body }) => agents.promote(who, params['id'] ?? '', body.port),
  }),
  keyRoute({
    method: 'POST',
    path: '/v1/computers/:id/restart',
    tag: 'Agents',
    summary: 'End every process of the computer and forget its agent; the disk stays',
    body: z.object({}),
    answer: restarted,
    errors: ['not_found'],
    handle: ({ who, params }) => agents.restart(who, params['id'] ?? ''),
  }),
]
