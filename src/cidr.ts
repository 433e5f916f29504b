import { isIP } from 'node:net'

const IPV4_BITS = 32
const IPV6_BITS = 128
const MAPPED_PREFIX = 0xffffn << 32n

/** A block of addresses: `value` is its first address as a number. */
export interface Cidr {
  family: 4 | 6
  value: bigint
  /** Number of leading bits that all its addresses share. */
  prefix: number
  /** Normalised text, `10.42.0.0/16`. */
  text: string
}

/** An address as a number. */
export interface Address {
  family: 4 | 6
  value: bigint
}

/** A block such as `10.42.0.0/16` or `fd00::/8`; a bare address is a block of one. Null if it is neither or has host bits set. */
export function parseCidr(text: string): Cidr | null {
  const [host = '', length, ...rest] = text.trim().split('/')
  const address = host.includes('%') ? null : parseAddress(host)
  if (!address || rest.length > 0) return null
  const bits = address.family === 4 ? IPV4_BITS : IPV6_BITS
  if (length !== undefined && !/^\d{1,3}$/.test(length)) return null
  const prefix = length === undefined ? bits : Number(length)
  if (prefix > bits) return null
  const hostBits = BigInt(bits - prefix)
  if ((address.value >> hostBits) << hostBits !== address.value) return null
  return { ...address, prefix, text: `${host}/${prefix}` }
}

/** Whether a literal address lies in the block. IPv4-mapped IPv6 addresses count as the IPv4 address they stand for. */
export function cidrContains(cidr: Cidr, literal: string): boolean {
  const address = parseMapped(literal)
  return address !== null && contains(cidr, address)
}

/** Whether the address lies in the block, taken as it is written. */
export function contains(cidr: Cidr, address: Address): boolean {
  if (address.family !== cidr.family) return false
  const hostBits = BigInt((cidr.family === 4 ? IPV4_BITS : IPV6_BITS) - cidr.prefix)
  return address.value >> hostBits === cidr.value >> hostBits
}

function parseMapped(text: string): Address | null {
  if (text.includes('%')) return null
  const address = parseAddress(text)
  if (address?.family !== 6 || address.value >> 32n !== MAPPED_PREFIX >> 32n) return address
  return { family: 4, value: address.value & 0xffffffffn }
}

/** A literal address, a zone (`%eth0`) left out; null for anything else. */
export function parseAddress(text: string): Address | null {
  const bare = text.replace(/%.*$/, '')
  const family = isIP(bare)
  if (family === 4) return { family: 4, value: ipv4Value(bare) }
  return family === 6 ? { family: 6, value: ipv6Value(bare) } : null
}

const ipv4Value = (text: string): bigint => text.split('.').reduce((sum, part) => (sum << 8n) | BigInt(part), 0n)

function ipv6Value(text: string): bigint {
  const [head = '', tail] = withHexTail(text).split('::')
  const left = head === '' ? [] : head.split(':')
  const right = tail === undefined || tail === '' ? [] : tail.split(':')
  const zeros = tail === undefined ? 0 : 8 - left.length - right.length
  const groups = [...left, ...Array<string>(zeros).fill('0'), ...right]
  return groups.reduce((sum, group) => (sum << 16n) | BigInt(`0x${group}`), 0n)
}

/** `::ffff:1.2.3.4` written with hexadecimal groups only (RFC 4291 §2.2). */
function withHexTail(text: string): string {
  const at = text.lastIndexOf(':') + 1
  const last = text.slice(at)
  if (!last.includes('.')) return text
  const value = ipv4Value(last)
  return `${text.slice(0, at)}${(value >> 16n).toString(16)}:${(value & 0xffffn).toString(16)}`
}
