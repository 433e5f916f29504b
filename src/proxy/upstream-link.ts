import { lookup } from 'node:dns/promises'
import { isIP } from 'node:net'
import type { Socket, SocketHandler } from 'bun'
import { type AllowEntry, allowed, isPrivate } from '../addresses.ts'
import { messageOf, OrbError } from '../errors.ts'
import { log } from '../log.ts'
import type { UpstreamTarget } from './upstream-url.ts'

/** A failed connect is tried anew this often, within the time below (Orb Cloud contract §11.1). */
const CONNECT_RETRIES = 2
const CONNECT_TOTAL_MS = 5_000
/** Where a name has several addresses, a silent one must leave time for the others. */
const CONNECT_ONE_OF_MANY_MS = 2_000
const RETRY_PAUSE_MS = 150
/** Below the 5 s after which common servers (Node's default) drop an idle connection: a request never meets that close. */
const IDLE_MS = 4_000
const MAX_IDLE_PER_ORIGIN = 64
/** Agents' calls wait for minutes; NAT boxes on the way forget a silent connection sooner. */
const KEEPALIVE_MS = 30_000
/** The protocol list of RFC 7301 §3.1: one name, its length before it. */
const ALPN_HTTP1 = '\x08http/1.1'

export interface LinkOwner {
  onData(bytes: Buffer): void
  onDrain(): void
  /** `broken`: by a reset or an error, not by an orderly end. */
  onClose(broken: boolean): void
}

type Lookup = (host: string) => Promise<string[]>

export interface LinksOptions {
  allowPrivate: readonly AllowEntry[]
  /** PEM of the authorities to trust instead of the system's. */
  ca?: string
  /** Addresses of a name; default: the system's resolver. */
  resolve?: Lookup
}

/** One connection to an upstream. It has an owner while a call uses it. */
export class Link {
  owner: LinkOwner | null = null
  closed = false

  constructor(
    private readonly socket: Socket<Dialing>,
    readonly origin: string,
  ) {}

  /** Returns how many bytes the kernel took; the rest waits for `onDrain`. */
  write(bytes: Uint8Array): number {
    return this.closed ? 0 : Math.max(0, this.socket.write(bytes))
  }

  pause(): void {
    if (!this.closed) this.socket.pause()
  }

  resume(): void {
    if (!this.closed) this.socket.resume()
  }

  destroy(): void {
    this.owner = null
    this.socket.terminate()
  }
}

/** What a socket of ours points to, from the connect on. */
interface Dialing {
  link: Link | null
  settle(error: Error | null, socket: Socket<Dialing> | null): void
  /** Of a TLS connection, which opens only with its handshake. */
  secure: boolean
}

/** Connections to upstreams: resolves, checks and pins addresses, connects, and keeps idle connections for a while. */
export class UpstreamLinks {
  private readonly idle = new Map<string, { link: Link; timer: Timer }[]>()
  private readonly resolve: Lookup

  constructor(private readonly options: LinksOptions) {
    this.resolve = options.resolve ?? systemLookup
  }

  /** An idle connection to the target, whose address was checked when it was made. */
  take(target: UpstreamTarget): Link | undefined {
    const stack = this.idle.get(originOf(target))
    for (let entry = stack?.pop(); entry !== undefined; entry = stack?.pop()) {
      clearTimeout(entry.timer)
      if (!entry.link.closed) return entry.link
    }
    return undefined
  }

  /** Gives back a connection on which the last exchange ended cleanly. */
  release(link: Link): void {
    const stack = this.idle.get(link.origin) ?? []
    if (link.closed || stack.length >= MAX_IDLE_PER_ORIGIN) {
      link.destroy()
      return
    }
    this.idle.set(link.origin, stack)
    const drop = () => {
      clearTimeout(entry.timer)
      const at = stack.indexOf(entry)
      if (at !== -1) stack.splice(at, 1)
      if (stack.length === 0 && this.idle.get(link.origin) === stack) this.idle.delete(link.origin)
      link.destroy()
    }
    const entry = { link, timer: setTimeout(drop, IDLE_MS) }
    entry.timer.unref()
    // Bytes that nobody asked for would be taken for the answer to the next request.
    link.owner = { onData: drop, onDrain() {}, onClose: drop }
    stack.push(entry)
  }

  /** A new connection. Throws OrbError `upstream_forbidden` or `upstream_unreachable`. */
  async connect(target: UpstreamTarget): Promise<Link> {
    const deadline = performance.now() + CONNECT_TOTAL_MS
    let reason = ''
    for (let attempt = 0; attempt <= CONNECT_RETRIES; attempt++) {
      if (attempt > 0) await Bun.sleep(RETRY_PAUSE_MS)
      const left = deadline - performance.now()
      if (left <= 0) break
      try {
        const addresses = this.permitted(target, await withTimeout(this.addressesOf(target.host), left))
        const ip = addresses[attempt % addresses.length] ?? ''
        const limit = addresses.length > 1 ? CONNECT_ONE_OF_MANY_MS : CONNECT_TOTAL_MS
        return await this.dial(target, ip, Math.min(limit, deadline - performance.now()))
      } catch (error) {
        if (error instanceof OrbError) throw error
        reason = messageOf(error)
      }
    }
    throw new OrbError('upstream_unreachable', `Cannot connect to ${target.authority}: ${reason}.`)
  }

  /** Drops the idle connections. */
  close(): void {
    for (const stack of this.idle.values()) {
      for (const { link, timer } of stack) {
        clearTimeout(timer)
        link.destroy()
      }
    }
    this.idle.clear()
  }

  private async addressesOf(host: string): Promise<string[]> {
    return isIP(host) !== 0 ? [host] : alternateFamilies(await this.resolve(host))
  }

  private permitted(target: UpstreamTarget, addresses: string[]): string[] {
    const { host, port, secure } = target
    if (addresses.length === 0) throw new Error('the name has no address')
    const open = addresses.filter(
      (ip) => (secure && !isPrivate(ip)) || allowed(this.options.allowPrivate, host, port, ip),
    )
    if (open.length > 0) return open
    const why = addresses.some((ip) => isPrivate(ip)) ? 'its address is private' : 'it is plain http'
    throw new OrbError('upstream_forbidden', `${target.authority} is not allowed as an upstream: ${why}.`)
  }

  private dial(target: UpstreamTarget, ip: string, timeoutMs: number): Promise<Link> {
    const { promise, resolve, reject } = Promise.withResolvers<Link>()
    let settled = false
    const dialing: Dialing = {
      link: null,
      secure: target.secure,
      settle(error, socket) {
        if (settled) {
          if (error === null) socket?.terminate()
          return
        }
        settled = true
        clearTimeout(timer)
        if (error !== null || socket === null) {
          socket?.terminate()
          reject(error ?? new Error('the connection was not made'))
          return
        }
        socket.setNoDelay(true)
        socket.setKeepAlive(true, KEEPALIVE_MS)
        dialing.link = new Link(socket, originOf(target))
        resolve(dialing.link)
      },
    }
    let attempted: Socket<Dialing> | null = null
    const timer = setTimeout(() => dialing.settle(new Error('it does not answer'), attempted), timeoutMs)
    const tls = { serverName: target.host, ca: this.options.ca, ALPNProtocols: ALPN_HTTP1, rejectUnauthorized: true }
    Bun.connect<Dialing>({
      hostname: ip,
      port: target.port,
      data: dialing,
      socket: HANDLERS,
      tls: target.secure ? tls : undefined,
    }).then(
      (socket) => {
        attempted = socket
      },
      (error) => dialing.settle(error, null),
    )
    return promise
  }
}

const HANDLERS: SocketHandler<Dialing> = {
  open(socket) {
    if (!socket.data.secure) socket.data.settle(null, socket)
  },
  handshake(socket, success, authorizationError) {
    if (success && authorizationError === null) {
      socket.data.settle(null, socket)
      return
    }
    // No retry makes a certificate valid.
    const why = authorizationError?.message ?? 'the TLS handshake failed'
    socket.data.settle(
      new OrbError('upstream_unreachable', `No trusted TLS connection to the upstream: ${why}.`),
      socket,
    )
  },
  data(socket, bytes) {
    socket.data.link?.owner?.onData(bytes)
  },
  drain(socket) {
    socket.data.link?.owner?.onDrain()
  },
  close(socket, error) {
    const { link, settle } = socket.data
    if (link === null) {
      settle(error ?? new Error('it closed the connection'), null)
      return
    }
    link.closed = true
    link.owner?.onClose(error !== undefined)
  },
  error(socket, error) {
    if (socket.data.link === null) {
      socket.data.settle(error, socket)
      return
    }
    log('warn', 'upstream connection failed', { error })
    socket.terminate()
  },
  connectError(socket, error) {
    socket.data.settle(error, null)
  },
}

const originOf = (target: UpstreamTarget): string => `${target.secure}|${target.host}|${target.port}`

const systemLookup: Lookup = async (host) =>
  (await lookup(host, { all: true, verbatim: true })).map(({ address }) => address)

/** Both families take turns: on a host without a route for one of them the next attempt takes the other. */
function alternateFamilies(addresses: string[]): string[] {
  const v4 = addresses.filter((ip) => isIP(ip) === 4)
  const v6 = addresses.filter((ip) => isIP(ip) === 6)
  const [first, second] = isIP(addresses[0] ?? '') === 6 ? [v6, v4] : [v4, v6]
  const mixed: string[] = []
  for (let i = 0; i < Math.max(first.length, second.length); i++) {
    for (const ip of [first[i], second[i]]) if (ip !== undefined) mixed.push(ip)
  }
  return mixed
}

async function withTimeout<T>(work: Promise<T>, timeoutMs: number): Promise<T> {
  const { promise, reject } = Promise.withResolvers<never>()
  const timer = setTimeout(() => reject(new Error('its name does not resolve in time')), timeoutMs)
  try {
    return await Promise.race([work, promise])
  } finally {
    clearTimeout(timer)
  }
}
