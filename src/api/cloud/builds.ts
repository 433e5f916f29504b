import { z } from 'zod'
import type { Services } from '../../services/types.ts'
import { flag, text, textMap } from '../fields.ts'
import { keyRoute, type Route } from '../route.ts'
import { build, buildList, buildRecord } from './schemas.ts'

/** Limit of one secret (Orb Cloud contract §20). */
export const SECRET_BYTES = 128 * 1024

export const buildRoutes = ({ builds }: Services): Route[] => [
  keyRoute({
    method: 'POST',
    path: '/v1/computers/:id/build',
    tag: 'Build',
    summary: 'Fetch the source and run the build steps; answers when done',
    access: 'deploy',
    body: z.object({
      org_secrets: textMap(SECRET_BYTES).optional(),
      git_token: text(1, 4096).optional(),
      redeploy: flag().optional(),
    }),
    answer: build,
    errors: ['not_found', 'no_config', 'restore_failed', 'no_capacity'],
    handle: ({ who, params, body }) => builds.run(who, params['id'] ?? '', body),
  }),
  keyRoute({
    method: 'GET',
    path: '/v1/computers/:id/builds',
    tag: 'Build',
    summary: 'List the last 50 builds, newest first',
    access: 'deploy',
    answer: buildList,
    errors: ['not_found'],
    handle: ({ who, params }) => builds.list(who, params['id'] ?? ''),
  }),
  keyRoute({
    method: 'GET',
    path: '/v1/computers/:id/builds/:build_id',
    tag: 'Build',
    summary: 'Show a build',
    access: 'deploy',
    answer: buildRecord,
    errors: ['not_found'],
    handle: ({ who, params }) => builds.get(who, params['id'] ?? '', params['build_id'] ?? ''),
  }),
]
