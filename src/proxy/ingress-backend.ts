import { messageOf, OrbError } from '../errors.ts'
import { adoptSocket, connectUnix, type Link } from './ingress-link.ts'
import type { AppSocket, PublicComputer, Visit } from './ingress-types.ts'

/** Where a request goes. */
export interface Backend {
  /** It closes its WebSockets when orb stops, with words that the clients are to hear. */
  readonly closesWebSockets: boolean
  /** A connection for one request. Rejects with OrbError. `cancelled` is asked now and then. */
  connect(cancelled: () => boolean): Promise<Link>
  /** Asked before each write. Undefined: write now. Else resolves when it is time to ask again; rejects with OrbError. */
  gate(): Promise<void> | undefined
  /** Closes a connection of it, now or as soon as that can be heard. */
  release(link: Link, how: 'end' | 'destroy'): void
  /** The activity that the request is. */
  begin(): Visit
}

/** How long a program that does not listen yet is waited for (Orb Cloud contract §12.3). */
const LISTEN_WAIT_MS = 2_000
const FIRST_RETRY_MS = 5
const LONGEST_RETRY_MS = 100
/** How often a connect into a full queue is looked at; its handshake is repeated after a second at the earliest. */
const PENDING_MS = 20

const NO_VISIT: Visit = { touch() {}, upgraded() {}, end() {} }

/** The API of this process. */
export class ApiBackend implements Backend {
  readonly closesWebSockets = true

  constructor(private readonly path: string) {}

  connect(): Promise<Link> {
    return connectUnix(this.path)
  }

  gate(): undefined {
    return undefined
  }

  release(link: Link, how: 'end' | 'destroy'): void {
    link[how]()
  }

  begin(): Visit {
    return NO_VISIT
  }
}

/** A program in a computer, which may be asleep. */
export class AppBackend implements Backend {
  readonly closesWebSockets = false

  constructor(
    private readonly computer: PublicComputer,
    private readonly port: number,
    private readonly wakeTimeoutMs: number,
  ) {}

  async connect(cancelled: () => boolean): Promise<Link> {
    let refusedAt: number | null = null
    for (let pauseMs = FIRST_RETRY_MS; !cancelled(); pauseMs = Math.min(pauseMs * 2, LONGEST_RETRY_MS)) {
      await this.awake()
      const link = (await this.connectTo(4, cancelled)) ?? (await this.connectTo(6, cancelled))
      if (link !== null) return link
      refusedAt ??= performance.now()
      if (performance.now() - refusedAt > LISTEN_WAIT_MS) {
        throw unreachable(`nothing listens on port ${this.port}`)
      }
      await Bun.sleep(pauseMs)
    }
    throw unreachable('nobody waits for it any more')
  }

  gate(): Promise<void> | undefined {
    return this.computer.wake()
  }

  release(link: Link, how: 'end' | 'destroy'): void {
    link.owner = null
    // Whoever sleeps would not hear of it, and hold the connection for open ever after.
    if (link.closed || this.computer.running()) link[how]()
    else this.computer.whenRunning(() => link[how]())
  }

  begin(): Visit {
    return this.computer.begin()
  }

  private async awake(): Promise<void> {
    const deadline = performance.now() + this.wakeTimeoutMs
    for (let waking = this.computer.wake(); waking !== undefined; waking = this.computer.wake()) {
      await within(waking, deadline - performance.now())
    }
  }

  /** Null: nobody listens there. */
  private async connectTo(family: 4 | 6, cancelled: () => boolean): Promise<Link | null> {
    const socket = this.open(family)
    try {
      let state = socket.connect()
      while (state === 'pending' && !cancelled()) {
        await Bun.sleep(PENDING_MS)
        state = socket.connect()
      }
      if (state !== 'connected') {
        socket.close()
        return null
      }
    } catch (error) {
      socket.close()
      throw unreachable(messageOf(error))
    }
    return adoptSocket(socket)
  }

  private open(family: 4 | 6): AppSocket {
    try {
      return this.computer.socket(this.port, family)
    } catch (error) {
      throw unreachable(messageOf(error))
    }
  }
}

const unreachable = (why: string): OrbError => new OrbError('app_unreachable', `The app cannot be reached: ${why}.`)

async function within(work: Promise<void>, limitMs: number): Promise<void> {
  const { promise, reject } = Promise.withResolvers<never>()
  const timer = setTimeout(() => reject(new OrbError('wake_timeout', 'The agent did not wake in time.')), limitMs)
  try {
    await Promise.race([work, promise])
  } finally {
    clearTimeout(timer)
  }
}
