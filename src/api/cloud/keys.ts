import { z } from 'zod'
import type { Services } from '../../services/types.ts'
import { line } from '../fields.ts'
import { keyRoute, type Route } from '../route.ts'
import { createdKey, keyList, revokedKey } from './schemas.ts'

export const keyRoutes = ({ accounts }: Services): Route[] => [
  keyRoute({
    method: 'POST',
    path: '/v1/keys',
    tag: 'API keys',
    summary: 'Make a key',
    body: z.object({ name: line(1, 128) }),
    answer: createdKey,
    status: 201,
    errors: ['quota_exceeded'],
    handle: ({ who, body }) => accounts.createKey(who, body.name),
  }),
  keyRoute({
    method: 'GET',
    path: '/v1/keys',
    tag: 'API keys',
    summary: 'List keys',
    answer: keyList,
    errors: [],
    handle: ({ who }) => accounts.listKeys(who),
  }),
  keyRoute({
    method: 'DELETE',
    path: '/v1/keys/:key_id',
    tag: 'API keys',
    summary: 'Revoke a key at once',
    answer: revokedKey,
    errors: ['not_found'],
    handle: ({ who, params }) => accounts.revokeKey(who, params['key_id'] ?? ''),
  }),
]
