import { z } from 'zod'
import type { Settings } from '../../config.ts'
import type { Services } from '../../services/types.ts'
import { integer, line, text } from '../fields.ts'
import { keyRoute, type Route } from '../route.ts'
import { computer, computerList, deletedComputer } from './schemas.ts'

/** Limits and defaults of the Orb Cloud contract §3. */
export const MIN_MB = 64
export const DEFAULT_RUNTIME_MB = 512
export const DEFAULT_DISK_MB = 1024
const MAX_USER_ID_CHARACTERS = 1024

export const computerRoutes = ({ computers }: Services, settings: Settings): Route[] => [
  keyRoute({
    method: 'POST',
    path: '/v1/computers',
    tag: 'Computers',
    summary: 'Make a computer',
    body: z.object({
      name: line(1, 128),
      runtime_mb: integer(MIN_MB, settings.maxRuntimeMb).default(Math.min(DEFAULT_RUNTIME_MB, settings.maxRuntimeMb)),
      disk_mb: integer(MIN_MB, settings.maxDiskMb).default(Math.min(DEFAULT_DISK_MB, settings.maxDiskMb)),
      user_id: text(0, MAX_USER_ID_CHARACTERS).optional(),
    }),
    answer: computer,
    status: 201,
    errors: ['quota_exceeded', 'no_capacity', 'disk_full'],
    handle: ({ who, body }) => computers.create(who, { ...body, user_id: body.user_id ?? null }),
  }),
  keyRoute({
    method: 'GET',
    path: '/v1/computers',
    tag: 'Computers',
    summary: 'List computers',
    answer: computerList,
    errors: [],
    handle: ({ who }) => computers.list(who),
  }),
  keyRoute({
    method: 'GET',
    path: '/v1/computers/:id',
    tag: 'Computers',
    summary: 'Show a computer',
    access: 'deploy',
    answer: computer,
    errors: ['not_found'],
    handle: ({ who, params }) => computers.get(who, params['id'] ?? ''),
  }),
  keyRoute({
    method: 'DELETE',
    path: '/v1/computers/:id',
    tag: 'Computers',
    summary: 'Delete a computer with everything on it',
    answer: deletedComputer,
    errors: ['not_found'],
    handle: ({ who, params }) => computers.remove(who, params['id'] ?? ''),
  }),
]
