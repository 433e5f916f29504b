import { z } from 'zod'
import type { Services } from '../../services/types.ts'
import { text } from '../fields.ts'
import { keyRoute, type Route } from '../route.ts'
import { bootstrapped, disconnected } from './schemas.ts'

const MAX_TOKEN_CHARACTERS = 4096
const MAX_KEY_CHARACTERS = 256
const MAX_BRANCH_CHARACTERS = 255

/** It goes out in a header. */
const pat = text(1, MAX_TOKEN_CHARACTERS).regex(/^[\x21-\x7e]*$/, { error: 'must be a GitHub token' })

const GITHUB_ERRORS = [
  'not_found',
  'no_source',
  'missing_scopes',
  'unsupported_source',
  'github_error',
  'upstream_unreachable',
  'upstream_forbidden',
  'upstream_timeout',
] as const

export const githubRoutes = ({ github }: Services): Route[] => [
  keyRoute({
    method: 'POST',
    path: '/v1/computers/:id/github/bootstrap',
    tag: 'GitHub',
    summary: 'Have the computer built and its agent redeployed on each push',
    body: z.object({
      pat,
      api_key: text(1, MAX_KEY_CHARACTERS).optional(),
      branch: text(1, MAX_BRANCH_CHARACTERS).optional(),
    }),
    answer: bootstrapped,
    errors: [...GITHUB_ERRORS, 'quota_exceeded'],
    handle: ({ who, params, body }) => github.bootstrap(who, params['id'] ?? '', body),
  }),
  keyRoute({
    method: 'POST',
    path: '/v1/computers/:id/github/disconnect',
    tag: 'GitHub',
    summary: 'Take workflow and secret out of the repository; the key stays',
    body: z.object({ pat }),
    answer: disconnected,
    errors: [...GITHUB_ERRORS],
    handle: ({ who, params, body }) => github.disconnect(who, params['id'] ?? '', body.pat),
  }),
]
