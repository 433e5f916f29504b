import { constants } from 'node:os'
import { Errno, sys } from './libc.ts'
import { inNetns, type Netns } from './netns.ts'

/** Numbers of the system calls: arch/x86/entry/syscalls/syscall_64.tbl and asm-generic/unistd.h. */
const NR =
  process.arch === 'arm64'
    ? { socket: 198, setsockopt: 208, sendto: 206, recvfrom: 207, close: 57 }
    : { socket: 41, setsockopt: 54, sendto: 44, recvfrom: 45, close: 3 }

const AF_NETLINK = 16
const SOCK_RAW_CLOEXEC = 3 | 0o2000000
const NLM_F_REQUEST = 0x1
const NLM_F_ACK = 0x4
const NLM_F_CREATE = 0x400
const NLM_F_DUMP = 0x300
const NLMSG_ERROR = 2
const NLMSG_DONE = 3
const HEADER_BYTES = 16
const RECEIVE_BYTES = 64 * 1024
const SOL_SOCKET = 1
const SO_RCVTIMEO = 20
/** The kernel answers within the call that asks: an answer that is not there after this will not come. */
const RECEIVE_TIMEOUT_S = 2
const MSG_DONTWAIT = 0x40

/** One message of a netlink conversation, linux/netlink.h: header, then `body`. */
function message(type: number, flags: number, sequence: number, body: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(align(HEADER_BYTES + body.length))
  const view = new DataView(bytes.buffer)
  view.setUint32(0, HEADER_BYTES + body.length, true)
  view.setUint16(4, type, true)
  view.setUint16(6, flags, true)
  view.setUint32(8, sequence, true)
  bytes.set(body, HEADER_BYTES)
  return bytes
}

const align = (length: number): number => (length + 3) & ~3

const NESTED = 0x8000

/** A netlink attribute: length, type, value, padding to four bytes. */
function attribute(type: number, value: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(align(4 + value.length))
  const view = new DataView(bytes.buffer)
  view.setUint16(0, 4 + value.length, true)
  view.setUint16(2, type, true)
  bytes.set(value, 4)
  return bytes
}

const nested = (type: number, ...values: Uint8Array[]): Uint8Array => attribute(type | NESTED, Buffer.concat(values))
const text = (type: number, value: string): Uint8Array => attribute(type, Buffer.from(`${value}\0`))

/** A netlink socket. Calls are synchronous: the kernel answers within the system call, in microseconds. */
export class Netlink {
  private sequence = 1
  private readonly buffer = new Uint8Array(RECEIVE_BYTES)

  private constructor(private readonly fd: number) {
    const timeout = new BigUint64Array([BigInt(RECEIVE_TIMEOUT_S), 0n])
    sys(NR.setsockopt, fd, SOL_SOCKET, SO_RCVTIMEO, timeout, timeout.byteLength)
  }

  /**
   * @param protocol linux/netlink.h, @param netnsFd the network namespace to speak of; orb's own when left out.
   * A socket stays in the namespace that it was made in, so the thread is there for a moment only.
   */
  static open(protocol: number, netns?: Netns): Netlink {
    const make = () => new Netlink(sys(NR.socket, AF_NETLINK, SOCK_RAW_CLOEXEC, protocol))
    return netns ? inNetns(netns, make) : make()
  }

  close(): void {
    sys(NR.close, this.fd)
  }

  nextSequence(): number {
    return this.sequence++
  }

  send(...messages: Uint8Array[]): void {
    const bytes = Buffer.concat(messages)
    sys(NR.sendto, this.fd, bytes, bytes.length, 0, 0, 0)
  }

  /**
   * Reads until the acknowledgement of `sequence` or the end of its dump; `each` gets the type and body of what comes
   * before. @throws Errno that the kernel answered
   */
  receive(sequence: number, each: (type: number, body: DataView) => boolean = () => false): void {
    for (;;) {
      const size = sys(NR.recvfrom, this.fd, this.buffer, this.buffer.length, 0, 0, 0)
      const view = new DataView(this.buffer.buffer, 0, size)
      for (let at = 0; at + HEADER_BYTES <= size; at += align(view.getUint32(at, true))) {
        const length = view.getUint32(at, true)
        if (length < HEADER_BYTES) return
        const type = view.getUint16(at + 4, true)
        const error = type === NLMSG_ERROR ? view.getInt32(at + HEADER_BYTES, true) : 0
        // A batch that is refused as a whole is answered under the number of its first message.
        if (error !== 0) throw new Errno(-error, 'netlink')
        if (view.getUint32(at + 8, true) !== sequence) continue
        if (type === NLMSG_DONE || type === NLMSG_ERROR) return
        if (each(type, new DataView(this.buffer.buffer, at + HEADER_BYTES, length - HEADER_BYTES))) return
      }
    }
  }

  /** Throws away what is there to be read. */
  discardAnswers(): void {
    try {
      for (;;) sys(NR.recvfrom, this.fd, this.buffer, this.buffer.length, MSG_DONTWAIT, 0, 0)
    } catch (thrown) {
      if (!(thrown instanceof Errno) || thrown.errno !== constants.errno.EAGAIN) throw thrown
    }
  }
}

function ignoringMissing(ask: () => void): void {
  try {
    ask()
  } catch (thrown) {
    if (!(thrown instanceof Errno) || thrown.errno !== constants.errno.ENOENT) throw thrown
  }
}

/** linux/netlink.h */
const NETLINK_SOCK_DIAG = 4
const NETLINK_NETFILTER = 12

/* ---- nftables set elements: linux/netfilter/nf_tables.h ---------------------------------------------------------- */

const NFNL_MSG_BATCH_BEGIN = 0x10
const NFNL_MSG_BATCH_END = 0x11
const NFNL_SUBSYS_NFTABLES = 10
const NFT_MSG_NEWSETELEM = 12
const NFT_MSG_DELSETELEM = 14
const NFPROTO_INET = 1
const NFTA_SET_ELEM_LIST_TABLE = 1
const NFTA_SET_ELEM_LIST_SET = 2
const NFTA_SET_ELEM_LIST_ELEMENTS = 3
const NFTA_LIST_ELEM = 1
const NFTA_SET_ELEM_KEY = 1
const NFTA_SET_ELEM_TIMEOUT = 4
const NFTA_SET_ELEM_KEY_END = 10
const NFTA_DATA_VALUE = 1

/** An attribute's length has 16 bits: room for some 800 elements of the longest kind. */
const ELEMENTS_PER_MESSAGE = 700

export interface SetElement {
  key: Uint8Array
  /** The last key of an interval that begins at `key`, in sets of intervals. */
  end?: Uint8Array
  /** After this the kernel removes it; for ever when absent. In sets with time-outs. */
  timeoutMs?: number
}

/** One step of a transaction. */
export interface SetChange {
  op: 'add' | 'remove'
  set: string
  elements: SetElement[]
}

const parts = <T>(list: T[]): T[][] =>
  Array.from({ length: Math.ceil(list.length / ELEMENTS_PER_MESSAGE) }, (_, index) =>
    list.slice(index * ELEMENTS_PER_MESSAGE, (index + 1) * ELEMENTS_PER_MESSAGE),
  )

/** Adds and removes elements of nftables sets in one system call each; `nft` as a process costs some ms every time. */
export class NftSets {
  private readonly netlink = Netlink.open(NETLINK_NETFILTER)

  constructor(private readonly table: string) {}

  /** Elements that are there already are no error. */
  add(set: string, keys: Uint8Array[]): void {
    this.change([{ op: 'add', set, elements: keys.map((key) => ({ key })) }])
  }

  /** An element that is not there is no error, but then none of the others is removed either. */
  remove(set: string, keys: Uint8Array[]): void {
    ignoringMissing(() => this.change([{ op: 'remove', set, elements: keys.map((key) => ({ key })) }]))
  }

  /**
   * All changes or none, in their order. An element that is there already is left as it is, its time-out too: to set that
   * anew, add the element, remove it and add it again. @throws Errno, ENOENT for an element to be removed that is not there
   */
  change(changes: SetChange[]): void {
    const steps = changes.flatMap(({ op, set, elements }) => parts(elements).map((part) => ({ op, set, part })))
    if (steps.length === 0) return
    const batch = Uint8Array.of(0, 0, 0, NFNL_SUBSYS_NFTABLES)
    const messages = [message(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, this.netlink.nextSequence(), batch)]
    let sequence = 0
    for (const [index, { op, set, part }] of steps.entries()) {
      sequence = this.netlink.nextSequence()
      // The last one's word that it is done is that of all.
      const acknowledge = index === steps.length - 1 ? NLM_F_ACK : 0
      const flags = NLM_F_REQUEST | acknowledge | (op === 'add' ? NLM_F_CREATE : 0)
      const type = (NFNL_SUBSYS_NFTABLES << 8) | (op === 'add' ? NFT_MSG_NEWSETELEM : NFT_MSG_DELSETELEM)
      messages.push(message(type, flags, sequence, this.elements(set, part)))
    }
    messages.push(message(NFNL_MSG_BATCH_END, NLM_F_REQUEST, this.netlink.nextSequence(), batch))
    this.netlink.send(...messages)
    try {
      this.netlink.receive(sequence)
    } catch (thrown) {
      // Each message that failed has an answer: one left unread would be taken for that of a later transaction.
      this.netlink.discardAnswers()
      throw thrown
    }
  }

  close(): void {
    this.netlink.close()
  }

  private elements(set: string, elements: SetElement[]): Uint8Array {
    const list = elements.map(({ key, end, timeoutMs }) =>
      nested(
        NFTA_LIST_ELEM,
        nested(NFTA_SET_ELEM_KEY, attribute(NFTA_DATA_VALUE, key)),
        ...(end ? [nested(NFTA_SET_ELEM_KEY_END, attribute(NFTA_DATA_VALUE, end))] : []),
        ...(timeoutMs === undefined ? [] : [attribute(NFTA_SET_ELEM_TIMEOUT, bigEndian64(timeoutMs))]),
      ),
    )
    return Buffer.concat([
      Uint8Array.of(NFPROTO_INET, 0, 0, 0),
      text(NFTA_SET_ELEM_LIST_TABLE, this.table),
      text(NFTA_SET_ELEM_LIST_SET, set),
      nested(NFTA_SET_ELEM_LIST_ELEMENTS, ...list),
    ])
  }
}

function bigEndian64(value: number): Uint8Array {
  const bytes = new Uint8Array(8)
  new DataView(bytes.buffer).setBigUint64(0, BigInt(Math.round(value)))
  return bytes
}

/* ---- sockets of a computer: linux/inet_diag.h, linux/sock_diag.h ------------------------------------------------- */

const SOCK_DIAG_BY_FAMILY = 20
const SOCK_DESTROY = 21
const AF_INET = 2
const AF_INET6 = 10
const IPPROTO_TCP = 6
const ALL_STATES = 0xffffffff
/** All but TIME_WAIT, CLOSE, LISTEN and half-made ones of a listener: net/tcp_states.h. */
const CONNECTED_STATES = (1 << 1) | (1 << 2) | (1 << 4) | (1 << 5) | (1 << 8) | (1 << 9) | (1 << 11)
const NO_COOKIE = 0xffffffff
const REQUEST_BYTES = 56
const ID_BYTES = 48
const ANSWER_BYTES = 72
const INET_DIAG_CGROUP_ID = 21

export interface Endpoint {
  /** Four bytes. */
  address: Uint8Array
  port: number
}

/** A set of ports. */
export type Ports = Pick<ReadonlySet<number>, 'has'>

export const sameEndpoint = (one: Endpoint, other: Endpoint): boolean =>
  one.port === other.port && Buffer.compare(one.address, other.address) === 0

/** A TCP connection over IPv4, also one of an IPv6 socket. */
export interface Connection {
  local: Endpoint
  remote: Endpoint
}

interface Found extends Connection {
  family: number
  /** How the kernel names it. */
  id: Uint8Array
}

/** Looks at, and ends, TCP connections inside one network namespace. */
export class SocketDiag {
  private readonly netlink: Netlink

  constructor(netns: { fd: number; own: number }) {
    this.netlink = Netlink.open(NETLINK_SOCK_DIAG, netns)
  }

  close(): void {
    this.netlink.close()
  }

  /** The cgroup that made the connection, by the inode of its v2 directory; null when there is no such connection. */
  cgroupOf({ local, remote }: Connection): bigint | null {
    const sequence = this.netlink.nextSequence()
    const request = diagRequest(AF_INET, ALL_STATES, connectionId(local, remote))
    this.netlink.send(message(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, sequence, request))
    let found: bigint | null = null
    ignoringMissing(() =>
      this.netlink.receive(sequence, (_, body) => {
        found = cgroupAttribute(body)
        return true
      }),
    )
    return found
  }

  /** Open connections that processes of the cgroup made or accepted. */
  connectionsOf(cgroup: bigint): Connection[] {
    return this.list(cgroup)
  }

  /**
   * Resets the cgroup's connections to `remote`: the program sees ECONNABORTED at once instead of waiting for an answer
   * that cannot come. Returns how many there were. @param kept local ports of those that stay
   */
  reset(cgroup: bigint, remote: Endpoint, kept: Ports): number {
    const doomed = this.list(cgroup).filter(
      (found) => sameEndpoint(found.remote, remote) && !kept.has(found.local.port),
    )
    for (const { family, id } of doomed) {
      const sequence = this.netlink.nextSequence()
      const request = diagRequest(family, ALL_STATES, id)
      this.netlink.send(message(SOCK_DESTROY, NLM_F_REQUEST | NLM_F_ACK, sequence, request))
      // One that has ended by itself meanwhile is as good as reset.
      ignoringMissing(() => this.netlink.receive(sequence))
    }
    return doomed.length
  }

  private list(cgroup: bigint): Found[] {
    const found: Found[] = []
    const nowhere = connectionId({ address: new Uint8Array(4), port: 0 }, { address: new Uint8Array(4), port: 0 })
    for (const family of [AF_INET, AF_INET6]) {
      const sequence = this.netlink.nextSequence()
      const request = diagRequest(family, CONNECTED_STATES, nowhere)
      this.netlink.send(message(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, sequence, request))
      this.netlink.receive(sequence, (_, body) => {
        const connection = cgroupAttribute(body) === cgroup ? readConnection(family, body) : null
        if (connection) found.push(connection)
        return false
      })
    }
    return found
  }
}

/** struct inet_diag_sockid without its cookie. */
function connectionId(local: Endpoint, remote: Endpoint): Uint8Array {
  const id = new Uint8Array(ID_BYTES)
  const view = new DataView(id.buffer)
  view.setUint16(0, local.port)
  view.setUint16(2, remote.port)
  id.set(local.address, 4)
  id.set(remote.address, 20)
  view.setUint32(40, NO_COOKIE, true)
  view.setUint32(44, NO_COOKIE, true)
  return id
}

/** struct inet_diag_req_v2. */
function diagRequest(family: number, states: number, id: Uint8Array): Uint8Array {
  const body = new Uint8Array(REQUEST_BYTES)
  body.set([family, IPPROTO_TCP])
  new DataView(body.buffer).setUint32(4, states, true)
  body.set(id, 8)
  return body
}

/** `::ffff:0:0/96`: what an IPv6 socket calls IPv4 addresses. */
const MAPPED = Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff)

/** Reads struct inet_diag_msg; null for a connection that is not IPv4. */
function readConnection(family: number, body: DataView): Found | null {
  const id = new Uint8Array(body.buffer, body.byteOffset + 4, ID_BYTES).slice()
  const addresses = [id.subarray(4, 20), id.subarray(20, 36)].map((bytes) => {
    if (family === AF_INET) return bytes.slice(0, 4)
    return Buffer.compare(bytes.subarray(0, MAPPED.length), MAPPED) === 0 ? bytes.slice(MAPPED.length) : null
  })
  const [local, remote] = addresses
  if (!local || !remote) return null
  return {
    family,
    id,
    local: { address: local, port: body.getUint16(4) },
    remote: { address: remote, port: body.getUint16(6) },
  }
}

function cgroupAttribute(body: DataView): bigint | null {
  for (let at = ANSWER_BYTES; at + 4 <= body.byteLength; at += align(body.getUint16(at, true))) {
    const length = body.getUint16(at, true)
    if (length < 4) return null
    if (body.getUint16(at + 2, true) === INET_DIAG_CGROUP_ID) return body.getBigUint64(at + 4, true)
  }
  return null
}
