import type { Services } from '../../services/types.ts'
import { readBody } from '../body.ts'
import { keyRoute, type Route } from '../route.ts'
import { config, uploadedConfig } from './schemas.ts'

/** Limit of a configuration (Orb Cloud contract §5). */
const CONFIG_BYTES = 256 * 1024

export const configRoutes = ({ configs }: Services): Route[] => [
  keyRoute({
    method: 'POST',
    path: '/v1/computers/:id/config',
    tag: 'Config',
    summary: 'Replace the stored orb.toml; any type but JSON is read as TOML',
    rawBody: { types: ['application/toml', 'application/json'], required: true },
    answer: uploadedConfig,
    errors: ['not_found', 'invalid_toml', 'invalid_config', 'payload_too_large'],
    async handle({ who, params, request }) {
      const raw = await readBody(request, CONFIG_BYTES)
      return configs.upload(who, params['id'] ?? '', raw, isJson(request) ? 'json' : 'toml')
    },
  }),
  keyRoute({
    method: 'GET',
    path: '/v1/computers/:id/config',
    tag: 'Config',
    summary: 'Show the stored configuration',
    answer: config,
    errors: ['not_found', 'config_not_found'],
    handle: ({ who, params }) => configs.get(who, params['id'] ?? ''),
  }),
]

const isJson = (request: Request): boolean =>
  /^application\/json\s*(;|$)/i.test(request.headers.get('content-type')?.trim() ?? '')
