import type { Socket, SocketHandler } from 'bun'
import { OrbError } from '../errors.ts'
import type { AppSocket } from './ingress-types.ts'

declare module 'bun' {
  /** Bun takes a connected socket too; of its types only the options say so. */
  function connect<Data = undefined>(options: FdSocketOptions<Data>): Promise<Socket<Data>>
}

export interface LinkOwner {
  onData(bytes: Buffer): void
  onDrain(): void
  onClose(): void
}

/** After its answer a connection that the other side does not close is broken off. */
const CLOSE_LIMIT_MS = 5_000

/** A connection to an app or to the API. */
export class Link {
  owner: LinkOwner | null = null
  closed = false
  private paused = false

  constructor(
    private readonly socket: Socket<Dialing>,
    private readonly onClosed: () => void,
  ) {}

  /** Returns how many bytes the kernel took; the rest waits for `onDrain`. */
  write(bytes: Uint8Array): number {
    return this.closed ? 0 : Math.max(0, this.socket.write(bytes))
  }

  pause(): void {
    if (this.closed || this.paused) return
    this.paused = true
    this.socket.pause()
  }

  resume(): void {
    if (this.closed || !this.paused) return
    this.paused = false
    this.socket.resume()
  }

  /** Says that nothing more comes, and lets the other side close. */
  end(): void {
    this.owner = null
    if (this.closed) return
    this.resume()
    this.socket.end()
    if (!this.closed) setTimeout(() => this.destroy(), CLOSE_LIMIT_MS).unref()
  }

  destroy(): void {
    this.owner = null
    if (!this.closed) this.socket.terminate()
  }

  /** The socket has closed. */
  over(): void {
    this.closed = true
    this.onClosed()
    this.owner?.onClose()
  }
}

interface Dialing {
  link: Link | null
  opened(socket: Socket<Dialing>): void
  failed(error: Error): void
}

const HANDLERS: SocketHandler<Dialing> = {
  open(socket) {
    socket.setNoDelay(true)
    // A probe into a sleeping computer would be answered by a reset.
    socket.setKeepAlive(false)
    socket.data.opened(socket)
  },
  data(socket, bytes) {
    socket.data.link?.owner?.onData(bytes)
  },
  drain(socket) {
    socket.data.link?.owner?.onDrain()
  },
  close(socket) {
    const { link } = socket.data
    if (link === null) socket.data.failed(new Error('it closed the connection'))
    else if (!link.closed) link.over()
  },
  error(socket) {
    socket.terminate()
  },
  connectError(socket, error) {
    socket.data.failed(error)
  },
}

/** The connection over a socket that is connected. */
export function adoptSocket(app: AppSocket): Promise<Link> {
  return dial(
    (data) => Bun.connect({ fd: app.adopt(), data, socket: HANDLERS }),
    () => app.close(),
  ).catch((error) => {
    app.close()
    throw error
  })
}

/** A connection to the API's own socket. @throws OrbError shutting_down when it is gone */
export async function connectUnix(path: string): Promise<Link> {
  return dial(
    (data) => Bun.connect({ unix: path, data, socket: HANDLERS }),
    () => undefined,
  ).catch((cause) => {
    throw new OrbError('shutting_down', 'The server is stopping.', {}, { cause })
  })
}

function dial(connect: (data: Dialing) => Promise<unknown>, onClosed: () => void): Promise<Link> {
  const { promise, resolve, reject } = Promise.withResolvers<Link>()
  const data: Dialing = {
    link: null,
    opened(socket) {
      data.link = new Link(socket, onClosed)
      resolve(data.link)
    },
    failed: reject,
  }
  connect(data).catch(reject)
  return promise
}
