import { emptyAnswer, HEADER_BYTES, question } from './dns-message.ts'

/** RFC 1035 §4.1.1, §3.2.2 and §3.2.4; RFC 6891 §6.1.1. */
const OPCODE_MASK = 0x78
const RCODE_MASK = 0x0f
const NXDOMAIN = 3
const TYPE_A = 1
const TYPE_CNAME = 5
const TYPE_OPT = 41
const CLASS_IN = 1
const POINTER = 0xc0
const MAX_LABEL_BYTES = 63
const TYPE_AND_CLASS_BYTES = 4
/** Type, class, time to live and length of a record, after its name. */
const RECORD_BYTES = 10
const IPV4_BYTES = 4
/** Longest name in wire form (RFC 1035 §2.3.4): it has no more labels, and no more pointers make sense. */
const MAX_NAME_BYTES = 255
/** Of a host's name, or what services put before it (RFC 2782). Another one would be ambiguous as text, a dot in it most of all. */
const LABEL = /^[a-z0-9_-]+$/

/** Records of one answer that are read: some ten times as many as names have addresses. Each may take as long as its name is. */
const MAX_RECORDS = 256

/** RFC 8914: why there is no answer, for those who ask for such things. */
const EDE_OPTION = 15
const EDE_BLOCKED = 15
const EDE_TEXT = 'not in network.outbound of this computer'
const UDP_PAYLOAD = 1232

/** The name that a query asks for, in lower case and without its last dot; null for what is no plain question for a name. */
export function nameAsked(query: Uint8Array): string | null {
  if (((query[2] ?? 0) & OPCODE_MASK) !== 0 || question(query).length === 0) return null
  const name = nameAt(bufferOf(query), HEADER_BYTES, { pointers: 0 })
  return name && name.text !== '' ? name.text : null
}

/**
 * The answer to a name that may not be looked up: there is no such name. That ends the matter for every resolver, where
 * a refusal (REFUSED) has some of them wait and ask again.
 */
export function blocked(query: Uint8Array): Uint8Array {
  const reply = emptyAnswer(query, NXDOMAIN)
  const asked = question(query)
  const additional = HEADER_BYTES + asked.length
  const hasOptions = asked.length > 0 && query[additional] === 0 && uint16(query, additional + 1) === TYPE_OPT
  if (!hasOptions) return reply
  const reason = Buffer.from(EDE_TEXT)
  const option = [...word(EDE_OPTION), ...word(2 + reason.length), ...word(EDE_BLOCKED), ...reason]
  const record = [0, ...word(TYPE_OPT), ...word(UDP_PAYLOAD), 0, 0, 0, 0, ...word(option.length), ...option]
  reply[11] = 1
  return Buffer.concat([reply, Uint8Array.from(record)])
}

/**
 * Where `name` leads by an answer that was matched with its query: IPv4 addresses of the name itself and of those that it
 * is another name of (RFC 1035 §3.3.1), each for as long as the shortest-lived record on the way. Empty for a broken answer.
 */
export function leadsOf(name: string, reply: Uint8Array): { address: number; ttlSeconds: number }[] {
  if (((reply[3] ?? 0) & RCODE_MASK) !== 0) return []
  const records = recordsOf(bufferOf(reply))
  const leads: { address: number; ttlSeconds: number }[] = []
  const reached = new Set<string>()
  let [current, ttl]: [string | undefined, number] = [name, Number.POSITIVE_INFINITY]
  while (current !== undefined && !reached.has(current)) {
    reached.add(current)
    const own = records.filter((record) => record.name === current)
    for (const { address, ttlSeconds } of own)
      if (address !== undefined) leads.push({ address, ttlSeconds: Math.min(ttl, ttlSeconds) })
    const alias = own.find(({ target }) => target !== undefined)
    current = alias?.target
    ttl = Math.min(ttl, alias?.ttlSeconds ?? 0)
  }
  return leads
}

interface AnswerRecord {
  name: string
  ttlSeconds: number
  /** Of an A record. */
  address?: number
  /** Of a CNAME record. */
  target?: string
}

/** The A and CNAME records of the answer section, as far as it can be read and is not longer than it makes sense. */
function recordsOf(reply: Buffer): AnswerRecord[] {
  const records: AnswerRecord[] = []
  const known = new Map<number, Name>()
  let at = HEADER_BYTES
  // The query had one question.
  if (uint16(reply, 4) > 1) return []
  if (uint16(reply, 4) === 1) {
    const name = nameAt(reply, at, { known })
    if (!name) return []
    at = name.end + TYPE_AND_CLASS_BYTES
  }
  for (let left = Math.min(uint16(reply, 6), MAX_RECORDS); left > 0; left--) {
    const name = nameAt(reply, at, { known })
    if (!name) break
    const [type, kind, length] = [0, 2, 8].map((offset) => uint16(reply, name.end + offset))
    const ttlSeconds = uint16(reply, name.end + 4) * 2 ** 16 + uint16(reply, name.end + 6)
    const data = name.end + RECORD_BYTES
    at = data + (length ?? 0)
    if (at > reply.length) break
    if (kind !== CLASS_IN) continue
    if (type === TYPE_A && length === IPV4_BYTES) {
      const address = uint16(reply, data) * 2 ** 16 + uint16(reply, data + 2)
      records.push({ name: name.text, ttlSeconds, address })
    }
    const target = type === TYPE_CNAME ? nameAt(reply, data, { known })?.text : undefined
    if (target) records.push({ name: name.text, ttlSeconds, target })
  }
  return records
}

interface Name {
  text: string
  /** Position behind it. */
  end: number
  /** Length in wire form without pointers, the last byte not counted. */
  bytes: number
}

/**
 * The name at `at` in lower case, with `?` for a label that is no part of a host's name; null when it is broken.
 * @param pointers how many may be followed (RFC 1035 §4.1.4) @param known what pointers of this message led to before
 */
function nameAt(
  message: Buffer,
  at: number,
  { pointers = MAX_NAME_BYTES, known = new Map() }: { pointers?: number; known?: Map<number, Name> },
): Name | null {
  const labels: string[] = []
  let bytes = 0
  for (;;) {
    const length = message[at]
    if (length === undefined) return null
    if (length === 0) return { text: labels.join('.'), end: at + 1, bytes }
    if (length >= POINTER) {
      const low = message[at + 1]
      if (low === undefined || pointers <= 0) return null
      const target = (length & ~POINTER) * 256 + low
      const rest = known.get(target) ?? nameAt(message, target, { pointers: pointers - 1, known })
      if (!rest || bytes + rest.bytes > MAX_NAME_BYTES) return null
      known.set(target, rest)
      if (rest.text !== '') labels.push(rest.text)
      return { text: labels.join('.'), end: at + 2, bytes: bytes + rest.bytes }
    }
    bytes += length + 1
    if (length > MAX_LABEL_BYTES || bytes > MAX_NAME_BYTES || at + 1 + length > message.length) return null
    const label = message.toString('latin1', at + 1, at + 1 + length).toLowerCase()
    labels.push(LABEL.test(label) ? label : '?')
    at += 1 + length
  }
}

const bufferOf = ({ buffer, byteOffset, length }: Uint8Array): Buffer => Buffer.from(buffer, byteOffset, length)

const uint16 = (bytes: Uint8Array, at: number): number => (bytes[at] ?? 0) * 256 + (bytes[at + 1] ?? 0)

const word = (value: number): [number, number] => [value >>> 8, value & 0xff]
