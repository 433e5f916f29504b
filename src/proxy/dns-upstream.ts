import { answers } from './dns-message.ts'

/** A name server. */
export interface Upstream {
  address: string
  port: number
}

const LENGTH_BYTES = 2

/**
 * Asks over UDP, from a port of its own: the kernel gives it answers of that server alone, and a stranger would have to
 * guess the port beside the id. @throws Error without an answer in time
 */
export async function askUdp(upstream: Upstream, query: Uint8Array, timeoutMs: number): Promise<Uint8Array> {
  const { promise, resolve, reject } = Promise.withResolvers<Uint8Array>()
  const socket = await Bun.udpSocket({
    connect: { hostname: upstream.address, port: upstream.port },
    socket: {
      data(_, reply) {
        // A late answer to another query is not the end of this one.
        if (answers(query, reply)) resolve(new Uint8Array(reply))
      },
      error: (_, error) => reject(error),
    },
  })
  const timer = setTimeout(() => reject(new Error('no answer in time')), timeoutMs)
  try {
    socket.send(query)
    return await promise
  } finally {
    clearTimeout(timer)
    socket.close()
  }
}

/** Asks over TCP, on a connection of its own. @throws Error without an answer in time */
export async function askTcp(upstream: Upstream, query: Uint8Array, timeoutMs: number): Promise<Uint8Array> {
  const { promise, resolve, reject } = Promise.withResolvers<Uint8Array>()
  const timer = setTimeout(() => reject(new Error('no answer in time')), timeoutMs)
  let received = Buffer.alloc(0)
  const connecting = Bun.connect({
    hostname: upstream.address,
    port: upstream.port,
    socket: {
      open: (socket) =>
        void socket.write(Buffer.concat([Buffer.from([query.length >> 8, query.length & 0xff]), query])),
      data(_, chunk) {
        received = Buffer.concat([received, chunk])
        if (received.length < LENGTH_BYTES) return
        const end = LENGTH_BYTES + received.readUInt16BE(0)
        if (received.length >= end) resolve(received.subarray(LENGTH_BYTES, end))
      },
      error: (_, error) => reject(error),
      close: () => reject(new Error('the connection was closed')),
    },
  })
  connecting.catch(reject)
  try {
    return await promise
  } finally {
    clearTimeout(timer)
    void connecting.then((socket) => socket.terminate()).catch(() => {})
  }
}
