import { OrbError } from '../errors.ts'

/** Limit of a JSON body (Orb Cloud contract §20). */
export const JSON_BODY_BYTES = 4 * 1024 * 1024

/** The whole body, chunked or not. Throws `payload_too_large` as soon as it is known to be over `limit` bytes. */
export async function readBody(request: Request, limit: number): Promise<Uint8Array> {
  if (Number(request.headers.get('content-length') ?? 0) > limit) throw tooLarge(limit)
  if (!request.body) return new Uint8Array(0)
  const chunks: Uint8Array[] = []
  let size = 0
  for await (const chunk of request.body) {
    size += chunk.byteLength
    // Leaving the loop cancels the stream: the rest is not read.
    if (size > limit) throw tooLarge(limit)
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}

const tooLarge = (limit: number) => new OrbError('payload_too_large', `the body must be at most ${limit} bytes`)
