import type { z } from 'zod'
import type { ErrorCode } from '../errors.ts'
import type { Principal, TerminalVisit } from '../services/types.ts'
import type { Access } from './auth.ts'
import { JSON_BODY_BYTES, readBody } from './body.ts'
import { json } from './errors.ts'
import { check } from './fields.ts'
import { parseObject } from './json.ts'

export type Method = 'GET' | 'POST' | 'PUT' | 'DELETE'

/** A request on its way to a handler. */
export interface Call {
  request: Request
  params: Record<string, string>
  requestId: string
  /** Address of the client, `unix` on a socket. */
  address: string
  /** Whether the peer is on this host and speaks for nobody else. */
  isLocal: boolean
  /** Aborts when the server stops: endless answers end then. */
  stopping: AbortSignal
  /** Sets a header of the answer, whatever that will be. */
  setHeader(name: string, value: string): void
  /** Takes the idle limit off the connection; before work that may take long. */
  holdOpen(): void
  /** Makes the connection a terminal's WebSocket, if the request is a proper one; the answer's status is then 101. */
  upgrade(visit: TerminalVisit): boolean
}

export interface AuthorizedCall extends Call {
  who: Principal
}

/** A body that is not JSON: the types that it is documented with. */
interface RawBody {
  types: string[]
  required: boolean
}

interface Description {
  method: Method
  /** With `:name` for a parameter and `*` for the rest. */
  path: string
  aliases?: string[]
  /** Left out of the documentation. */
  hidden?: true
  tag: string
  summary: string
  /** Status of success; 200 if absent. */
  status?: number
  rawBody?: RawBody
  /** Changes something though it is a GET: viewers may not. */
  changes?: true
  /** The credential may also come as the query parameter `key`. */
  keyInQuery?: true
  /** Answers of other types than JSON: what each holds. */
  otherAnswers?: Record<string, string>
  /** A status of failure that has the same body as success. */
  failingStatus?: number
  errors: ErrorCode[]
}

interface Schemas<B extends z.ZodType, Q extends z.ZodType, A extends z.ZodType> {
  body?: B
  query?: Q
  answer?: A
}

type Result<A extends z.ZodType> = z.input<A> | Response

/** What the router and the documentation know of a route. */
export interface Route extends Description {
  access: Access
  schemas: Schemas<z.ZodType, z.ZodType, z.ZodType>
  run(call: Call & { who: Principal | null }): Promise<Response>
}

/** A route for everybody. */
export function publicRoute<B extends z.ZodType, Q extends z.ZodType, A extends z.ZodType>(
  spec: Description &
    Schemas<B, Q, A> & {
      /** Runs before anything of the body is read; may throw. */
      guard?(call: Call): void
      handle(call: Call & { body: z.output<B>; query: z.output<Q> }): Result<A> | Promise<Result<A>>
    },
): Route {
  return {
    ...spec,
    access: 'public',
    schemas: spec,
    async run(call) {
      spec.guard?.(call)
      return toResponse(await spec.handle({ ...call, ...(await readInput(spec, call)) }), spec.status)
    },
  }
}

/** A route that needs a key. */
export function keyRoute<B extends z.ZodType, Q extends z.ZodType, A extends z.ZodType>(
  spec: Description &
    Schemas<B, Q, A> & {
      access?: 'key' | 'deploy'
      handle(call: AuthorizedCall & { body: z.output<B>; query: z.output<Q> }): Result<A> | Promise<Result<A>>
    },
): Route {
  return {
    ...spec,
    access: spec.access ?? 'key',
    schemas: spec,
    async run(call) {
      if (!call.who) throw new Error(`${spec.path} was called without a caller`)
      const input = await readInput(spec, call)
      call.holdOpen()
      return toResponse(await spec.handle({ ...call, who: call.who, ...input }), spec.status)
    },
  }
}

async function readInput<B extends z.ZodType, Q extends z.ZodType, A extends z.ZodType>(
  schemas: Schemas<B, Q, A>,
  call: Call,
): Promise<{ body: z.output<B>; query: z.output<Q> }> {
  const query = Object.fromEntries(new URL(call.request.url).searchParams)
  const body = schemas.body ? parseObject(await readBody(call.request, JSON_BODY_BYTES)) : undefined
  return { body: checked(schemas.body, body), query: checked(schemas.query, query) }
}

/** Without a schema nothing is read: the handler's type of it is unknown. */
const checked = <S extends z.ZodType>(schema: S | undefined, input: unknown): z.output<S> =>
  schema ? check(schema, input) : (undefined as z.output<S>)

const toResponse = (result: unknown, status?: number): Response =>
  result instanceof Response ? result : json(result, status)
