import { OrbError } from '../errors.ts'
import type { RequestHead } from './http1.ts'

/**
 * Who a request is for, by its Host (Orb Cloud contract §12.3). `label`: what stands before the base domain; `host`: both, in
 * lower case.
 */
export type Destination = { kind: 'api' } | { kind: 'computer'; label: string; host: string }

const API: Destination = { kind: 'api' }

/**
 * @param authority value of the Host header: any case, with or without a port
 * @param domain base domain in lower case; a port that it names does not count
 */
export function destinationOf(authority: string, domain: string): Destination {
  const [, host, root] = /^([a-z0-9._-]*?)(\.?)(?::\d{0,5})?$/i.exec(authority) ?? []
  if (host === undefined || root === undefined) return API
  const suffix = `.${domain.replace(/:\d+$/, '')}`
  const name = host.toLowerCase()
  if (!name.endsWith(suffix)) return API
  const label = name.slice(0, -suffix.length)
  return label === 'api' ? API : { kind: 'computer', label, host: name }
}

/**
 * Authority and origin form of a request's target. A target in absolute form overrides Host (RFC 9112 §3.2.2).
 * @throws OrbError for what only a forward proxy would take
 */
export function splitTarget({ method, target, headers }: RequestHead): { authority: string; path: string } {
  const host = headers.find(({ name }) => name === 'host')?.value ?? ''
  if (method === 'CONNECT') throw new OrbError('invalid_request', 'CONNECT is not supported: this is no forward proxy.')
  if (target.startsWith('/') || target === '*') return { authority: host, path: target }
  const [, authority, rest] = /^https?:\/\/([^/?#@]+)((?:[/?].*)?)$/i.exec(target) ?? []
  if (authority === undefined || rest === undefined) {
    throw new OrbError('invalid_request', 'The request target must be a path.')
  }
  return { authority, path: rest.startsWith('/') ? rest : `/${rest}` }
}

const PORT_PREFIX = '/_port/'

/**
 * Port and path inside: `/_port/{N}/rest` names an exposed port, everything else goes to the first.
 * @throws OrbError `port_not_exposed`
 */
export function portOf(path: string, ports: readonly number[]): { port: number; path: string } {
  const [first] = ports
  if (first === undefined) throw new OrbError('port_not_exposed', 'This computer exposes no port.')
  if (path !== '/_port' && !path.startsWith(PORT_PREFIX)) return { port: first, path }
  const [, digits, rest] = /^([1-9]\d{0,4})((?:[/?].*)?)$/.exec(path.slice(PORT_PREFIX.length)) ?? []
  const port = Number(digits)
  if (rest === undefined || !ports.includes(port)) {
    throw new OrbError('port_not_exposed', 'This computer does not expose that port.')
  }
  return { port, path: rest.startsWith('/') ? rest : `/${rest}` }
}
