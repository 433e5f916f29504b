/** Debian's Chromium, for tests of pages. */
import { existsSync } from 'node:fs'
import { type Browser, chromium } from 'playwright-core'

const CHROMIUM = '/usr/bin/chromium'

export async function startBrowser(): Promise<Browser> {
  if (!existsSync(CHROMIUM)) throw new Error(`${CHROMIUM} is missing: install the Debian package chromium`)
  // As root its own sandbox does not start.
  return chromium.launch({ executablePath: CHROMIUM, args: ['--no-sandbox'] })
}

export interface Relay {
  url: string
  /** Breaks off every connection through it. */
  cut(): void
  /** No new connection gets through until `on`. */
  off(): void
  on(): void
  stop(): void
}

/** A way to a server that can be broken, as networks are. */
export function startRelay(target: string): Relay {
  const { hostname, port } = new URL(target)
  const open = new Set<Bun.Socket<Side>>()
  let isOn = true
  const pump = {
    data(socket: Bun.Socket<Side>, bytes: Buffer) {
      const { other, waiting } = socket.data
      if (other) other.write(bytes)
      else waiting.push(Buffer.from(bytes))
    },
    close(socket: Bun.Socket<Side>) {
      open.delete(socket)
      socket.data.other?.end()
    },
    error: (socket: Bun.Socket<Side>) => void socket.terminate(),
  }
  const listener = Bun.listen<Side>({
    hostname: '127.0.0.1',
    port: 0,
    socket: {
      ...pump,
      async open(client) {
        client.data = { other: null, waiting: [] }
        if (!isOn) {
          client.terminate()
          return
        }
        open.add(client)
        const data: Side = { other: client, waiting: [] }
        const server = await Bun.connect<Side>({ hostname, port: Number(port), data, socket: pump })
        open.add(server)
        client.data.other = server
        for (const bytes of client.data.waiting.splice(0)) server.write(bytes)
      },
    },
  })
  const cut = () => {
    for (const socket of open) socket.terminate()
  }
  return {
    url: `http://127.0.0.1:${listener.port}`,
    cut,
    off: () => {
      isOn = false
    },
    on: () => {
      isOn = true
    },
    stop() {
      cut()
      listener.stop(true)
    },
  }
}

interface Side {
  other: Bun.Socket<Side> | null
  /** Came before the other side was there. */
  waiting: Buffer[]
}
