import { isIP } from 'node:net'
import { type Address, type Cidr, contains, parseAddress, parseCidr } from './cidr.ts'

/** One entry of the operator's list of what orb itself may reach though it is private or plain http. */
export type AllowEntry = { kind: 'any' } | { kind: 'cidr'; cidr: Cidr } | { kind: 'host'; host: string; port?: number }

/**
 * Everything that is not the public internet: IANA special-purpose registries (RFC 6890 and its updates), multicast, and
 * with them the metadata services of clouds (169.254.169.254, fd00:ec2::254).
 */
const PRIVATE = [
  '0.0.0.0/8',
  '10.0.0.0/8',
  '100.64.0.0/10',
  '127.0.0.0/8',
  '169.254.0.0/16',
  '172.16.0.0/12',
  '192.0.0.0/24',
  '192.0.2.0/24',
  '192.88.99.0/24',
  '192.168.0.0/16',
  '198.18.0.0/15',
  '198.51.100.0/24',
  '203.0.113.0/24',
  '224.0.0.0/3',
  // All of ::/8 but the v4-mapped block, whose IPv4 address is judged instead.
  '::/8',
  '100::/64',
  '2001::/23',
  '2001:db8::/32',
  '3fff::/20',
  '5f00::/16',
  'fc00::/7',
  'fe80::/9',
  'ff00::/8',
].map(block)

/** Prefixes of IPv6 addresses that lead to an IPv4 address, and how far right in the address that one stands. */
const EMBEDDED_IPV4 = [
  { cidr: block('::ffff:0:0/96'), shift: 0n },
  // NAT64 (RFC 6052 §2.1) and 6to4 (RFC 3056 §2) reach whatever IPv4 address they carry.
  { cidr: block('64:ff9b::/96'), shift: 0n },
  { cidr: block('2002::/16'), shift: 80n },
]

/** True unless `ip` is a public unicast address. IPv6 forms of an IPv4 address count as that address. */
export function isPrivate(ip: string): boolean {
  const address = destination(ip)
  if (address === null) return true
  return PRIVATE.some((cidr) => contains(cidr, address))
}

/**
 * May orb reach `ip`, to which `host` resolved, on `port` although it is private or plain http? `host` entries without a
 * port mean every port.
 */
export function allowed(entries: readonly AllowEntry[], host: string, port: number, ip: string): boolean {
  const address = destination(ip)
  const name = normalHost(host)
  return entries.some((entry) => {
    if (entry.kind === 'any') return true
    if (entry.kind === 'host') return entry.host === name && (entry.port === undefined || entry.port === port)
    return address !== null && contains(entry.cidr, address)
  })
}

/**
 * Reads a comma list of CIDR, `host[:port]`, `[v6]:port` or `*` (ORB_ALLOW_PRIVATE, Orb Cloud contract §1.1). Throws an
 * Error that names a bad entry.
 */
export function parseAllowList(list: string): AllowEntry[] {
  return list
    .split(',')
    .map((text) => text.trim())
    .filter((text) => text !== '')
    .map(parseEntry)
}

const HOST_PORT = /^(\[[0-9a-f:.]+\]|[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?\.?)(?::(\d{1,5}))?$/i
const MAX_PORT = 65_535

function parseEntry(text: string): AllowEntry {
  if (text === '*') return { kind: 'any' }
  if (text.includes('/')) return { kind: 'cidr', cidr: block(text) }
  if (isIP(text) === 6) return { kind: 'host', host: normalHost(text) }
  const [, host, port] = HOST_PORT.exec(text) ?? []
  if (host === undefined) throw new Error(`"${text}" is neither a CIDR, nor host[:port], nor *`)
  if (port === undefined) return { kind: 'host', host: normalHost(host) }
  if (Number(port) < 1 || Number(port) > MAX_PORT) throw new Error(`"${text}" has a port outside 1 to ${MAX_PORT}`)
  return { kind: 'host', host: normalHost(host), port: Number(port) }
}

function block(text: string): Cidr {
  const cidr = parseCidr(text)
  if (cidr === null) throw new Error(`"${text}" is not a CIDR`)
  return cidr
}

function normalHost(host: string): string {
  const bare = host.replace(/^\[|\]$/g, '').replace(/\.$/, '')
  const address = parseAddress(bare)
  return address === null ? bare.toLowerCase() : `ip${address.family}:${address.value.toString(16)}`
}

/** The address that a packet to `ip` ends up at. */
function destination(ip: string): Address | null {
  const address = parseAddress(ip)
  if (address?.family !== 6) return address
  const embedded = EMBEDDED_IPV4.find(({ cidr }) => contains(cidr, address))
  if (embedded === undefined) return address
  return { family: 4, value: (address.value >> embedded.shift) & 0xffff_ffffn }
}
