import { createHmac } from 'node:crypto'
import { messageOf } from '../../errors.ts'
import { ResponseParser } from '../../proxy/http1.ts'
import type { Link, UpstreamLinks } from '../../proxy/upstream-link.ts'
import type { UpstreamTarget } from '../../proxy/upstream-url.ts'
import { VERSION } from '../../version.ts'

/** For everything from the name's look-up to the head of the answer (Orb Cloud contract §16). */
export const ATTEMPT_TIMEOUT_MS = 10_000
/** Nobody reads the body of the answer. So much of it is taken, head included, that a receiver can end as it wants to. */
const ANSWER_BYTES = 16 * 1024
const BODY_MS = 1_000

export interface Message {
  eventId: string
  type: string
  body: string
}

/** `X-Orb-Signature`: an HMAC-SHA256 of `<t>.<body>`, t in seconds since the epoch. */
export const signature = (secret: string, t: number, body: string): string =>
  `t=${t},v1=${createHmac('sha256', secret).update(`${t}.${body}`).digest('hex')}`

/**
 * Sends an event once, on a connection of its own to an address that was checked for it. Returns the status of the answer.
 * @throws Error with the reason when there is none; when `signal` aborts, its reason
 */
export async function sendOnce(
  links: UpstreamLinks,
  target: UpstreamTarget,
  message: Message,
  secret: string,
  signal: AbortSignal,
): Promise<number> {
  const { promise: timedOut, reject } = Promise.withResolvers<never>()
  const give = (reason: Error) => () => reject(reason)
  const timer = setTimeout(give(new Error(`no answer within ${ATTEMPT_TIMEOUT_MS / 1000} s`)), ATTEMPT_TIMEOUT_MS)
  const onAbort = () => reject(signal.reason)
  signal.addEventListener('abort', onAbort)
  let over = false
  let link: Link | null = null
  const connecting = links.connect(target).then((made) => {
    link = made
    if (over) made.destroy()
    return made
  })
  try {
    return await Promise.race([connecting.then((made) => exchange(made, head(target, message, secret))), timedOut])
  } catch (thrown) {
    destroy(link)
    throw thrown
  } finally {
    over = true
    clearTimeout(timer)
    signal.removeEventListener('abort', onAbort)
  }
}

const destroy = (link: Link | null): void => link?.destroy()

function head(target: UpstreamTarget, { eventId, type, body }: Message, secret: string): Buffer {
  const t = Math.floor(Date.now() / 1000)
  const lines = [
    `POST ${target.target} HTTP/1.1`,
    `Host: ${target.authority}`,
    `User-Agent: orb/${VERSION}`,
    'Accept: */*',
    'Content-Type: application/json',
    `Content-Length: ${Buffer.byteLength(body)}`,
    'Connection: close',
    `X-Orb-Event: ${type}`,
    `X-Orb-Delivery: ${eventId}`,
    `X-Orb-Timestamp: ${t}`,
    `X-Orb-Signature: ${signature(secret, t, body)}`,
  ]
  return Buffer.from(`${lines.join('\r\n')}\r\n\r\n${body}`)
}

/** Resolves with the status of the answer as soon as its head is there. */
function exchange(link: Link, request: Buffer): Promise<number> {
  const { promise, resolve, reject } = Promise.withResolvers<number>()
  let unsent = request
  const send = () => {
    unsent = unsent.subarray(link.write(unsent))
  }
  let read = 0
  const parser = new ResponseParser(
    {
      onHead({ status }) {
        resolve(status)
        setTimeout(() => link.destroy(), BODY_MS).unref()
      },
      onBody() {},
      onEnd: () => link.destroy(),
    },
    'POST',
  )
  link.owner = {
    onData(bytes) {
      read += bytes.length
      try {
        parser.push(bytes)
        if (read <= ANSWER_BYTES) return
        link.destroy()
        reject(new Error('the head of the answer is too long'))
      } catch (thrown) {
        link.destroy()
        reject(new Error(`the answer is not HTTP: ${messageOf(thrown)}`))
      }
    },
    onDrain: send,
    onClose: () => reject(new Error('the connection was closed before an answer came')),
  }
  send()
  return promise
}
