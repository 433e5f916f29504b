import { chmodSync, lstatSync, rmSync } from 'node:fs'
import type { SocketHandler } from 'bun'
import { OrbError } from '../errors.ts'
import { log } from '../log.ts'
import type { RequestHead } from './http1.ts'
import type { Header } from './http1-head.ts'
import { ApiBackend, AppBackend } from './ingress-backend.ts'
import { ClientConnection, type Route } from './ingress-connection.ts'
import { apiRequestHead, appRequestHead } from './ingress-head.ts'
import { destinationOf, portOf, splitTarget } from './ingress-host.ts'
import type { PublicDirectory } from './ingress-types.ts'

/** How often `stop` looks whether the open requests are over. */
const STOP_POLL_MS = 20
/** The socket of `unix:PATH` is for root and its group, as the data directory is. */
const SOCKET_MODE = 0o660
/** What listening on every address of a dual socket calls IPv4 peers. */
const MAPPED_PREFIX = '::ffff:'

export interface FrontOptions {
  listen: { kind: 'tcp'; host: string; port: number } | { kind: 'unix'; path: string }
  tls: { cert: Buffer; key: Buffer } | null
  /** Base domain, in lower case. */
  domain: string
  directory: PublicDirectory
  /** Socket of the API. `peerHeader` tells it who sent a request: its name in lower case, and the value's secret beginning. */
  api: { path: string; peerHeader: string; secret: string }
  /** Believe X-Forwarded-* of the peer (ORB_TRUST_PROXY). */
  trustProxy: boolean
  /** Longest hold of a request for a wake (ORB_WAKE_TIMEOUT). */
  wakeTimeoutMs: number
}

export interface Front {
  /** Null on a unix socket. */
  port: number | null
  /** Takes no more requests, gives open ones `graceMs`, then cuts them; WebSockets of apps are cut at once. */
  stop(graceMs: number): Promise<void>
}

/**
 * The front door (Orb Cloud contract §12.3): one listening socket for the API and for public traffic, told apart by Host.
 * It is a plain TCP server with orb's own HTTP/1.1 parser and not Bun.serve, for only so do the bytes of apps pass as
 * they are, WebSockets included, and requests are held with their body unread. The API's requests go on, head by head, to
 * a socket of this process that Bun.serve listens on, since one connection of a reverse proxy may carry both kinds.
 */
export function startFront(options: FrontOptions): Front {
  const { listen, tls } = options
  const connections = new Set<ClientConnection>()
  let accepting = true
  const route = createRoute(options)

  const socket: SocketHandler<ClientConnection> = {
    open(client) {
      client.setNoDelay(true)
      const connection = new ClientConnection(
        client,
        listen.kind === 'unix' ? 'unix' : plainAddress(client.remoteAddress),
        route,
        () => accepting,
        (closed) => connections.delete(closed),
      )
      client.data = connection
      connections.add(connection)
    },
    data(client, bytes) {
      client.data.onData(bytes)
    },
    drain(client) {
      client.data.onDrain()
    },
    timeout(client) {
      client.data.onTimeout()
    },
    close(client) {
      client.data?.onClose()
    },
    error(client, error) {
      log('error', 'public connection failed', { error })
      if (client.data) client.data.abort()
      else client.terminate()
    },
  }

  if (listen.kind === 'unix') removeSocket(listen.path)
  const listener =
    listen.kind === 'unix'
      ? Bun.listen<ClientConnection>({ unix: listen.path, socket })
      : Bun.listen<ClientConnection>({ hostname: listen.host, port: listen.port, socket, ...(tls ? { tls } : {}) })
  if (listen.kind === 'unix') chmodSync(listen.path, SOCKET_MODE)

  return {
    port: 'port' in listener ? (listener.port ?? null) : null,
    async stop(graceMs) {
      accepting = false
      listener.stop()
      for (const connection of connections) if (!connection.busy) connection.abort()
      const deadline = performance.now() + graceMs
      while (performance.now() < deadline && connections.size > 0) await Bun.sleep(STOP_POLL_MS)
      for (const connection of connections) connection.abort()
      if (listen.kind === 'unix') removeSocket(listen.path)
    },
  }
}

function createRoute(options: FrontOptions): Route {
  const api = new ApiBackend(options.api.path)
  const { peerHeader, secret } = options.api
  return (head: RequestHead, address: string) => {
    const { authority, path } = splitTarget(head)
    const destination = destinationOf(authority, options.domain)
    if (destination.kind === 'api') {
      const value = `${secret} ${address}`
      const peer: Header = { name: peerHeader, value, line: `${peerHeader}: ${value}` }
      return { backend: api, head: apiRequestHead(head, authority, path, peer) }
    }
    const { host, label } = destination
    if (!options.directory.mayReach(address, host)) {
      throw new OrbError('forbidden', `${host} is not in network.outbound of this computer.`)
    }
    const computer = options.directory.find(label)
    if (computer === null) throw new OrbError('unknown_host', 'There is no computer of this name.')
    const inside = portOf(path, computer.ports)
    const sender = { address, secure: options.tls !== null, trusted: options.trustProxy }
    return {
      backend: new AppBackend(computer, inside.port, options.wakeTimeoutMs),
      head: appRequestHead(head, authority, inside.path, sender),
    }
  }
}

const plainAddress = (address: string): string =>
  address.startsWith(MAPPED_PREFIX) ? address.slice(MAPPED_PREFIX.length) : address

/** Removes the socket that an earlier process left; anything else at that path stays and makes listening fail. */
function removeSocket(path: string): void {
  if (lstatSync(path, { throwIfNoEntry: false })?.isSocket()) rmSync(path)
}
