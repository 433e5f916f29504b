import { messageOf, OrbError } from '../errors.ts'
import { encodeHead } from './headers.ts'
import { type ResponseHead, ResponseParser } from './http1.ts'
import type { Header } from './http1-head.ts'
import type { Link, UpstreamLinks } from './upstream-link.ts'

export interface UpstreamRequest {
  method: string
  /** http or https. */
  url: URL
  headers: Record<string, string>
  body?: string
}

export interface UpstreamAnswer {
  status: number
  headers: Header[]
  body: string
}

export interface UpstreamLimits {
  /** For the answer to be whole, once there is a connection. */
  timeoutMs: number
  /** Of the answer's body. */
  maxBytes: number
}

/**
 * One request of orb's own, on a connection of its own to an address that was checked (ORB_ALLOW_PRIVATE). Redirects are not
 * followed. @throws OrbError upstream_forbidden, upstream_unreachable, upstream_timeout
 */
export async function requestUpstream(
  links: UpstreamLinks,
  request: UpstreamRequest,
  limits: UpstreamLimits,
): Promise<UpstreamAnswer> {
  const { url } = request
  const secure = url.protocol === 'https:'
  const link = await links.connect({
    secure,
    host: url.hostname.replace(/^\[|\]$/g, ''),
    port: url.port === '' ? (secure ? 443 : 80) : Number(url.port),
    authority: url.host,
    target: url.pathname + url.search,
  })
  const { promise, resolve, reject } = Promise.withResolvers<UpstreamAnswer>()
  const fail = (why: string) => reject(new OrbError('upstream_unreachable', `${url.host} did not answer: ${why}.`))
  const timer = setTimeout(
    () =>
      reject(new OrbError('upstream_timeout', `${url.host} did not answer within ${limits.timeoutMs / 1000} seconds.`)),
    limits.timeoutMs,
  )
  try {
    converse(link, request, limits.maxBytes, resolve, fail)
    return await promise
  } finally {
    clearTimeout(timer)
    link.destroy()
  }
}

function converse(
  link: Link,
  request: UpstreamRequest,
  maxBytes: number,
  done: (answer: UpstreamAnswer) => void,
  fail: (why: string) => void,
): void {
  const chunks: Buffer[] = []
  let size = 0
  let head: ResponseHead | null = null
  const parser = new ResponseParser(
    {
      onHead(answer) {
        head = answer
      },
      onBody(bytes) {
        size += bytes.length
        if (size > maxBytes) throw new Error(`the answer is over ${maxBytes} bytes`)
        chunks.push(Buffer.from(bytes))
      },
      onEnd() {
        if (head) done({ status: head.status, headers: head.headers, body: Buffer.concat(chunks).toString('utf8') })
      },
    },
    request.method,
  )
  const parse = (work: () => void) => {
    try {
      work()
    } catch (thrown) {
      fail(messageOf(thrown))
    }
  }
  let unsent = bytesOf(request)
  const send = () => {
    unsent = unsent.subarray(link.write(unsent))
  }
  link.owner = {
    onData: (bytes) => parse(() => void parser.push(bytes)),
    onDrain: send,
    onClose(broken) {
      if (!broken) parse(() => void parser.close())
      fail('the connection broke')
    },
  }
  if (link.closed) fail('the connection broke')
  send()
}

function bytesOf({ method, url, headers, body }: UpstreamRequest): Buffer {
  const content = Buffer.from(body ?? '')
  const lines = [
    `Host: ${url.host}`,
    ...Object.entries(headers).map(([name, value]) => `${name}: ${value}`),
    ...(body === undefined ? [] : [`Content-Length: ${content.length}`]),
    'Connection: close',
  ]
  return Buffer.concat([encodeHead(`${method} ${url.pathname}${url.search} HTTP/1.1`, lines), content])
}
