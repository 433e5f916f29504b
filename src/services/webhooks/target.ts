import { isIP } from 'node:net'
import { type AllowEntry, allowed, isPrivate } from '../../addresses.ts'
import { OrbError } from '../../errors.ts'
import type { UpstreamTarget } from '../../proxy/upstream-url.ts'

/** Orb Cloud contract §16. */
export const MAX_URL_CHARACTERS = 2048

const LOOPBACK = '127.0.0.1'

/**
 * Where a webhook's URL leads. @throws OrbError invalid_request for what is no https URL without user info. Plain http and
 * private addresses are for the operator to allow (`allowPrivate`); what a name leads to is known when it is called.
 */
export function checkedTarget(text: string, allowPrivate: readonly AllowEntry[]): UpstreamTarget {
  const url = URL.parse(text)
  if (url === null || (url.protocol !== 'https:' && url.protocol !== 'http:') || text.length > MAX_URL_CHARACTERS) {
    throw refused(`must be an https:// URL of at most ${MAX_URL_CHARACTERS} characters`)
  }
  if (url.username !== '' || url.password !== '') throw refused('must not contain a user name or a password')
  const target = targetOf(url)
  // A name that means this machine everywhere is as good as its address (RFC 6761 §6.3).
  const address = /(^|\.)localhost\.?$/.test(target.host) ? LOOPBACK : target.host
  if (allowed(allowPrivate, target.host, target.port, address)) return target
  if (!target.secure) throw refused('must be an https:// URL; plain http is not allowed on this server')
  if (isIP(address) !== 0 && isPrivate(address)) throw refused('must not lead to a private address')
  return target
}

export function targetOf(url: URL): UpstreamTarget {
  const secure = url.protocol === 'https:'
  return {
    secure,
    host: url.hostname.replace(/^\[|\]$/g, ''),
    port: url.port === '' ? (secure ? 443 : 80) : Number(url.port),
    authority: url.host,
    target: `${url.pathname}${url.search}`,
  }
}

const refused = (why: string) => new OrbError('invalid_request', `url ${why}`)
