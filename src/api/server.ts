import { randomUUID } from 'node:crypto'
import http from 'node:http'
import type { BunRequest, Server } from 'bun'
import { cidrContains, parseCidr } from '../cidr.ts'
import type { Settings } from '../config.ts'
import { OrbError } from '../errors.ts'
import { openFront, type PublicDirectory } from '../services/front.ts'
import { type ApiDeps, type Connection, createApi, IDLE_SECONDS } from './app.ts'
import { isClimbing } from './cloud/files.ts'
import { errorAnswer } from './errors.ts'
import { createTerminalSockets, type SocketData } from './terminal-socket.ts'

/** More than the API takes, so that it answers itself in JSON before the parser cuts the connection. */
const PARSER_HEAD_BYTES = 64 * 1024

/** Deepest path of a file whose segments are looked at as they were written. */
const CHECKED_DEPTH = 48

/**
 * For the inner server, to which only the front door comes, which has the limits. Bun's own 10 s would hold for requests
 * without a body, whatever is set while their handler is called. Its types know no limit on Unix sockets.
 */
const NO_IDLE_LIMIT: object = { idleTimeout: 0 }

const LOOPBACK = ['127.0.0.0/8', '::1'].flatMap((text) => parseCidr(text) ?? [])

/** RFC 9110 §15.2.2. */
const SWITCHED = 101

/** Tells who sent a request: the front door's secret and the address. */
const PEER_HEADER = 'x-orb-peer'

export interface ServerDeps extends ApiDeps {
  /** Whose public traffic comes in by the same door. */
  publicDirectory: PublicDirectory
  /** Another address to listen on, with the same port. */
  alsoOn?: string
}

export interface RunningApi {
  /** Where it listens: `http://127.0.0.1:8787`, `unix:/run/orb.sock`. */
  url: string
  /** Null on a unix socket. */
  port: number | null
  /** Takes no more requests, gives open ones `graceMs`, then cuts them. */
  stop(graceMs: number): Promise<void>
}

/** Serves the API, and public traffic to agents, where the settings say. Throws when it cannot listen there. */
export function startApi(deps: ServerDeps): RunningApi {
  const { settings } = deps
  // Bun's way to set the limit of its HTTP parser; the types show it as read-only.
  Object.assign(http, { maxHeaderSize: PARSER_HEAD_BYTES })
  const api = createApi(deps)
  // An abstract socket needs no file, but every process of the host may connect to it: the secret tells the front door.
  const path = `\0orb-api-${randomUUID()}`
  const secret = randomUUID()
  const sockets = createTerminalSockets()
  const answer = async (request: Request, server: Server<SocketData>, climbs: boolean) => {
    const address = peerOf(request, secret)
    if (address === null) return untold(new OrbError('forbidden', 'this is not the way in'))
    server.timeout(request, IDLE_SECONDS)
    const answer = await api.answer(request, connectionOf(request, server, settings, address, climbs))
    // The connection is a WebSocket's now.
    return answer.status === SWITCHED ? undefined : answer
  }
  const options = {
    development: false,
    // Bodies are limited where they are read: 4 MiB of JSON, 200 MB of a file.
    maxRequestBodySize: Number.MAX_SAFE_INTEGER,
    websocket: sockets.handler,
    fetch: (request: Request, server: Server<SocketData>) => answer(request, server, false),
    routes: Object.fromEntries(
      filePatterns().map((pattern) => [
        pattern,
        (request: BunRequest, server: Server<SocketData>) =>
          answer(request, server, Object.values(request.params).some(isClimbing)),
      ]),
    ),
    error: untold,
  }
  const server = Bun.serve({ ...options, unix: path, ...NO_IDLE_LIMIT })
  const open = (host?: string) =>
    openFront(settings, deps.publicDirectory, { path, peerHeader: PEER_HEADER, secret }, host)
  const front = open()
  const fronts = deps.alsoOn === undefined ? [front] : [front, open(deps.alsoOn)]

  return {
    url: urlOf(settings, front.port),
    port: front.port,
    async stop(graceMs) {
      api.stop()
      sockets.close()
      await Promise.all(fronts.map((one) => one.stop(graceMs)))
      await server.stop(true)
    },
  }
}

/** The answer to what never became a request of the API. */
function untold(error: Error): Response {
  const id = randomUUID()
  const answer = errorAnswer(error, id)
  answer.headers.set('x-request-id', id)
  return answer
}

function urlOf({ listen, tls }: Settings, port: number | null): string {
  if (listen.kind === 'unix') return `unix:${listen.path}`
  const host = listen.host.includes(':') ? `[${listen.host}]` : listen.host
  return `${tls ? 'https' : 'http'}://${host}:${port}`
}

/** The address that the front door tells, `unix` for the peer of a unix socket; null for who came another way. */
function peerOf(request: Request, secret: string): string | null {
  const [told, address] = request.headers.get(PEER_HEADER)?.split(' ') ?? []
  return told === secret && address !== undefined ? address : null
}

/**
 * By the time a request can be seen its URL has been normalised: `files/a/%2e%2e/b` reads `files/b`. Patterns are matched
 * before that, so with one for each depth the segments can be seen as they were sent.
 */
function filePatterns(): string[] {
  const base = '/v1/computers/:id/files'
  const segments = Array.from({ length: CHECKED_DEPTH }, (_, depth) => `/:s${depth}`)
  return segments.flatMap((_, depth) => {
    const pattern = `${base}${segments.slice(0, depth + 1).join('')}`
    return [pattern, `${pattern}/`]
  })
}

function connectionOf(
  request: Request,
  server: Server<SocketData>,
  settings: Settings,
  peer: string,
  hasClimbingPath: boolean,
): Connection {
  const forwarded = request.headers.get('x-forwarded-for')
  // The last entry is the one that the trusted proxy itself wrote; those before it are its client's word.
  const named = settings.trustProxy ? forwarded?.split(',').at(-1)?.trim() : undefined
  const isForwarded = forwarded !== null || request.headers.has('forwarded')
  return {
    address: named || peer,
    isLocal: !isForwarded && (peer === 'unix' || LOOPBACK.some((block) => cidrContains(block, peer))),
    hasClimbingPath,
    allowIdle: (seconds) => server.timeout(request, seconds ?? 0),
    upgrade: (visit) => server.upgrade(request, { data: { visit, keepAlive: null } }),
  }
}
