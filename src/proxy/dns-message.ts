/** Header of a message (RFC 1035 §4.1.1): id, flags, four counts, each of two bytes. */
export const HEADER_BYTES = 12
const RESPONSE_BIT = 0x80
const RECURSION_AVAILABLE_BIT = 0x80
const RCODE_MASK = 0x0f
const SERVFAIL = 2
const REFUSED = 5

/** Whether this is a message that asks: an answer is never passed on, or two name servers could keep each other busy. */
export const isQuery = (message: Uint8Array): boolean => message.length >= HEADER_BYTES && !isResponse(message)

/** Whether `reply` is one to `query`: its id, and the same question where it repeats one (RFC 5452 §9.1). */
export function answers(query: Uint8Array, reply: Uint8Array): boolean {
  if (reply.length < HEADER_BYTES || !isResponse(reply)) return false
  if (reply[0] !== query[0] || reply[1] !== query[1]) return false
  const asked = question(query)
  const repeated = question(reply)
  return repeated.length === 0 || Buffer.compare(lowerCase(asked), lowerCase(repeated)) === 0
}

/** Whether another server might know better. */
export const isRetryable = (reply: Uint8Array): boolean => [SERVFAIL, REFUSED].includes((reply[3] ?? 0) & RCODE_MASK)

/** The answer of a name server that cannot say: the query's header and question. */
export const failure = (query: Uint8Array): Uint8Array => emptyAnswer(query, SERVFAIL)

/** An answer that has nothing but its code: the query's header and question. */
export function emptyAnswer(query: Uint8Array, code: number): Uint8Array {
  const asked = question(query)
  const reply = Buffer.concat([query.subarray(0, HEADER_BYTES), asked])
  reply[2] = (reply[2] ?? 0) | RESPONSE_BIT
  reply[3] = RECURSION_AVAILABLE_BIT | code
  reply.fill(0, 4)
  reply[5] = asked.length > 0 ? 1 : 0
  reply.set(asked, HEADER_BYTES)
  return reply
}

const isResponse = (message: Uint8Array): boolean => ((message[2] ?? 0) & RESPONSE_BIT) !== 0

/** The one question of a message: its name, type and class (RFC 1035 §4.1.2); empty when there is none or it is broken. */
export function question(message: Uint8Array): Uint8Array {
  if (message[4] !== 0 || message[5] !== 1) return new Uint8Array()
  let at = HEADER_BYTES
  for (let length = message[at]; length; length = message[at]) at += length + 1
  const end = at + 1 + 4
  return end <= message.length ? message.subarray(HEADER_BYTES, end) : new Uint8Array()
}

/** Names are the same in both cases; lengths of labels are below the letters. */
const lowerCase = (name: Uint8Array): Uint8Array =>
  name.map((byte) => (byte >= 0x41 && byte <= 0x5a ? byte + 0x20 : byte))
