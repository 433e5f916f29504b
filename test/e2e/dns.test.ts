/** Names as computers see them. Needs root. */
import { expect, test } from 'bun:test'
import { startDns } from '../../src/proxy/dns.ts'
import { startRuntime } from '../support/runtime.ts'

const TEST_TIMEOUT_MS = 30_000
const LOOPBACK_SERVER = '127.0.0.53'
const ADDRESS = [203, 0, 113, 7]
const TYPE_A = 1
const HEADER_BYTES = 12

/** A name server that knows one address for every name, and no IPv6. */
async function nameServer() {
  return Bun.udpSocket({
    hostname: LOOPBACK_SERVER,
    port: 0,
    socket: {
      data(socket, bytes, port, address) {
        const query = Buffer.from(bytes)
        const end = query.indexOf(0, HEADER_BYTES) + 5
        const known = query.readUInt16BE(end - 4) === TYPE_A
        // RFC 1035 §4.1: the header with the response bit, the question, an A record that points to the question's name.
        const header = Buffer.concat([
          query.subarray(0, 2),
          Buffer.from([0x81, 0x80, 0, 1, 0, Number(known), 0, 0, 0, 0]),
        ])
        const record = Buffer.from([0xc0, HEADER_BYTES, 0, TYPE_A, 0, 1, 0, 0, 0, 60, 0, 4, ...ADDRESS])
        const reply = Buffer.concat([header, query.subarray(HEADER_BYTES, end), known ? record : Buffer.alloc(0)])
        socket.send(reply, port, address)
      },
    },
  })
}

test(
  'a computer asks the gateway, which asks the name server of the host',
  async () => {
    await using host = await startRuntime()
    const computer = await host.computer()
    const upstream = await nameServer()
    const { gateway } = host.runtime.network
    const dns = await startDns({ hostname: gateway, upstreams: [LOOPBACK_SERVER], upstreamPort: upstream.port })
    const look = (command: string) =>
      host.runtime.exec(computer, {
        argv: ['bash', '-c', command],
        env: { PATH: '/usr/bin:/bin' },
        cwd: '/',
        purpose: 'exec',
        timeoutMs: 10_000,
        maxBytes: 1000,
      })
    try {
      expect((await look('getent ahostsv4 some.name.test')).stdout).toStartWith(ADDRESS.join('.'))
      // The name server itself, and any other, is out of reach.
      const direct = `exec 3<>/dev/tcp/${LOOPBACK_SERVER}/${upstream.port}`
      expect((await look(direct)).exitCode).not.toBe(0)
    } finally {
      await dns.stop()
      upstream.close()
    }
    expect((await look('getent ahostsv4 other.name.test')).exitCode).not.toBe(0)
  },
  TEST_TIMEOUT_MS,
)
