import { randomUUID } from 'node:crypto'
import type { OrbError } from '../errors.ts'
import { log } from '../log.ts'
import { errorAnswer } from './error-answer.ts'
import type { RequestHead } from './http1.ts'

/**
 * The answer to a request from outside that goes no further, which is also noted in the access log. The query is left out
 * there, for it may hold a key.
 * @param request null where its head could not be read
 */
export function refusal(error: OrbError, request: RequestHead | null, from: string, close: boolean): Buffer {
  const id = randomUUID()
  log('info', 'request', {
    request: id,
    method: request?.method ?? '-',
    path: request?.target.split('?', 1)[0] ?? '-',
    host: request?.headers.find(({ name }) => name === 'host')?.value ?? '-',
    status: error.status,
    code: error.code,
    from,
  })
  return errorAnswer(error, request?.method ?? '', close, id)
}
