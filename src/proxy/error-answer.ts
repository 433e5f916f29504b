import type { OrbError } from '../errors.ts'
import { encodeHead } from './headers.ts'

/** An error as orb answers it (Orb Cloud contract §1.3). */
export function errorAnswer(error: OrbError, method: string, close: boolean): Buffer {
  const body = Buffer.from(JSON.stringify({ error: error.code, message: error.message, ...error.fields }))
  const lines = ['Content-Type: application/json', `Content-Length: ${body.length}`]
  if (close) lines.push('Connection: close')
  const head = encodeHead(`HTTP/1.1 ${error.status} ${STATUS_TEXT[error.status] ?? 'Error'}`, lines)
  return method === 'HEAD' ? head : Buffer.concat([head, body])
}

const STATUS_TEXT: Record<number, string> = {
  400: 'Bad Request',
  413: 'Content Too Large',
  431: 'Request Header Fields Too Large',
  501: 'Not Implemented',
  502: 'Bad Gateway',
  503: 'Service Unavailable',
  504: 'Gateway Timeout',
}
