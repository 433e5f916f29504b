import { isIP } from 'node:net'

/** One entry of the operator's list of what orb itself may reach though it is private or plain http. */
export type AllowEntry =
  | { kind: 'any' }
  | { kind: 'cidr'; family: 4 | 6; network: bigint; prefix: number }
  | { kind: 'host'; host: string; port?: number }

interface Address {
  family: 4 | 6
  bits: bigint
}

const WIDTH = { 4: 32, 6: 128 } as const

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
].map(parseCidr)

/** Prefixes of IPv6 addresses that lead to an IPv4 address, and how far right in the address that one stands. */
const EMBEDDED_IPV4 = [
  { cidr: parseCidr('::ffff:0:0/96'), shift: 0n },
  // NAT64 (RFC 6052 §2.1) and 6to4 (RFC 3056 §2) reach whatever IPv4 address they carry.
  { cidr: parseCidr('64:ff9b::/96'), shift: 0n },
  { cidr: parseCidr('2002::/16'), shift: 80n },
]

/** True unless `ip` is a public unicast address. IPv6 forms of an IPv4 address count as that address. */
export function isPrivate(ip: string): boolean {
  const address = parseAddress(ip)
  if (address === null) return true
  return PRIVATE.some((cidr) => contains(cidr, address))
}

/**
 * May orb reach `ip`, to which `host` resolved, on `port` although it is private or plain http? `host` entries without a
 * port mean every port.
 */
export function allowed(entries: readonly AllowEntry[], host: string, port: number, ip: string): boolean {
  const address = parseAddress(ip)
  const name = normalHost(host)
  return entries.some((entry) => {
    if (entry.kind === 'any') return true
    if (entry.kind === 'host') return entry.host === name && (entry.port === undefined || entry.port === port)
    return address !== null && contains(entry, address)
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
  if (text.includes('/')) return parseCidr(text)
  if (isIP(text) === 6) return { kind: 'host', host: normalHost(text) }
  const [, host, port] = HOST_PORT.exec(text) ?? []
  if (host === undefined) throw new Error(`"${text}" is neither a CIDR, nor host[:port], nor *`)
  if (port === undefined) return { kind: 'host', host: normalHost(host) }
  if (Number(port) < 1 || Number(port) > MAX_PORT) throw new Error(`"${text}" has a port outside 1 to ${MAX_PORT}`)
  return { kind: 'host', host: normalHost(host), port: Number(port) }
}

function parseCidr(text: string): AllowEntry & { kind: 'cidr' } {
  const [ip = '', length = ''] = text.split('/')
  const raw = parseRaw(ip)
  if (raw === null || !/^\d{1,3}$/.test(length) || Number(length) > WIDTH[raw.family]) {
    throw new Error(`"${text}" is not a CIDR`)
  }
  const prefix = Number(length)
  const shift = BigInt(WIDTH[raw.family] - prefix)
  return { kind: 'cidr', family: raw.family, network: raw.bits >> shift, prefix }
}

const contains = (cidr: AllowEntry & { kind: 'cidr' }, address: Address): boolean =>
  cidr.family === address.family && address.bits >> BigInt(WIDTH[cidr.family] - cidr.prefix) === cidr.network

function normalHost(host: string): string {
  const bare = host.replace(/^\[|\]$/g, '').replace(/\.$/, '')
  const address = parseRaw(bare)
  return address === null ? bare.toLowerCase() : `ip${address.family}:${address.bits.toString(16)}`
}

/** The address that a packet to `ip` ends up at. */
function parseAddress(ip: string): Address | null {
  const address = parseRaw(ip)
  if (address?.family !== 6) return address
  const embedded = EMBEDDED_IPV4.find(({ cidr }) => contains(cidr, address))
  if (embedded === undefined) return address
  return { family: 4, bits: (address.bits >> embedded.shift) & 0xffff_ffffn }
}

function parseRaw(ip: string): Address | null {
  const bare = ip.replace(/%.*$/, '')
  const family = isIP(bare)
  if (family === 4) return { family: 4, bits: ipv4Bits(bare) }
  if (family !== 6) return null
  const dotted = /^(.*:)(\d+\.\d+\.\d+\.\d+)$/.exec(bare)
  const tail = dotted?.[2] === undefined ? undefined : ipv4Bits(dotted[2])
  const hex = tail === undefined ? bare : `${dotted?.[1]}${(tail >> 16n).toString(16)}:${(tail & 0xffffn).toString(16)}`
  const [left = '', right] = hex.split('::')
  const head = left === '' ? [] : left.split(':')
  const end = right === undefined || right === '' ? [] : right.split(':')
  const zeros = new Array<string>(8 - head.length - end.length).fill('0')
  const groups = [...head, ...zeros, ...end]
  return { family: 6, bits: groups.reduce((bits, group) => (bits << 16n) | BigInt(`0x${group}`), 0n) }
}

function ipv4Bits(ip: string): bigint {
  return ip.split('.').reduce((bits, octet) => (bits << 8n) | BigInt(octet), 0n)
}
