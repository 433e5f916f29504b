import { chmodSync, lstatSync, readFileSync, rmSync } from 'node:fs'
import http from 'node:http'
import type { BunRequest, Server } from 'bun'
import { cidrContains, parseCidr } from '../cidr.ts'
import type { Settings } from '../config.ts'
import { type ApiDeps, type Connection, createApi, IDLE_SECONDS } from './app.ts'
import { isClimbing } from './cloud/files.ts'
import { errorAnswer } from './errors.ts'

/** More than the API takes, so that it answers itself in JSON before the parser cuts the connection. */
const PARSER_HEAD_BYTES = 64 * 1024

/** Deepest path of a file whose segments are looked at as they were written. */
const CHECKED_DEPTH = 48

const LOOPBACK = ['127.0.0.0/8', '::1'].flatMap((text) => parseCidr(text) ?? [])

/** The socket of `unix:PATH` is for root and its group, as the data directory is. */
const SOCKET_MODE = 0o660

export interface RunningApi {
  /** Where it listens: `http://127.0.0.1:8787`, `unix:/run/orb.sock`. */
  url: string
  /** Null on a unix socket. */
  port: number | null
  /** Takes no more requests, gives open ones `graceMs`, then cuts them. */
  stop(graceMs: number): Promise<void>
}

/** Serves the API where the settings say. Throws when it cannot listen there. */
export function startApi(deps: ApiDeps): RunningApi {
  const { listen, tls } = deps.settings
  // Bun's way to set the limit of its HTTP parser; the types show it as read-only.
  Object.assign(http, { maxHeaderSize: PARSER_HEAD_BYTES })
  const api = createApi(deps)
  const serve = (request: Request, server: Server<undefined>) =>
    api.answer(request, connectionOf(request, server, deps.settings, false))
  const serveFile = (request: BunRequest, server: Server<undefined>) => {
    const climbs = Object.values(request.params).some(isClimbing)
    return api.answer(request, connectionOf(request, server, deps.settings, climbs))
  }
  const options = {
    development: false,
    // Bodies are limited where they are read: 4 MiB of JSON, 200 MB of a file.
    maxRequestBodySize: Number.MAX_SAFE_INTEGER,
    fetch: serve,
    routes: Object.fromEntries(filePatterns().map((pattern) => [pattern, serveFile])),
    error: (error: Error) => errorAnswer(error, 'unknown'),
    ...(tls ? { tls: { cert: readFileSync(tls.certFile), key: readFileSync(tls.keyFile) } } : {}),
  }
  if (listen.kind === 'unix') removeSocket(listen.path)
  const server =
    listen.kind === 'unix'
      ? Bun.serve({ ...options, unix: listen.path })
      : Bun.serve({ ...options, idleTimeout: IDLE_SECONDS, hostname: listen.host, port: listen.port })
  if (listen.kind === 'unix') chmodSync(listen.path, SOCKET_MODE)

  return {
    url: listen.kind === 'unix' ? `unix:${listen.path}` : server.url.origin,
    port: server.port ?? null,
    async stop(graceMs) {
      api.stop()
      const cut = setTimeout(() => void server.stop(true), graceMs)
      await server.stop()
      clearTimeout(cut)
      if (listen.kind === 'unix') removeSocket(listen.path)
    },
  }
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
  server: Server<undefined>,
  settings: Settings,
  hasClimbingPath: boolean,
): Connection {
  const peer = server.requestIP(request)?.address ?? null
  const forwarded = request.headers.get('x-forwarded-for')
  // The last entry is the one that the trusted proxy itself wrote; those before it are its client's word.
  const named = settings.trustProxy ? forwarded?.split(',').at(-1)?.trim() : undefined
  const isForwarded = forwarded !== null || request.headers.has('forwarded')
  return {
    address: named || (peer ?? 'unix'),
    isLocal: !isForwarded && (peer === null || LOOPBACK.some((block) => cidrContains(block, peer))),
    hasClimbingPath,
    allowIdle: (seconds) => server.timeout(request, seconds ?? 0),
  }
}

/** Removes the socket that an earlier process left; anything else at that path stays and makes listening fail. */
function removeSocket(path: string): void {
  if (lstatSync(path, { throwIfNoEntry: false })?.isSocket()) rmSync(path)
}
