import { OrbError } from '../errors.ts'
import { log } from '../log.ts'
import { toJson } from './json.ts'

/** What a client waits after a 503 (Orb Cloud contract §1.3), and after a 429 that does not know better. */
const RETRY_AFTER_S = 5

/** A JSON answer. */
export const json = (body: unknown, status = 200, headers: Record<string, string> = {}): Response =>
  new Response(toJson(body), {
    status,
    headers: { 'content-type': 'application/json', 'cache-control': 'no-store', ...headers },
  })

/**
 * The answer to anything that was thrown: an OrbError as it is, everything else as 500 without details, which go to the log
 * under the request's id.
 */
export function errorAnswer(thrown: unknown, requestId: string): Response {
  if (!(thrown instanceof OrbError)) {
    log('error', 'request failed', { request: requestId, error: thrown instanceof Error ? thrown.stack : thrown })
    return json({ error: 'internal', message: `internal error, see the log for request ${requestId}` }, 500)
  }
  if (thrown.status >= 500) {
    const cause = thrown.cause === undefined ? {} : { cause: thrown.cause }
    log('warn', 'request failed', { request: requestId, code: thrown.code, error: thrown.message, ...cause })
  }
  return json({ error: thrown.code, message: thrown.message, ...thrown.fields }, thrown.status, headersOf(thrown))
}

function headersOf(error: OrbError): Record<string, string> {
  // Whoever sends too much would otherwise go on sending into a connection that nobody reads.
  if (error.status === 413) return { connection: 'close' }
  if (error.status === 401) return { 'www-authenticate': 'Bearer' }
  if (error.status === 405) return { allow: String(error.fields['allow'] ?? '') }
  if (error.status === 416) return { 'content-range': `bytes */${error.fields['size'] ?? '*'}` }
  if (error.status !== 429 && error.status !== 503) return {}
  return { 'retry-after': String(error.fields['retry_after_secs'] ?? RETRY_AFTER_S) }
}
