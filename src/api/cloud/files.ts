import { OrbError } from '../../errors.ts'
import type { OpenFile, Services } from '../../services/types.ts'
import { timely } from '../body.ts'
import { type AuthorizedCall, keyRoute, type Route } from '../route.ts'
import { directory, writtenFile } from './schemas.ts'

/** Limit of an upload (Orb Cloud contract §14.1). */
const UPLOAD_BYTES = 209_715_200

const DOT_DOT = /(^|[\\/])\.\.([\\/]|$)/

export const isClimbing = (path: string): boolean => DOT_DOT.test(path)

export const climbingPath = () => new OrbError('invalid_path', 'the path must not contain .. segments')

export const fileRoutes = ({ files }: Services): Route[] => {
  const read = async (call: AuthorizedCall) => {
    const found = await files.read(call.who, call.params['id'] ?? '', filePath(call.request.url))
    return 'files' in found ? found : bytesAnswer(found, call.request)
  }
  const write = (call: AuthorizedCall) => {
    const path = filePath(call.request.url)
    if (path === '') throw new OrbError('invalid_path', 'the path of the file is missing')
    const length = call.request.headers.get('content-length')
    if (Number(length ?? 0) > UPLOAD_BYTES) {
      throw new OrbError('payload_too_large', `a file must be at most ${UPLOAD_BYTES} bytes`)
    }
    const size = length === null ? null : Number(length)
    const { body } = call.request
    return files.write(call.who, call.params['id'] ?? '', path, body && timely(body), size)
  }
  const reading = {
    tag: 'Files',
    answer: directory,
    otherAnswers: { 'application/octet-stream': 'The bytes of a file; one Range is honoured' },
    handle: read,
  }
  return [
    keyRoute({
      ...reading,
      method: 'GET',
      path: '/v1/computers/:id/files',
      summary: 'List the root directory',
      errors: ['not_found'],
    }),
    keyRoute({
      ...reading,
      method: 'GET',
      path: '/v1/computers/:id/files/*',
      summary: 'List a directory or read a file; never wakes the agent',
      errors: ['not_found', 'invalid_path', 'range_not_satisfiable'],
    }),
    keyRoute({
      method: 'PUT',
      path: '/v1/computers/:id/files/*',
      aliases: ['/v1/computers/:id/files'],
      tag: 'Files',
      summary: 'Write a file of at most 200 MB; never wakes the agent',
      rawBody: { types: ['application/octet-stream'], required: false },
      answer: writtenFile,
      errors: ['not_found', 'invalid_path', 'payload_too_large', 'is_a_directory', 'not_a_directory', 'disk_full'],
      handle: write,
    }),
  ]
}

/**
 * The path below `/files/` in a request's URL, decoded once, without its first slash; '' is the root. Throws `invalid_path`
 * for NUL, `..` and what is no UTF-8.
 */
export function filePath(url: string): string {
  const encoded = new URL(url).pathname.replace(/^\/v1\/computers\/[^/]*\/files\/?/, '')
  const path = decode(encoded).replace(/^\/+/, '')
  if (path.includes('\0')) throw new OrbError('invalid_path', 'the path must not contain NUL')
  if (/(^|\/)\.\.(\/|$)/.test(path)) throw climbingPath()
  return path
}

function decode(encoded: string): string {
  try {
    return decodeURIComponent(encoded)
  } catch {
    throw new OrbError('invalid_path', 'the path is not percent-encoded UTF-8')
  }
}

async function bytesAnswer(file: OpenFile, request: Request): Promise<Response> {
  const range = parseRange(request.headers.get('range'), file.size)
  if (range === 'unsatisfiable') {
    file.close()
    throw new OrbError('range_not_satisfiable', `the file has ${file.size} bytes`, { size: file.size })
  }
  const { start, end } = range ?? { start: 0, end: file.size }
  const headers: Record<string, string> = {
    'content-type': 'application/octet-stream',
    'content-length': String(end - start),
    'accept-ranges': 'bytes',
    // Without it Bun names the file after its descriptor.
    'content-disposition': 'attachment',
    'x-content-type-options': 'nosniff',
  }
  if (range) headers['content-range'] = `bytes ${start}-${end - 1}/${file.size}`
  return new Response(await file.content(start, end), { status: range ? 206 : 200, headers })
}

/**
 * One range of bytes as `[start, end)`. Null for none, for several, and for a unit or form that is unknown: those are answered
 * whole (RFC 9110 §14.2).
 */
export function parseRange(
  header: string | null,
  size: number,
): { start: number; end: number } | 'unsatisfiable' | null {
  const match = /^bytes=\s*(\d*)-(\d*)\s*$/i.exec(header ?? '')
  if (!match || (match[1] === '' && match[2] === '')) return null
  const [first, last] = [match[1] ?? '', match[2] ?? '']
  if (first === '') {
    const length = Math.min(Number(last), size)
    return length === 0 ? 'unsatisfiable' : { start: size - length, end: size }
  }
  const start = Number(first)
  if (last !== '' && Number(last) < start) return null
  if (start >= size) return 'unsatisfiable'
  return { start, end: last === '' ? size : Math.min(Number(last) + 1, size) }
}
