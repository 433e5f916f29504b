import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Socket, TCPSocketListener } from 'bun'
import { parseAllowList } from '../addresses.ts'
import { OrbError } from '../errors.ts'
import type { CallJournal, JournalEntry } from './journal.ts'
import { type LlmProxy, type LlmProxyOptions, startLlmProxy } from './llm.ts'
import type { CallOutcome, LlmCall, LlmDirectory, LlmPeer, LlmSettings } from './types.ts'

/** For the tests of the proxy: raw connections, and a directory whose one agent sleeps and wakes when told. */

const WAIT_LIMIT_MS = 10_000

/** Waits until `condition` holds, looking after each event loop turn; throws `what` after 10 s. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  const limit = performance.now() + WAIT_LIMIT_MS
  while (!condition()) {
    if (performance.now() > limit) throw new Error(`did not happen: ${what}`)
    await Bun.sleep(1)
  }
}

const SETTLE_MS = 30

/** Lets all that is under way on loopback arrive, for tests of what must not. */
export const settle = (): Promise<void> => Bun.sleep(SETTLE_MS)

/** One end of a plain TCP connection; keeps what it received and sends everything it is given. */
export class RawConnection {
  received = ''
  bytes = 0
  closed = false
  broken = false
  keep = true
  private pending: Buffer[] = []

  constructor(readonly socket: Socket<RawConnection>) {}

  write(data: string | Uint8Array): void {
    this.pending.push(typeof data === 'string' ? Buffer.from(data, 'latin1') : Buffer.from(data))
    this.drain()
  }

  drain(): void {
    while (this.pending[0] !== undefined && !this.closed) {
      const taken = this.socket.write(this.pending[0])
      if (taken < this.pending[0].length) {
        this.pending[0] = this.pending[0].subarray(Math.max(0, taken))
        return
      }
      this.pending.shift()
    }
  }

  /** Resolves when what was received contains `text`, and returns all of it. */
  async has(text: string): Promise<string> {
    await until(() => this.received.includes(text), `receive ${JSON.stringify(text)}; got ${this.received.slice(-300)}`)
    return this.received
  }

  async isClosed(): Promise<void> {
    await until(() => this.closed, 'the connection closes')
  }

  reset(): void {
    this.socket.terminate()
  }
}

const handlers = (onOpen?: (connection: RawConnection) => void, onData?: (connection: RawConnection) => void) => ({
  open(socket: Socket<RawConnection>) {
    socket.data ??= new RawConnection(socket)
    onOpen?.(socket.data)
  },
  data(socket: Socket<RawConnection>, bytes: Buffer) {
    socket.data.bytes += bytes.length
    if (socket.data.keep) socket.data.received += bytes.toString('latin1')
    onData?.(socket.data)
  },
  drain(socket: Socket<RawConnection>) {
    socket.data.drain()
  },
  close(socket: Socket<RawConnection>, error?: Error) {
    socket.data.closed = true
    socket.data.broken = error !== undefined
  },
  error() {},
})

export interface RawServer {
  port: number
  connections: RawConnection[]
  stop(): void
}

/** A server that does nothing by itself; `onData` sees each connection whenever something came on it. */
export function rawServer(onData?: (connection: RawConnection) => void, tls?: Bun.TLSOptions): RawServer {
  const connections: RawConnection[] = []
  const listener: TCPSocketListener<RawConnection> = Bun.listen<RawConnection>({
    hostname: '127.0.0.1',
    port: 0,
    tls,
    socket: handlers((connection) => connections.push(connection), onData),
  })
  return { port: listener.port, connections, stop: () => listener.stop(true) }
}

export async function rawClient(port: number): Promise<RawConnection> {
  const socket = await Bun.connect<RawConnection>({ hostname: '127.0.0.1', port, socket: handlers() })
  return socket.data
}

/** A call as the directory sees it; `log` holds what the proxy said of it, in order. */
export class FakeCall implements LlmCall {
  log: string[] = []
  outcome: CallOutcome | null = null
  private hasSlept = false

  constructor(private readonly agent: FakeAgent) {
    this.hasSlept = agent.asleep
  }

  waiting(): void {
    this.say('waiting')
  }

  answering(): void {
    this.say('answering')
  }

  wake(): Promise<void> | undefined {
    this.say('wake')
    return this.agent.gate?.promise
  }

  writable(): Promise<void> | undefined {
    if (this.outcome !== null) throw new Error('writable after end')
    return this.agent.gate?.promise
  }

  slept(): boolean {
    return this.hasSlept
  }

  end(outcome: CallOutcome): void {
    this.say(outcome)
    this.outcome = outcome
  }

  fellAsleep(): void {
    if (this.outcome === null) this.hasSlept = true
  }

  private say(word: string): void {
    if (this.outcome !== null) throw new Error(`${word} after end`)
    if (this.log.includes(word)) throw new Error(`${word} twice`)
    this.log.push(word)
  }
}

/** The agent of the one computer behind all connections. */
export class FakeAgent implements LlmDirectory {
  calls: FakeCall[] = []
  gate: PromiseWithResolvers<void> | null = null
  agentTree = true
  computerId = 'computer-1'
  known = true
  /** Requests that were no replays. */
  ownCalls = 0

  constructor(public llm: LlmSettings) {}

  get asleep(): boolean {
    return this.gate !== null
  }

  identify(): LlmPeer | null {
    if (!this.known) return null
    const agent = this
    const { computerId } = this
    return {
      computerId,
      get llm() {
        return agent.llm
      },
      get agentTree() {
        return agent.agentTree
      },
      begin() {
        const call = new FakeCall(agent)
        agent.calls.push(call)
        return call
      },
      ownCall() {
        agent.ownCalls++
      },
    }
  }

  sleep(): void {
    this.gate = Promise.withResolvers()
    this.gate.promise.catch(() => {})
    for (const call of this.calls) call.fellAsleep()
  }

  wakeUp(): void {
    const { gate } = this
    this.gate = null
    gate?.resolve()
  }

  cannotWake(): void {
    const { gate } = this
    this.gate = null
    gate?.reject(new OrbError('wake_failed', 'no'))
  }

  async outcome(call = 0): Promise<CallOutcome> {
    await until(() => this.calls[call]?.outcome != null, `call ${call} ends`)
    return this.calls[call]?.outcome ?? 'upstream_error'
  }
}

/** Says what it was told of each call, in order; what was told twice in a row once. */
export class FakeJournal implements CallJournal {
  calls: string[][] = []

  begin(): JournalEntry {
    const words: string[] = []
    this.calls.push(words)
    const say = (word: string) => () => void (words.at(-1) === word || words.push(word))
    return {
      body: say('body'),
      sent: say('sent'),
      answered: say('answered'),
      answer: say('answer'),
      append: say('append'),
      complete: say('complete'),
      delivered: say('delivered'),
      remove: say('remove'),
    }
  }

  leftAnswers(): [] {
    return []
  }

  takeUnanswered(): null {
    return null
  }

  forget(): void {}

  close(): void {}
}

export interface Bench extends LlmProxy {
  agent: FakeAgent
  /** Unless the test gave another one. */
  journal: FakeJournal
  spoolDir: string
  end(): Promise<void>
}

/** A proxy whose agent talks to `baseUrl`; anything on loopback is allowed unless `over` says otherwise. */
export function startBench(baseUrl: string | null, over: Partial<LlmProxyOptions> = {}): Bench {
  const agent = new FakeAgent({ baseUrl, provider: 'custom' })
  const spoolDir = mkdtempSync(join(tmpdir(), 'orb-proxy-'))
  const journal = new FakeJournal()
  const proxy = startLlmProxy({
    hostname: '127.0.0.1',
    port: 0,
    directory: agent,
    allowPrivate: parseAllowList('127.0.0.0/8'),
    spoolDir,
    journal,
    llmTimeoutMs: 60_000,
    replayTtlMs: 60_000,
    ...over,
  })
  const end = async (): Promise<void> => {
    await proxy.stop()
    rmSync(spoolDir, { recursive: true })
  }
  return { ...proxy, agent, journal, spoolDir, end }
}

/** A POST as an agent sends it. */
export const post = (body: string, headers: string[] = [], path = '/v1/messages'): string =>
  [`POST ${path} HTTP/1.1`, 'Host: gateway:8788', `Content-Length: ${body.length}`, ...headers, '', body].join('\r\n')
