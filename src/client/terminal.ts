import { Anything } from './answers.ts'
import { type Api, computerPath } from './api.ts'
import { EscapeWatch } from './escape.ts'
import { ApiFailure, CommandFailure } from './failure.ts'
import { note } from './output.ts'
import { RawTerminal, writeAll } from './tty.ts'

/** Ours and the rhythm of the contract (§14.2): a connection that is silent for longer is dead. */
const PING_MS = 25_000
const SILENCE_MS = 60_000
/** Meanings of the close codes (§14.2); 4409 is orb's own. */
const CLOSE = { exit: 1000, restart: 1012, revoked: 4401, deleted: 4404, takenOver: 4409 }
const USUAL_SIZE = { cols: 80, rows: 24 }

interface Closed {
  opened: boolean
  code: number
  reason: string
  /** The user left by `~.` */
  left: boolean
}

/**
 * A shell of a computer in the user's own terminal, which is given back as it was however this ends.
 * @returns the shell's exit code
 */
export async function runTerminal(api: Api, id: string, session: string | undefined): Promise<number> {
  const terminal = new RawTerminal()
  let closed: Closed
  try {
    closed = await attach(api, id, session, terminal)
  } finally {
    terminal.giveBack(true)
  }
  const back = session === undefined ? '' : `; orb ssh --session ${session} returns to it for ten minutes`
  if (closed.left) {
    note(`\nleft${back}`)
    return 0
  }
  if (!closed.opened) throw await refusalOf(api, id, session)
  const exit = /^exit:(\d+)$/.exec(closed.reason)?.[1]
  if (closed.code === CLOSE.exit && exit !== undefined) return Number(exit)
  throw new CommandFailure(`${reasonOf(closed)}${closed.code < CLOSE.revoked ? back : ''}`)
}

const size = () => ({
  cols: process.stdout.columns || USUAL_SIZE.cols,
  rows: process.stdout.rows || USUAL_SIZE.rows,
})

function attach(api: Api, id: string, session: string | undefined, terminal: RawTerminal): Promise<Closed> {
  const { url, key } = api.target
  const query = new URLSearchParams({ cols: String(size().cols), rows: String(size().rows) })
  if (session !== undefined) query.set('session', session)
  const socket = openSocket(`${url.replace(/^http/, 'ws')}${computerPath(id, 'terminal')}?${query}`, key)
  socket.binaryType = 'arraybuffer'
  const leaving = new EscapeWatch()
  const resize = () => socket.send(JSON.stringify({ type: 'resize', ...size() }))
  return new Promise((resolve) => {
    let opened = false
    let pings: Timer | undefined
    let silence: Timer | undefined
    const end = (code: number, reason: string, left = false) => {
      clearInterval(pings)
      clearTimeout(silence)
      process.stdout.off('resize', resize)
      process.stdin.off('data', typed)
      // Nothing that still arrives is to be shown.
      socket.onmessage = null
      // A clean end leaves the screen to the user as the shell left it.
      terminal.giveBack(left || code !== CLOSE.exit)
      resolve({ opened, code, reason, left })
    }
    const typed = (bytes: Uint8Array) => {
      const { send, leave } = leaving.feed(bytes)
      // As bytes: what is typed is never taken for a change of size.
      if (send.length > 0) socket.send(send)
      if (!leave) return
      end(CLOSE.exit, 'left', true)
      socket.close()
    }
    const decoder = new TextDecoder()
    const heard = () => silence?.refresh()
    socket.onopen = () => {
      opened = true
      terminal.take()
      process.stdin.on('data', typed)
      process.stdin.resume()
      process.stdout.on('resize', resize)
      pings = setInterval(() => socket.ping(), PING_MS)
      silence = setTimeout(() => {
        end(0, 'the connection is dead')
        socket.terminate()
      }, SILENCE_MS)
      // It may have changed while the connection was made.
      resize()
    }
    socket.addEventListener('pong', heard)
    socket.onmessage = ({ data }) => {
      heard()
      writeAll(typeof data === 'string' ? data : decoder.decode(data, { stream: true }))
    }
    socket.onclose = ({ code, reason }) => end(code, reason)
  })
}

/** The DOM's types, which hide Bun's, know nothing of headers and pings. */
const openSocket = (url: string, key: string | null): Bun.WebSocket =>
  Reflect.construct(WebSocket, [url, { headers: key === null ? {} : { authorization: `Bearer ${key}` } }])

function reasonOf({ code, reason }: Closed): string {
  switch (code) {
    case CLOSE.revoked:
      return 'the key was revoked'
    case CLOSE.deleted:
      return 'the computer was deleted'
    case CLOSE.takenOver:
      return 'another client has taken over this session'
    case CLOSE.restart:
      return 'the server is being restarted'
    default:
      return `the connection was lost${reason ? `: ${reason}` : ''}`
  }
}

/** Why the WebSocket did not open, which it does not tell: the same path answers a plain request with the reason. */
async function refusalOf(api: Api, id: string, session: string | undefined): Promise<CommandFailure> {
  const query = session === undefined ? '' : `?${new URLSearchParams({ session })}`
  try {
    await api.ask(Anything, 'GET', `${computerPath(id, 'terminal')}${query}`)
  } catch (thrown) {
    if (thrown instanceof CommandFailure && !(thrown instanceof ApiFailure && thrown.status === 400)) return thrown
  }
  return new CommandFailure(`${api.target.url} opens no terminal; does something between pass on WebSockets?`)
}
