/** A client of the terminal's WebSocket. */
import { until } from './sweep.ts'

const WAIT_TIMEOUT_MS = 30_000
/** Of what came, in a failure. */
const SHOWN_CHARACTERS = 2_000

export interface TestSocket {
  /** All that came so far. */
  readonly text: string
  /** Each frame that came. */
  readonly frames: string[]
  /** Whether one of the frames was no text. */
  readonly binary: boolean
  readonly closed: Promise<{ code: number; reason: string }>
  send(data: string | Uint8Array<ArrayBuffer>): void
  /** Waits for it in what came. */
  shows(what: string | RegExp): Promise<void>
  until(done: () => boolean | Promise<boolean>): Promise<void>
  close(): void
}

/** Opens a WebSocket and waits for it. @throws Error when it does not open */
export async function openSocket(url: string, headers: Record<string, string> = {}): Promise<TestSocket> {
  const { promise: closed, resolve: close } = Promise.withResolvers<{ code: number; reason: string }>()
  const { promise: opened, resolve: open, reject: fail } = Promise.withResolvers<void>()
  const frames: string[] = []
  let text = ''
  let binary = false
  // The DOM's types know nothing of headers.
  const socket: WebSocket = Reflect.construct(WebSocket, [url.replace(/^http/, 'ws'), { headers }])
  socket.onopen = () => open()
  socket.onmessage = ({ data }) => {
    binary ||= typeof data !== 'string'
    frames.push(String(data))
    text += String(data)
  }
  socket.onclose = ({ code, reason }) => {
    fail(new Error(`the socket closed with ${code} ${reason}`))
    close({ code, reason })
  }
  await opened
  const wait = async (done: () => boolean | Promise<boolean>, what: string) => {
    if (!(await until(done, WAIT_TIMEOUT_MS)))
      throw new Error(`${what} does not come: ${JSON.stringify(text.slice(-SHOWN_CHARACTERS))}`)
  }
  return {
    get text() {
      return text
    },
    get binary() {
      return binary
    },
    frames,
    closed,
    send: (data) => socket.send(data),
    shows: (what) => wait(() => (typeof what === 'string' ? text.includes(what) : what.test(text)), String(what)),
    until: (done) => wait(done, 'that'),
    close: () => socket.close(),
  }
}
