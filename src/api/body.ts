import { OrbError } from '../errors.ts'

/** Limit of a JSON body (Orb Cloud contract §20). */
export const JSON_BODY_BYTES = 4 * 1024 * 1024

/** A client that sends nothing for so long, with its body half sent, has gone. */
const BODY_IDLE_MS = 60_000

/** The whole body, chunked or not. Throws `payload_too_large` as soon as it is known to be over `limit` bytes. */
export async function readBody(request: Request, limit: number): Promise<Uint8Array> {
  if (Number(request.headers.get('content-length') ?? 0) > limit) throw tooLarge(limit)
  if (!request.body) return new Uint8Array(0)
  const chunks: Uint8Array[] = []
  let size = 0
  for await (const chunk of timely(request.body)) {
    size += chunk.byteLength
    // Leaving the loop cancels the stream: the rest is not read.
    if (size > limit) throw tooLarge(limit)
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}

/** The same bytes; fails with `invalid_request` when the next of them do not come for `idleMs`. */
export function timely(body: ReadableStream<Uint8Array>, idleMs = BODY_IDLE_MS): ReadableStream<Uint8Array> {
  const reader = body.getReader()
  return new ReadableStream<Uint8Array>({
    async pull(controller) {
      const late = Promise.withResolvers<null>()
      const timer = setTimeout(() => late.resolve(null), idleMs)
      const read = await Promise.race([reader.read(), late.promise]).finally(() => clearTimeout(timer))
      if (read === null) {
        void reader.cancel().catch(() => undefined)
        throw new OrbError('invalid_request', `nothing of the body came for ${idleMs / 1000} s`)
      }
      if (read.done) controller.close()
      else controller.enqueue(read.value)
    },
    cancel: (reason) => reader.cancel(reason),
  })
}

const tooLarge = (limit: number) => new OrbError('payload_too_large', `the body must be at most ${limit} bytes`)
