import { randomUUID } from 'node:crypto'
import type { OrbError } from '../errors.ts'
import { encodeHead } from './headers.ts'

const RETRY_AFTER_S = 5

/** An error as orb answers it (Orb Cloud contract §1.3). */
export function errorAnswer(error: OrbError, method: string, close: boolean, requestId: string = randomUUID()): Buffer {
  const body = Buffer.from(JSON.stringify({ error: error.code, message: error.message, ...error.fields }))
  const lines = ['Content-Type: application/json', `Content-Length: ${body.length}`, `X-Request-Id: ${requestId}`]
  if (error.status === 503) lines.push(`Retry-After: ${RETRY_AFTER_S}`)
  if (close) lines.push('Connection: close')
  const head = encodeHead(`HTTP/1.1 ${error.status} ${STATUS_TEXT[error.status] ?? 'Error'}`, lines)
  return method === 'HEAD' ? head : Buffer.concat([head, body])
}

const STATUS_TEXT: Record<number, string> = {
  400: 'Bad Request',
  404: 'Not Found',
  413: 'Content Too Large',
  431: 'Request Header Fields Too Large',
  500: 'Internal Server Error',
  501: 'Not Implemented',
  502: 'Bad Gateway',
  503: 'Service Unavailable',
  504: 'Gateway Timeout',
}
