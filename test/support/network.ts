/** Programs inside network namespaces, and a server that they talk to. Needs root. */
import { randomInt } from 'node:crypto'
import { Network, type NetworkOptions } from '../../src/runtime/network.ts'
import { until } from './sweep.ts'

const WAIT_MS = 5000
const ATTEMPT_SECONDS = 6
/** Subnets of tests: apart from the default one, and from each other when two runs meet. */
const FIRST_NET = 64
const LAST_NET = 250

/** Options for a network on a subnet of its own. */
export const testNetwork = (ports: { proxyPort: number; apiPort?: number; allow?: string[] }): NetworkOptions => ({
  subnet: { base: ((10 << 24) | (randomInt(FIRST_NET, LAST_NET) << 16) | (randomInt(256) << 8)) >>> 0, bits: 24 },
  proxyPort: ports.proxyPort,
  apiPort: ports.apiPort ?? null,
  allow: ports.allow ?? [],
})

export async function eventually(done: () => boolean | Promise<boolean>, what: string): Promise<void> {
  if (!(await until(done, WAIT_MS))) throw new Error(`did not come in time: ${what}`)
}

/** A TCP server on all of the machine's addresses. */
export class TestServer implements Disposable {
  /** Of each connection, in the order of their coming. */
  readonly peers: { address: string; port: number; received: string; closed: boolean; write(text: string): void }[] = []
  readonly port: number
  private readonly server

  constructor() {
    this.server = Bun.listen<{ index: number }>({
      hostname: '0.0.0.0',
      port: 0,
      socket: {
        open: (socket) => {
          socket.data = { index: this.peers.length }
          this.peers.push({
            address: socket.remoteAddress,
            port: socket.remotePort,
            received: '',
            closed: false,
            write: (text) => void socket.write(text),
          })
        },
        data: (socket, bytes) => {
          const peer = this.peers[socket.data.index]
          if (peer) peer.received += bytes.toString()
        },
        close: (socket) => {
          const peer = this.peers[socket.data.index]
          if (peer) peer.closed = true
        },
      },
    })
    this.port = this.server.port
  }

  [Symbol.dispose](): void {
    this.server.stop(true)
  }
}

/** A connection from inside a namespace that hands its input on and keeps what comes. */
export class TestClient {
  output = ''
  private constructor(private readonly child: Bun.Subprocess<'pipe', 'pipe', 'pipe'>) {
    for (const stream of [child.stdout, child.stderr]) void this.collect(stream)
  }

  /** @param procs a cgroup.procs file that the program joins before it connects */
  static async connect(netns: string, address: string, port: number, procs = '/dev/null'): Promise<TestClient> {
    const script = 'exec 3<>"/dev/tcp/$1/$2" && echo connected && { cat <&0 >&3 & cat <&3; }'
    const client = TestClient.start(netns, procs, ['bash', '--norc', '-c', script, 'bash', address, String(port)])
    await client.shows('connected\n')
    return client
  }

  static start(netns: string, procs: string, argv: string[]): TestClient {
    const entry = ['sh', '-c', 'echo $$ > "$0" && exec ip netns exec "$@"', procs, netns, ...argv]
    const env = { PATH: process.env.PATH ?? '', LC_ALL: 'C' }
    return new TestClient(Bun.spawn(entry, { stdin: 'pipe', stdout: 'pipe', stderr: 'pipe', env }))
  }

  send(text: string): void {
    this.child.stdin.write(text)
    void this.child.stdin.flush()
  }

  shows(text: string): Promise<void> {
    return eventually(() => this.output.includes(text), `${JSON.stringify(text)} in ${JSON.stringify(this.output)}`)
  }

  get exited(): Promise<number> {
    return this.child.exited
  }

  private async collect(stream: ReadableStream<Uint8Array>): Promise<void> {
    for await (const chunk of stream) this.output += Buffer.from(chunk).toString()
  }
}

/** Tries a connection; null when it was made, else what the kernel said, and how long that took. */
export async function attempt(
  netns: string,
  address: string,
  port: number,
): Promise<{ error: string | null; ms: number }> {
  const started = performance.now()
  const script = 'exec 3<>"/dev/tcp/$0/$1"'
  const argv = ['timeout', String(ATTEMPT_SECONDS), 'bash', '-c', script, address, String(port)]
  const child = Bun.spawn(['ip', 'netns', 'exec', netns, ...argv], {
    stderr: 'pipe',
    env: { ...process.env, LC_ALL: 'C' },
  })
  const [text, code] = [await new Response(child.stderr).text(), await child.exited]
  const error = code === 0 ? null : text.trim().split(': ').at(-1) || 'no answer'
  return { error, ms: performance.now() - started }
}

export async function ip(...argv: string[]): Promise<string> {
  const child = Bun.spawn(['ip', ...argv], { stdout: 'pipe', stderr: 'pipe' })
  const [out, err] = [await new Response(child.stdout).text(), await new Response(child.stderr).text()]
  if ((await child.exited) !== 0) throw new Error(`ip ${argv.join(' ')}: ${err.trim()}`)
  return out
}

/** Ends all that runs in a namespace. */
export async function killIn(netns: string): Promise<void> {
  await eventually(async () => {
    const pids = (await ip('netns', 'pids', netns).catch(() => '')).split('\n').filter(Boolean).map(Number)
    for (const pid of pids) {
      try {
        process.kill(pid, 'SIGKILL')
      } catch {
        // Gone meanwhile.
      }
    }
    return pids.length === 0
  }, `the end of all processes in ${netns}`)
}

/** Name of the nftables table of the network with this gateway. */
export const tableOf = (gateway: string): string =>
  `orb_${gateway
    .split('.')
    .map((part) => Number(part).toString(16).padStart(2, '0'))
    .join('')}`

/** A network with computers in it; all of it is gone after the test. */
export class TestNetwork implements AsyncDisposable {
  private readonly shortIds: string[] = []
  private constructor(
    readonly options: NetworkOptions,
    public network: Network,
  ) {}

  static async start(options: NetworkOptions): Promise<TestNetwork> {
    if (process.getuid?.() !== 0) throw new Error('this test needs root')
    return new TestNetwork(options, await Network.start(options, new Map()))
  }

  /** A computer in the next slot. */
  async computer(): Promise<{ shortId: string; slot: number; name: string; address: string }> {
    const shortId = randomInt(2 ** 31)
      .toString(16)
      .padStart(8, '0')
    this.shortIds.push(shortId)
    const slot = this.shortIds.length
    await this.network.create(shortId, slot)
    return { shortId, slot, name: `orb-${shortId}`, address: this.network.address(slot) }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const shortId of this.shortIds) {
      await killIn(`orb-${shortId}`)
      await this.network.remove(shortId)
    }
    await this.network.stop()
  }
}

const PUBLIC_PREFIXES = ['203.0.113', '198.51.100']
/** Of a /28: the server's own address on the way, the hosts. */
const UPLINK_HOST = 1
const FIRST_HOST = 2
const HOSTS = 12
const BLOCK = 16

/**
 * A stand-in for the internet: a namespace with public addresses, and a server on all of them that says who called and
 * sends back what it gets.
 */
export class Internet implements AsyncDisposable {
  private constructor(
    readonly name: string,
    readonly listener: TestClient,
    readonly port: number,
    /** The server's own address on the way there. */
    readonly uplink: string,
    readonly addresses: string[],
  ) {}

  static async start(): Promise<Internet> {
    const name = `net-${randomInt(2 ** 31).toString(16)}`
    const taken = await ip('-o', '-4', 'addr', 'show')
    const blocks = PUBLIC_PREFIXES.flatMap((prefix) =>
      Array.from({ length: 256 / BLOCK }, (_, index) => (last: number) => `${prefix}.${index * BLOCK + last}`),
    ).filter((block) => !taken.includes(` ${block(UPLINK_HOST)}/`))
    const block = blocks[randomInt(blocks.length)]
    if (!block) throw new Error('all public addresses of tests are in use')
    const addresses = Array.from({ length: HOSTS }, (_, index) => block(FIRST_HOST + index))
    await ip('netns', 'add', name)
    await ip('link', 'add', name, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', name)
    await ip('addr', 'add', `${block(UPLINK_HOST)}/28`, 'dev', name)
    await ip('link', 'set', name, 'up')
    for (const address of addresses) await ip('-n', name, 'addr', 'add', `${address}/28`, 'dev', 'eth0')
    await ip('-n', name, 'link', 'set', 'eth0', 'up')
    await ip('-n', name, 'link', 'set', 'lo', 'up')
    const listen = `const s = Bun.listen({ hostname: '0.0.0.0', port: 0, socket: {
      data(socket, data) { socket.write(data) }, open(socket) { console.log('from ' + socket.remoteAddress) } } });
      const u = await Bun.udpSocket({ hostname: '0.0.0.0', port: s.port, socket: {
        data(_, data) { console.log('datagram ' + data) } } });
      console.log('port ' + s.port)`
    const listener = TestClient.start(name, '/dev/null', [process.execPath, '-e', listen])
    await eventually(() => /port \d+\n/.test(listener.output), 'a listener')
    return new Internet(name, listener, Number(/port (\d+)/.exec(listener.output)?.[1]), block(UPLINK_HOST), addresses)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await ip('link', 'delete', this.name)
    await killIn(this.name)
    await ip('netns', 'delete', this.name)
  }
}
