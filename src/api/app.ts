import { randomUUID } from 'node:crypto'
import { Elysia } from 'elysia'
import type { Settings } from '../config.ts'
import { OrbError } from '../errors.ts'
import { log } from '../log.ts'
import type { Metrics } from '../services/metrics.ts'
import type { Services, TerminalVisit } from '../services/types.ts'
import { authenticate, authorize } from './auth.ts'
import { climbingPath } from './cloud/files.ts'
import { cloudRoutes } from './cloud/routes.ts'
import { errorAnswer } from './errors.ts'
import { openApiDocument } from './openapi.ts'
import type { Method, Route } from './route.ts'
import { docsRoutes } from './system/docs.ts'
import { healthRoutes } from './system/health.ts'
import { metricsRoutes } from './system/metrics.ts'

/** URL and headers together (Orb Cloud contract §20). */
const HEAD_BYTES = 32 * 1024

/** Where Elysia starts to look for the first slash of the path. */
const ELYSIA_PATH_OFFSET = 11

/** What a 405 says beyond the method's name. */
const METHOD_HINTS: Record<string, string> = {
  'DELETE /v1/computers/:id/agents': 'to end the agent use POST /v1/computers/{id}/restart',
}

export interface ApiDeps {
  services: Services
  settings: Settings
  metrics: Metrics
  version: string
}

/** What the server knows of a request and the request itself does not tell. */
export interface Connection {
  address: string
  isLocal: boolean
  /** Whether the path of a file was written with `..` segments, which the URL of the request does not show. */
  hasClimbingPath: boolean
  /** Sets how long the connection may stay without bytes; null: for ever. */
  allowIdle(seconds: number | null): void
  upgrade(visit: TerminalVisit): boolean
}

export interface Api {
  answer(request: Request, connection: Connection): Promise<Response>
  /** From now on requests are refused with 503 and endless answers end. */
  stop(): void
}

/** A request with what is found out on the way to its answer. */
interface Exchange {
  id: string
  connection: Connection
  route: Route | null
  /** Headers that the answer gets, whatever it is. */
  headers: Map<string, string>
}

/** Idle limit of a connection between requests and while a request comes in, in seconds. */
export const IDLE_SECONDS = 60

/** The HTTP API. It answers everything, errors and unknown paths included, with a `X-Request-Id`. */
export function createApi(deps: ApiDeps): Api {
  const { services, settings } = deps
  const routes: Route[] = [
    ...cloudRoutes(services, settings),
    ...healthRoutes(services),
    ...metricsRoutes(services, settings.metricsToken),
    ...docsRoutes(() => openApiDocument(routes, { version: deps.version, serverUrl: settings.publicUrl })),
  ]
  const exchanges = new WeakMap<Request, Exchange>()
  const stopping = new AbortController()
  // Without `parse: 'none'` Elysia would read bodies by their content type, and whole.
  const app = new Elysia({ strictPath: false }).onError({ as: 'global' }, ({ code, error, request }) =>
    errorAnswer(code === 'NOT_FOUND' ? unknownPath(request, routes) : error, exchanges.get(request)?.id ?? ''),
  )
  for (const route of routes) {
    for (const path of [route.path, ...(route.aliases ?? [])]) {
      app.route(route.method, path, ({ request, params }) => run(route, request, params ?? {}), { parse: 'none' })
    }
  }

  async function run(route: Route, request: Request, params: Record<string, string>): Promise<Response> {
    const exchange = exchanges.get(request)
    if (!exchange) throw new Error('a request came past the front door')
    const { id, connection } = exchange
    exchange.route = route
    try {
      const who =
        route.access === 'public' ? null : await authenticate(request, services.accounts, route.keyInQuery ?? false)
      const changes = route.changes ?? route.method !== 'GET'
      if (who) authorize(who, { access: route.access, changes, computerId: params['id'] })
      return await route.run({
        request,
        params,
        who,
        requestId: id,
        address: connection.address,
        isLocal: connection.isLocal,
        stopping: stopping.signal,
        setHeader: (name, value) => void exchange.headers.set(name, value),
        holdOpen: () => connection.allowIdle(null),
        upgrade: (visit) => connection.upgrade(visit),
      })
    } catch (error) {
      return errorAnswer(isHangUp(error, request) ? new OrbError('invalid_request', 'the body was cut off') : error, id)
    }
  }

  async function dispatch(request: Request, exchange: Exchange): Promise<Response> {
    const refusal = refuse(request, stopping.signal)
    if (refusal) return errorAnswer(refusal, exchange.id)
    if (exchange.connection.hasClimbingPath) {
      await authenticate(request, services.accounts)
      throw climbingPath()
    }
    const answer = await app.handle(routable(request, exchange))
    // The limit was off while the handler worked; an answer that is complete needs that no more.
    if (isComplete(answer)) exchange.connection.allowIdle(IDLE_SECONDS)
    return request.method === 'HEAD' ? withoutBody(answer) : answer
  }

  /**
   * The request as Elysia can route it. HEAD is answered like GET here, for Elysia's own way reads the whole body, and a
   * followed log never ends. And Elysia looks for the path behind the shortest usual host: with `Host: a` it would cut it.
   */
  function routable(request: Request, exchange: Exchange): Request {
    const { url, method } = request
    const pathStart = url.indexOf('/', 'https://'.length)
    if (method !== 'HEAD' && pathStart >= ELYSIA_PATH_OFFSET) return request
    const target = `http://localhost${url.slice(pathStart)}`
    const prepared = new Request(new Request(target, request), { method: method === 'HEAD' ? 'GET' : method })
    exchanges.set(prepared, exchange)
    return prepared
  }

  return {
    async answer(request, connection) {
      const startedAt = performance.now()
      const exchange: Exchange = { id: randomUUID(), connection, route: null, headers: new Map() }
      exchanges.set(request, exchange)
      const answer = await dispatch(request, exchange).catch((error: unknown) => errorAnswer(error, exchange.id))
      for (const [name, value] of exchange.headers) answer.headers.set(name, value)
      answer.headers.set('x-request-id', exchange.id)
      if (stopping.signal.aborted) answer.headers.set('connection', 'close')
      record(deps.metrics, request, answer, exchange, (performance.now() - startedAt) / 1000)
      return answer
    },
    stop: () => stopping.abort(),
  }
}

/** A client that left while its body was read is no failure of this machine. */
const isHangUp = (error: unknown, request: Request): boolean =>
  request.signal.aborted && error instanceof Error && error.name === 'AbortError'

const isComplete = (answer: Response): boolean => /^application\/json/.test(answer.headers.get('content-type') ?? '')

/** The reason not to look at a request at all, or null. */
function refuse(request: Request, stopping: AbortSignal): OrbError | null {
  if (stopping.aborted) return new OrbError('shutting_down', 'the server is stopping')
  // Bun leaves the bare target when the Host header makes no URL.
  if (!URL.canParse(request.url)) return new OrbError('invalid_request', 'the Host header is not valid')
  if (headBytes(request) > HEAD_BYTES) {
    return new OrbError('headers_too_large', `URL and headers must be at most ${HEAD_BYTES} bytes together`)
  }
  return null
}

function headBytes({ url, headers }: Request): number {
  let bytes = url.length
  for (const [name, value] of headers) bytes += name.length + value.length
  return bytes
}

/** 405 when the path exists under other methods (RFC 9110 §15.5.6), else 404. */
function unknownPath(request: Request, routes: Route[]): OrbError {
  const { pathname } = new URL(request.url)
  const others = routes.filter((route) =>
    [route.path, ...(route.aliases ?? [])].some((path) => matches(path, pathname)),
  )
  if (others.length === 0) return new OrbError('not_found', 'no such path')
  const methods = new Set<Method | 'HEAD'>(others.map((route) => route.method))
  if (methods.has('GET')) methods.add('HEAD')
  const allow = [...methods].join(', ')
  const hint = others.map(({ path }) => METHOD_HINTS[`${request.method} ${path}`]).find((text) => text !== undefined)
  const message = `${request.method} is not allowed here (allowed: ${allow})${hint ? `: ${hint}` : ''}`
  return new OrbError('method_not_allowed', message, { allow })
}

function matches(path: string, pathname: string): boolean {
  const pattern = path.replace(/[.]/g, '\\.').replace(/:\w+/g, '[^/]+').replace(/\*$/, '.*')
  return new RegExp(`^${pattern}/?$`).test(pathname)
}

async function withoutBody(answer: Response): Promise<Response> {
  const { status, headers } = answer
  const isMeasured = headers.has('content-length')
  if (!isMeasured && isComplete(answer)) headers.set('content-length', String((await answer.arrayBuffer()).byteLength))
  else await answer.body?.cancel()
  return new Response(null, { status, headers })
}

/** Counts the request and writes its line; the query is left out of both, for it may hold a key. */
function record(metrics: Metrics, request: Request, answer: Response, exchange: Exchange, seconds: number): void {
  const route = exchange.route?.path ?? 'none'
  metrics.inc('orb_http_requests_total', { method: knownMethod(request.method), route, status: answer.status })
  metrics.observe('orb_http_request_seconds', seconds)
  log('info', 'request', {
    request: exchange.id,
    method: request.method,
    path: URL.parse(request.url)?.pathname ?? '-',
    status: answer.status,
    ms: Math.round(seconds * 1000),
    from: exchange.connection.address,
  })
}

const METHODS = new Set(['GET', 'HEAD', 'POST', 'PUT', 'DELETE', 'PATCH', 'OPTIONS'])

/** Invented methods must not make new series. */
const knownMethod = (method: string): string => (METHODS.has(method) ? method : 'other')
