import { OrbError } from '../errors.ts'
import type { Header } from './http1-head.ts'
import type { LlmSettings } from './types.ts'

export interface UpstreamTarget {
  secure: boolean
  /** Name or address, IPv6 without brackets. */
  host: string
  port: number
  /** Value of the Host header. */
  authority: string
  /** Path and query of the request line. */
  target: string
}

const PROVIDER_BASE = {
  anthropic: 'https://api.anthropic.com',
  openai: 'https://api.openai.com/v1',
  google: 'https://generativelanguage.googleapis.com',
} as const

/**
 * Where a request of an agent goes (Orb Cloud contract §11.1): base with its path + path and query as they came; a
 * version segment that ends the base and starts the path appears once. `target` is in origin form. Throws OrbError
 * `upstream_unreachable` for a base that is no http(s) URL.
 */
export function upstreamFor(llm: LlmSettings, target: string, headers: Header[]): UpstreamTarget {
  const base = llm.baseUrl ?? PROVIDER_BASE[providerOf(llm.provider, target, headers)]
  const url = URL.parse(base)
  if (url === null || (url.protocol !== 'https:' && url.protocol !== 'http:')) {
    throw new OrbError('upstream_unreachable', 'The LLM base URL is not a valid http or https URL.')
  }
  const secure = url.protocol === 'https:'
  return {
    secure,
    host: url.hostname.replace(/^\[|\]$/g, ''),
    port: url.port === '' ? (secure ? 443 : 80) : Number(url.port),
    authority: url.host,
    target: joinPath(url.pathname, target),
  }
}

/** Hosts that `upstreamFor` may choose for these settings, IPv6 addresses without brackets. */
export function upstreamHosts({ baseUrl, provider }: LlmSettings): string[] {
  const fixed = provider !== 'multi' && provider !== 'custom' ? [PROVIDER_BASE[provider]] : Object.values(PROVIDER_BASE)
  return (baseUrl === null ? fixed : [baseUrl]).flatMap(
    (base) => URL.parse(base)?.hostname.replace(/^\[|\]$/g, '') ?? [],
  )
}

function providerOf(provider: LlmSettings['provider'], target: string, headers: Header[]): keyof typeof PROVIDER_BASE {
  if (provider !== 'multi' && provider !== 'custom') return provider
  const path = target.split('?', 1)[0] ?? ''
  if (path.startsWith('/v1/messages') || has(headers, 'anthropic-version')) return 'anthropic'
  const google = path.startsWith('/v1beta') || /:(stream)?generateContent/i.test(path)
  return google || has(headers, 'x-goog-api-key') ? 'google' : 'openai'
}

const has = (headers: Header[], name: string): boolean => headers.some((header) => header.name === name)

function joinPath(basePath: string, target: string): string {
  const base = basePath.replace(/\/+$/, '')
  const version = /\/v\d[a-z0-9]*$/.exec(base)?.[0]
  if (version === undefined || !target.startsWith(version)) return base + target
  const rest = target.slice(version.length)
  return rest === '' || rest[0] === '/' || rest[0] === '?' ? base + rest : base + target
}
