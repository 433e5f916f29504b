import { ptr } from 'bun:ffi'
import { closeSync, openSync } from 'node:fs'
import { errnoCode, sys } from './libc.ts'
import { inNetns, type Netns } from './netns.ts'

/** Numbers of the system calls: arch/x86/entry/syscalls/syscall_64.tbl and asm-generic/unistd.h. */
const NR =
  process.arch === 'arm64'
    ? { socket: 198, connect: 203, setsockopt: 208, fcntl: 25, shutdown: 210 }
    : { socket: 41, connect: 42, setsockopt: 54, fcntl: 72, shutdown: 48 }

const STREAM_NONBLOCK_CLOEXEC = 1 | 0o4000 | 0o2000000
const F_DUPFD_CLOEXEC = 1030
const SOL_SOCKET = 1
const SO_ATTACH_FILTER = 26
const SO_DETACH_FILTER = 27
const SHUT_RDWR = 2

/** Address families of linux/socket.h. */
const AF_INET = 2
const AF_INET6 = 10

/** Instructions of classic BPF (linux/filter.h) over the TCP header: code, jump if true, jump if false, operand. */
type Instruction = [code: number, jt: number, jf: number, k: number]

const LOAD_BYTE = 0x30
const JUMP_IF_SET = 0x45
const RETURN = 0x06
const TCP_FLAGS_AT = 13
const TCP_RST = 0x04
const DROP = 0
const PASS = 0xffffffff

/** A struct sock_fprog, number of instructions and where they are, with the memory that it points into. */
function filter(...instructions: Instruction[]): { program: Uint8Array; code: Uint8Array } {
  const code = new Uint8Array(instructions.length * 8)
  const view = new DataView(code.buffer)
  for (const [index, [op, jt, jf, k]] of instructions.entries()) {
    view.setUint16(index * 8, op, true)
    view.setUint8(index * 8 + 2, jt)
    view.setUint8(index * 8 + 3, jf)
    view.setUint32(index * 8 + 4, k, true)
  }
  const program = new Uint8Array(16)
  const head = new DataView(program.buffer)
  head.setUint16(0, instructions.length, true)
  head.setBigUint64(8, BigInt(ptr(code)), true)
  return { program, code }
}

const NOTHING = filter([RETURN, 0, 0, DROP])
const NO_RESET = filter(
  [LOAD_BYTE, 0, 0, TCP_FLAGS_AT],
  [JUMP_IF_SET, 0, 1, TCP_RST],
  [RETURN, 0, 0, DROP],
  [RETURN, 0, 0, PASS],
)
const NO_VALUE = new Uint8Array(4)

/** `127.0.0.1` or `::1`, as struct sockaddr_in or sockaddr_in6. */
function loopback(family: 4 | 6, port: number): Uint8Array {
  const address = new Uint8Array(family === 4 ? 16 : 28)
  const view = new DataView(address.buffer)
  view.setUint16(0, family === 4 ? AF_INET : AF_INET6, true)
  view.setUint16(2, port)
  if (family === 4) address.set([127, 0, 0, 1], 4)
  else address[23] = 1
  return address
}

/**
 * A connection of orb to a program in a computer, from inside the computer's network namespace: so programs that listen
 * on the loopback alone are reached too, and nothing has to be set up for it.
 */
export class AppSocket {
  private readonly fd: number
  private adopted = false
  private closed = false
  private locked = false
  /** A second descriptor of the socket, for the lock: good for as long as this object is, whoever owns the first. */
  private readonly guard: number
  private readonly address: Uint8Array

  constructor(
    netns: Netns,
    family: 4 | 6,
    port: number,
    private readonly onClose: (socket: AppSocket) => void,
  ) {
    this.address = loopback(family, port)
    this.fd = inNetns(netns, () => sys(NR.socket, family === 4 ? AF_INET : AF_INET6, STREAM_NONBLOCK_CLOEXEC, 0))
    this.guard = sys(NR.fcntl, this.fd, F_DUPFD_CLOEXEC, 0)
  }

  /** Begins to connect, or looks how that stands. `pending`: the program's queue is full, ask again. @throws Errno */
  connect(): 'connected' | 'refused' | 'pending' {
    for (;;) {
      try {
        sys(NR.connect, this.fd, this.address, this.address.length)
        return 'connected'
      } catch (thrown) {
        const code = errnoCode(thrown)
        // Over loopback the handshake is over by now: the second look tells.
        if (code === 'EINPROGRESS' || code === 'EINTR') continue
        if (code === 'EISCONN') return 'connected'
        if (code === 'EALREADY') return 'pending'
        if (code === 'ECONNREFUSED') return 'refused'
        // No IPv6 in this kernel, or no ::1.
        if (code === 'EADDRNOTAVAIL' || code === 'ENETUNREACH') return 'refused'
        throw thrown
      }
    }
  }

  /** The descriptor, for somebody who closes it himself. */
  adopt(): number {
    this.adopted = true
    return this.fd
  }

  /** To be called once the adopted descriptor is closed, too: until then the connection is not over. */
  close(): void {
    if (this.closed) return
    this.closed = true
    this.onClose(this)
    if (!this.adopted) closeSync(this.fd)
    closeSync(this.guard)
  }

  /** No packet comes in. */
  lock(): void {
    this.attach(NOTHING)
  }

  /** No reset comes in. */
  expect(): void {
    if (this.locked) this.attach(NO_RESET)
  }

  /** Ends the connection, whatever the other side may be. */
  breakOff(): void {
    try {
      sys(NR.shutdown, this.guard, SHUT_RDWR)
    } catch (thrown) {
      if (errnoCode(thrown) !== 'ENOTCONN') throw thrown
    }
  }

  unlock(): void {
    if (!this.locked) return
    this.locked = false
    sys(NR.setsockopt, this.guard, SOL_SOCKET, SO_DETACH_FILTER, NO_VALUE, NO_VALUE.length)
  }

  private attach({ program }: { program: Uint8Array }): void {
    this.locked = true
    sys(NR.setsockopt, this.guard, SOL_SOCKET, SO_ATTACH_FILTER, program, program.length)
  }
}

/**
 * All connections of orb to programs in computers. Those of a sleeping agent are locked: orb's end takes no packet. So
 * the reset with which the namespace answers for the missing socket is not heard, and neither is an acknowledgement of
 * what came too late for the image: TCP sends that again after the wake.
 */
export class AppSockets {
  private readonly sockets = new Map<string, Set<AppSocket>>()

  /** A socket that is not connected yet. @throws Errno */
  open(shortId: string, netnsFile: string, ownNetns: number, family: 4 | 6, port: number): AppSocket {
    const fd = openSync(netnsFile, 'r')
    try {
      const set = this.sockets.get(shortId) ?? new Set()
      const socket = new AppSocket({ fd, own: ownNetns }, family, port, (closed) => {
        set.delete(closed)
        if (set.size === 0 && this.sockets.get(shortId) === set) this.sockets.delete(shortId)
      })
      this.sockets.set(shortId, set.add(socket))
      return socket
    } finally {
      closeSync(fd)
    }
  }

  lock(shortId: string): void {
    for (const socket of this.sockets.get(shortId) ?? []) socket.lock()
  }

  /**
   * The agent is being restored: from here on what comes is from it. It asks at once what room orb's end has now, and
   * must be heard, or would ask again only after seconds; the namespace may still answer for it with a reset.
   */
  expect(shortId: string): void {
    for (const socket of this.sockets.get(shortId) ?? []) socket.expect()
  }

  unlock(shortId: string): void {
    for (const socket of this.sockets.get(shortId) ?? []) socket.unlock()
  }
  breakOff(shortId: string): void {
    for (const socket of this.sockets.get(shortId) ?? []) socket.breakOff()
  }
}
