import type { ServerWebSocket, WebSocketHandler } from 'bun'
import { z } from 'zod'
import { log } from '../log.ts'
import type { TerminalClient, TerminalVisit } from '../services/types.ts'
import { KeepAlive } from './keep-alive.ts'

/** Orb Cloud contract §14.2. */
const MAX_FRAME_BYTES = 1024 * 1024
/** Of the WebSocket protocol (RFC 6455 §7.4.1): the other side is gone. */
const GOING_AWAY = 1001
/** A client that does not answer a close is cut off after this. */
const CLOSE_MS = 3_000
const INTERNAL_ERROR = 1011
const SERVICE_RESTART = 1012

export const TERMINAL_SIZE_LIMIT = 1000

export interface SocketData {
  visit: TerminalVisit
  keepAlive: KeepAlive | null
}

const length = z.int().min(1).max(TERMINAL_SIZE_LIMIT)
const resizing = z.union([
  z.object({ type: z.literal('resize'), cols: length, rows: length }),
  z.strictObject({ cols: length, rows: length }),
])
/** One that no terminal can have is no input either. */
const resizingBadly = z.union([
  z.object({ type: z.literal('resize') }),
  z.strictObject({ cols: z.unknown(), rows: z.unknown() }),
])

type Message = { kind: 'input'; bytes: Uint8Array } | { kind: 'resize'; columns: number; rows: number } | null

/** What a frame of the client means; null: nothing. */
export function readMessage(message: string | Uint8Array): Message {
  if (typeof message !== 'string') return { kind: 'input', bytes: message }
  const json = message.startsWith('{') ? parsed(message) : null
  const size = resizing.safeParse(json)
  if (size.success) return { kind: 'resize', columns: size.data.cols, rows: size.data.rows }
  if (resizingBadly.safeParse(json).success) return null
  return { kind: 'input', bytes: Buffer.from(message) }
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return null
  }
}

export interface TerminalSockets {
  handler: WebSocketHandler<SocketData>
  /** Closes all of them, for the server stops. */
  close(): void
}

/** The WebSockets of terminals. */
export function createTerminalSockets(): TerminalSockets {
  const open = new Set<ServerWebSocket<SocketData>>()
  const handler: WebSocketHandler<SocketData> = {
    maxPayloadLength: MAX_FRAME_BYTES,
    perMessageDeflate: false,
    // Bun's own pings have another rhythm.
    sendPings: false,
    idleTimeout: 0,
    open(ws) {
      open.add(ws)
      ws.data.keepAlive = new KeepAlive({
        ping: () => ws.ping(),
        dead() {
          ws.close(GOING_AWAY, 'no pong')
          ws.terminate()
        },
      })
      guard(ws, () => ws.data.visit.attach(clientOf(ws)))
    },
    message(ws, frame) {
      guard(ws, () => {
        const message = readMessage(frame)
        if (message?.kind === 'input') ws.data.visit.type(message.bytes)
        else if (message) ws.data.visit.resize(message)
      })
    },
    drain: (ws) => guard(ws, () => ws.data.visit.drained()),
    pong: (ws) => ws.data.keepAlive?.pong(),
    close(ws) {
      open.delete(ws)
      ws.data.keepAlive?.stop()
      ws.data.visit.leave()
    },
  }
  return {
    handler,
    close() {
      for (const ws of [...open]) ws.close(SERVICE_RESTART, 'the server is stopping')
    },
  }
}

/** What fails for one client is the end of that client alone. */
function guard(ws: ServerWebSocket<SocketData>, act: () => void): void {
  try {
    act()
  } catch (thrown) {
    log('error', 'a terminal failed', { error: thrown instanceof Error ? thrown.stack : thrown })
    clientOf(ws).close(INTERNAL_ERROR, 'internal error')
  }
}

function clientOf(ws: ServerWebSocket<SocketData>): TerminalClient {
  return {
    // Below 0: not all of it has gone yet.
    show: (text) => ws.sendText(text) >= 0,
    close(code, reason) {
      ws.close(code, reason)
      setTimeout(() => ws.terminate(), CLOSE_MS).unref()
    },
  }
}
