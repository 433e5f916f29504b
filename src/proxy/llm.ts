import type { AllowEntry } from '../addresses.ts'
import { log } from '../log.ts'
import { AgentConnection } from './agent-connection.ts'
import { StoredAnswer } from './answer.ts'
import { Exchange } from './exchange.ts'
import type { CallJournal } from './journal.ts'
import { MemoryKeptAnswers } from './replay.ts'
import type { TurnContext } from './turn.ts'
import type { LlmDirectory } from './types.ts'
import { UpstreamLinks } from './upstream-link.ts'

/** How often `stop` looks whether the open calls are over. */
const STOP_POLL_MS = 20

export interface LlmProxyOptions {
  hostname: string
  /** 0: any free one. */
  port: number
  directory: LlmDirectory
  /** Upstreams that may be private or plain http (ORB_ALLOW_PRIVATE). */
  allowPrivate: readonly AllowEntry[]
  /** An existing directory for what is held beyond memory. */
  spoolDir: string
  journal: CallJournal
  /** Longest wait for a response head and for each gap in a body (ORB_LLM_TIMEOUT). */
  llmTimeoutMs: number
  /** How long an answer whose agent lost its connection waits for the same request (ORB_REPLAY_TTL). */
  replayTtlMs: number
  /** PEM of the authorities to trust for https upstreams instead of the system's. */
  ca?: string
  /** Addresses of an upstream's name; default: the system's resolver. */
  resolve?: (host: string) => Promise<string[]>
}

export interface LlmProxy {
  port: number
  /**
   * The agent of this computer is gone without its kernel having said so (killed under the network lock): its
   * connections are broken off, and what it slept through is kept for a replay.
   */
  drop(computerId: string): void
  /** The ports at the other end of a computer's open connections. */
  heldPorts(computerId: string): ReadonlySet<number>
  /** The agent that asked is no more, or the computer: nothing of its calls stays. */
  forget(computerId: string): void
  /**
   * The agent sleeps, and its connections died with the orb that held them. Fetches what it waits for: `wake` is called
   * when the first byte of an answer, its end or a failure is there, at once where a former orb left an answer. The same
   * request, which the agent makes when it finds its connection lost, gets it. False: that cannot be done.
   */
  resume(computerId: string, wake: () => void): boolean
  /** Takes no more requests, gives open ones `graceMs`, then breaks off what is left. */
  stop(graceMs?: number): Promise<void>
}

/**
 * The plaintext HTTP proxy between agents and their LLMs (Orb Cloud contract §11). One listener serves all computers;
 * the peer's address tells which one is speaking.
 */
export function startLlmProxy(options: LlmProxyOptions): LlmProxy {
  const kept = new MemoryKeptAnswers(options.replayTtlMs)
  const links = new UpstreamLinks(options)
  const { journal, spoolDir } = options
  const context: TurnContext = { kept, links, journal, spoolDir, timeoutMs: options.llmTimeoutMs }
  const connections = new Map<string, Set<AgentConnection>>()
  let accepting = true

  const remove = (connection: AgentConnection): void => {
    const set = connections.get(connection.peer.computerId)
    set?.delete(connection)
    if (set?.size === 0) connections.delete(connection.peer.computerId)
  }

  for (const { computerId, key, head, body, ttlMs, entry } of journal.leftAnswers()) {
    kept.keep(computerId, key, new StoredAnswer(head, body, entry), { ttlMs })
  }

  const listener = Bun.listen<AgentConnection | null>({
    hostname: options.hostname,
    port: options.port,
    socket: {
      open(socket) {
        const peer = options.directory.identify({ address: socket.remoteAddress, port: socket.remotePort })
        if (peer === null) {
          socket.data = null
          socket.terminate()
          return
        }
        socket.setNoDelay(true)
        // A probe into a sleeping computer would be answered by a reset.
        socket.setKeepAlive(false)
        const connection = new AgentConnection(context, peer, socket, () => accepting, remove)
        socket.data = connection
        const set = connections.get(peer.computerId)
        if (set === undefined) connections.set(peer.computerId, new Set([connection]))
        else set.add(connection)
      },
      data(socket, bytes) {
        socket.data?.onData(bytes)
      },
      drain(socket) {
        socket.data?.onDrain()
      },
      close(socket, error) {
        socket.data?.onClose(error !== undefined)
      },
      error(socket, error) {
        log('error', 'llm proxy failed', { error })
        if (socket.data == null) socket.terminate()
        else socket.data.abort()
      },
    },
  })

  const drop = (computerId: string): void => {
    for (const connection of [...(connections.get(computerId) ?? [])]) connection.abort()
  }

  const heldPorts = (computerId: string): Set<number> =>
    new Set([...(connections.get(computerId) ?? [])].map(({ port }) => port))

  const all = (): AgentConnection[] => [...connections.values()].flatMap((set) => [...set])

  return {
    port: listener.port,
    drop,
    heldPorts,
    forget(computerId) {
      drop(computerId)
      kept.forget(computerId)
      journal.forget(computerId)
    },
    resume(computerId, wake) {
      if (kept.any(computerId)) {
        wake()
        return true
      }
      const calls = journal.takeUnanswered(computerId)
      let noticed = () => {
        noticed = () => {}
        wake()
      }
      for (const { key, request, body, entry } of calls ?? []) {
        const exchange = new Exchange(context, request, entry)
        kept.keep(computerId, key, exchange, { noticed: () => noticed() })
        exchange.sendBody(body)
      }
      return calls !== null
    },
    async stop(graceMs = 0) {
      accepting = false
      listener.stop()
      const deadline = performance.now() + graceMs
      while (performance.now() < deadline && all().some((connection) => connection.busy)) await Bun.sleep(STOP_POLL_MS)
      journal.close()
      for (const connection of all()) connection.abort()
      kept.clear()
      links.close()
    },
  }
}
