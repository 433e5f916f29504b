import { z } from 'zod'
import { messageOf } from '../errors.ts'
import { VERSION } from '../version.ts'
import type { Target } from './credentials.ts'
import { ApiFailure, CommandFailure } from './failure.ts'

const Refusal = z.looseObject({ error: z.string(), message: z.string() })

export interface SendOptions {
  /** Text, bytes, files and streams go out as they are, the rest as JSON. */
  body?: BodyInit | object
  headers?: Record<string, string>
  signal?: AbortSignal
  /** Statuses that are answers here, though they would be refusals elsewhere. */
  alsoFine?: number[]
}

/** One server, spoken to with one key. */
export class Api {
  constructor(readonly target: Target) {}

  /** A JSON answer as `schema` reads it; what the schema does not name stays in it. */
  async ask<S extends z.ZodType>(
    schema: S,
    method: string,
    path: string,
    body?: BodyInit | object,
    options: SendOptions = {},
  ): Promise<z.output<S>> {
    const response = await this.send(method, path, { ...options, body })
    return this.read(schema, response)
  }

  async read<S extends z.ZodType>(schema: S, response: Response): Promise<z.output<S>> {
    const text = await response.text()
    const result = schema.safeParse(parsed(text))
    if (result.success) return result.data
    throw new CommandFailure(`${this.target.url} does not answer as Orb Cloud does: ${z.prettifyError(result.error)}`)
  }

  /** Sends a request; throws `ApiFailure` for what the server refuses. Waits as long as the server takes. */
  async send(method: string, path: string, options: SendOptions = {}): Promise<Response> {
    const { body, headers, signal, alsoFine = [] } = options
    const isJson = isPlain(body)
    const response = await fetch(`${this.target.url}${path}`, {
      method,
      headers: {
        'user-agent': `orb/${VERSION}`,
        ...(this.target.key === null ? {} : { authorization: `Bearer ${this.target.key}` }),
        ...(isJson ? { 'content-type': 'application/json' } : {}),
        ...headers,
      },
      body: isJson ? JSON.stringify(body) : body,
      // A redirected POST would become a GET, and the key would go where nobody sent it.
      redirect: 'manual',
      signal,
      timeout: false,
    }).catch((thrown: unknown) => {
      if (signal?.aborted) throw thrown
      throw new CommandFailure(`cannot reach ${this.target.url}: ${messageOf(thrown)}`)
    })
    if (response.ok || alsoFine.includes(response.status)) return response
    throw await this.failureOf(response)
  }

  private async failureOf(response: Response): Promise<CommandFailure> {
    const { status, headers } = response
    const location = headers.get('location')
    if (status >= 300 && status < 400) {
      return new CommandFailure(`${this.target.url} redirects to ${location ?? 'nowhere'}: name that as the base URL`)
    }
    const refusal = Refusal.safeParse(parsed(await response.text()))
    if (!refusal.success) {
      return new CommandFailure(`${this.target.url} does not answer as Orb Cloud does: status ${status}`)
    }
    const { error, message } = refusal.data
    return new ApiFailure(status, error, `${message}${this.hintFor(status, headers)}`, refusal.data)
  }

  private hintFor(status: number, headers: Headers): string {
    if (status === 401) {
      return this.target.key === null
        ? ` (no key for ${this.target.url}: orb login, or set ORB_API_KEY)`
        : ` (the key for ${this.target.url} is not valid there: orb login)`
    }
    const id = headers.get('x-request-id')
    return status >= 500 && id !== null ? ` (request ${id})` : ''
  }
}

function isPlain(body: SendOptions['body']): body is object {
  return (
    body !== undefined && typeof body === 'object' && body !== null && Object.getPrototypeOf(body) === Object.prototype
  )
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return null
  }
}

/** A path below `/v1/computers`, its parts encoded. */
export const computerPath = (id: string, ...parts: string[]): string =>
  ['/v1/computers', id, ...parts].map((part, index) => (index === 0 ? part : encodeURIComponent(part))).join('/')

/** Of a file or directory inside, by its absolute path. */
export const filePath = (id: string, path: string): string =>
  `${computerPath(id)}/files/${path.replace(/^\/+/, '').split('/').map(encodeURIComponent).join('/')}`
