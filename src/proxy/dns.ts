import { log } from '../log.ts'
import { blocked, leadsOf, nameAsked } from './dns-filter.ts'
import { answers, failure, isQuery, isRetryable } from './dns-message.ts'
import { askTcp, askUdp, type Upstream } from './dns-upstream.ts'

export interface DnsOptions {
  /** Address to listen on, with UDP and TCP. */
  hostname: string
  /** Name servers, as addresses, in order of preference. */
  upstreams: string[]
  /** 53 when absent. */
  port?: number
  /** Port of the name servers; 53 when absent. */
  upstreamPort?: number
  /** What a client may ask; null: everything. */
  filterOf?(client: string): NameFilter | null
}

/** The names that one client may look up. */
export interface NameFilter {
  /** @param name in lower case, without its last dot */
  allows(name: string): boolean
  /** Is told where an allowed name leads before the client is. May throw: then the client is not told. */
  learn(name: string, leads: NameLead[]): void
}

/** An IPv4 address, as a number, that a name leads to. */
export interface NameLead {
  address: number
  ttlSeconds: number
}

const DNS_PORT = 53
/** A stub resolver asks again after 5 s (resolv.conf(5)): it should have an answer by then. */
const TOTAL_TIMEOUT_MS = 4500
const ATTEMPT_TIMEOUT_MS = 2000
/** Queries that wait for a name server: in all, and of one computer. Beyond that they are dropped; clients ask again. */
const MAX_OUTSTANDING = 1000
const MAX_OUTSTANDING_PER_CLIENT = 200
/** An answer is sent again where the kernel tells of an earlier one instead. More may be waiting to be told. */
const SEND_ATTEMPTS = 3
/** Connections: in all, and of one computer. */
const MAX_CONNECTIONS = 256
const MAX_CONNECTIONS_PER_CLIENT = 16
const IDLE_CONNECTION_S = 10
/** Length of a message, before it on a connection (RFC 1035 §4.2.2), and the longest that it can tell. */
const LENGTH_BYTES = 2
const MAX_MESSAGE_BYTES = 65_535
/** What a connection may have sent and not yet had answered. */
const MAX_BUFFERED_BYTES = LENGTH_BYTES + MAX_MESSAGE_BYTES

interface Connection {
  client: string
  buffered: Buffer
  busy: boolean
  unsent: Buffer
}

type Ask = (upstream: Upstream, query: Uint8Array, timeoutMs: number) => Promise<Uint8Array>

/**
 * The name server of all computers: passes queries on to the host's name servers, in order, and their answers back. One
 * query makes one answer at most; when no server answers, a refusal (SERVFAIL) that is no longer than the query.
 */
export async function startDns(options: DnsOptions): Promise<{ port: number; stop(): Promise<void> }> {
  const upstreams = options.upstreams.map((address) => ({ address, port: options.upstreamPort ?? DNS_PORT }))
  const outstanding = new Counter(MAX_OUTSTANDING, MAX_OUTSTANDING_PER_CLIENT)
  const connections = new Counter(MAX_CONNECTIONS, MAX_CONNECTIONS_PER_CLIENT)

  /** The answer to a query, or null when it is none or too many wait. */
  async function answer(client: string, query: Buffer, ask: Ask): Promise<Uint8Array | null> {
    if (!isQuery(query)) return null
    const filter = options.filterOf?.(client) ?? null
    const name = filter && nameAsked(query)
    if (filter && (name === null || !filter.allows(name))) return blocked(query)
    if (!outstanding.take(client)) return null
    try {
      const reply = await forward(upstreams, query, ask)
      if (name !== null) learn(options.filterOf?.(client) ?? null, name, reply)
      return reply
    } catch (error) {
      log('warn', 'an address cannot be opened to a computer', { client, error })
      return failure(query)
    } finally {
      outstanding.release(client)
    }
  }

  // The stream first: of the two kinds its ports are the ones that a closed connection keeps for a while.
  const tcp = Bun.listen<Connection>({
    hostname: options.hostname,
    port: options.port ?? DNS_PORT,
    socket: {
      open(socket) {
        const client = socket.remoteAddress
        socket.data = { client, buffered: Buffer.alloc(0), busy: false, unsent: Buffer.alloc(0) }
        socket.timeout(IDLE_CONNECTION_S)
        if (connections.take(client)) return
        // Not counted, so its end must not be either.
        socket.data.client = ''
        socket.terminate()
      },
      data(socket, chunk) {
        const { data } = socket
        data.buffered = Buffer.concat([data.buffered, chunk])
        if (data.buffered.length > MAX_BUFFERED_BYTES) return void socket.terminate()
        serve(socket, answer).catch((error) => {
          log('error', 'a query of a computer failed', { client: data.client, error })
          socket.terminate()
        })
      },
      drain(socket) {
        socket.data.unsent = socket.data.unsent.subarray(socket.write(socket.data.unsent))
      },
      timeout: (socket) => void socket.terminate(),
      error: (socket) => void socket.terminate(),
      close: ({ data }) => connections.release(data.client),
    },
  })
  try {
    const udp = await Bun.udpSocket({
      hostname: options.hostname,
      port: tcp.port,
      socket: {
        data(socket, query, port, address) {
          answer(address, Buffer.from(query), askUdp)
            .then((reply) => {
              if (reply && !socket.closed) sendTo(socket, reply, port, address)
            })
            .catch((error) => log('error', 'a query of a computer failed', { client: address, error }))
        },
        // Each answer to somebody who is gone makes one. They say nothing of the socket, and there may be any number of them.
        error: () => undefined,
      },
    })
    return {
      port: tcp.port,
      async stop() {
        udp.close()
        tcp.stop(true)
      },
    }
  } catch (thrown) {
    tcp.stop(true)
    throw thrown
  }
}

/** Sends an answer. Whoever does not get it asks again. */
function sendTo(socket: Bun.udp.Socket<'buffer'>, reply: Uint8Array, port: number, address: string): void {
  for (let attempt = 0; attempt < SEND_ATTEMPTS; attempt++) {
    try {
      socket.send(reply, port, address)
      return
    } catch {
      // That an earlier answer found nobody (ECONNREFUSED), the kernel tells whoever sends next.
    }
  }
}

/** @param filter as it is now: it may have changed since the query came */
function learn(filter: NameFilter | null, name: string, reply: Uint8Array): void {
  if (!filter?.allows(name)) return
  const leads = leadsOf(name, reply)
  if (leads.length > 0) filter.learn(name, leads)
}

/** Answers the queries of a connection one after the other. */
async function serve(
  socket: Bun.Socket<Connection>,
  answer: (client: string, query: Buffer, ask: Ask) => Promise<Uint8Array | null>,
): Promise<void> {
  const { data } = socket
  if (data.busy) return
  data.busy = true
  for (let query = takeMessage(data); query; query = takeMessage(data)) {
    const reply = await answer(data.client, query, askTcp)
    if (!reply) {
      socket.terminate()
      break
    }
    const framed = Buffer.concat([Buffer.from([reply.length >> 8, reply.length & 0xff]), reply])
    // Whoever does not read his answers gets no more of them.
    if (data.unsent.length > 0) {
      socket.terminate()
      break
    }
    const written = Math.max(0, socket.write(framed))
    data.unsent = framed.subarray(written)
    socket.timeout(IDLE_CONNECTION_S)
  }
  data.busy = false
}

function takeMessage(data: Connection): Buffer | null {
  if (data.buffered.length < LENGTH_BYTES) return null
  const end = LENGTH_BYTES + data.buffered.readUInt16BE(0)
  if (data.buffered.length < end) return null
  const message = data.buffered.subarray(LENGTH_BYTES, end)
  data.buffered = data.buffered.subarray(end)
  return message
}

/** Asks one server after the other until one knows. */
async function forward(upstreams: Upstream[], query: Buffer, ask: Ask): Promise<Uint8Array> {
  // A datagram can be lost: the only server is asked twice.
  const attempts = upstreams.length === 1 ? [...upstreams, ...upstreams] : upstreams
  const timeoutMs = Math.min(ATTEMPT_TIMEOUT_MS, TOTAL_TIMEOUT_MS / Math.max(1, attempts.length))
  let refusal: Uint8Array | null = null
  for (const upstream of attempts) {
    const reply = await ask(upstream, query, timeoutMs).catch(() => null)
    if (!reply || !answers(query, reply)) continue
    if (!isRetryable(reply)) return reply
    refusal = reply
  }
  return refusal ?? failure(query)
}

/** Counts what is in use, in all and of each client. */
class Counter {
  private readonly byClient = new Map<string, number>()
  private all = 0

  constructor(
    private readonly most: number,
    private readonly mostOfOne: number,
  ) {}

  /** False when there is no more; nothing is taken then. */
  take(client: string): boolean {
    const own = this.byClient.get(client) ?? 0
    if (this.all >= this.most || own >= this.mostOfOne) return false
    this.byClient.set(client, own + 1)
    this.all++
    return true
  }

  release(client: string): void {
    const own = this.byClient.get(client)
    if (own === undefined) return
    if (own === 1) this.byClient.delete(client)
    else this.byClient.set(client, own - 1)
    this.all--
  }
}
