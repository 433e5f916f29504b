/* Locks, resets and who is calling, over real connections. Needs root. */
import { afterEach, beforeEach, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { eventually, TestClient, TestNetwork, TestServer, tableOf, testNetwork } from '../../test/support/network.ts'
import { Cgroups } from './cgroup.ts'
import type { Connection } from './netlink.ts'
import { addressNumber, Network } from './network.ts'

setDefaultTimeout(30_000)

/** What must not come through a lock gets this long to come: the kernel sends again after 0.2 s. */
const SILENCE_MS = 500
const LIMITS = { softBytes: 2 ** 26, hardBytes: 2 ** 28, pids: 100, cpuQuotaUs: 190_000 }

/** A computer with the cgroups of its agent and of one command, a server as its LLM proxy and another as the API. */
class Scene implements AsyncDisposable {
  readonly cgroups = Cgroups.detect()
  readonly proxy = new TestServer()
  readonly api = new TestServer()
  net!: TestNetwork
  computer!: Awaited<ReturnType<TestNetwork['computer']>>

  async setUp(): Promise<this> {
    this.net = await TestNetwork.start(testNetwork({ proxyPort: this.proxy.port, apiPort: this.api.port }))
    this.computer = await this.net.computer()
    this.cgroups.create(this.computer.name, LIMITS)
    return this
  }

  get network(): Network {
    return this.net.network
  }

  get agentCgroup(): bigint {
    return this.cgroups.agentId(this.computer.name)
  }

  /** A connection of the agent, or of a command, and the server's end of it. */
  async connect(leaf: 'agent' | 'exec-a', server = this.proxy) {
    const procs = this.cgroups.joinFiles(this.computer.name, leaf)[0]
    const known = server.peers.length
    const client = await TestClient.connect(this.computer.name, this.network.gateway, server.port, procs)
    await eventually(() => server.peers.length > known, 'the connection')
    const peer = server.peers[known]
    if (!peer) throw new Error('no peer')
    return { client, peer }
  }

  lockAgent(): Connection[] {
    const connections = this.network.connectionsOf(this.computer.shortId, this.agentCgroup)
    this.network.lock(this.computer.shortId, connections)
    return connections
  }

  async locked(): Promise<string> {
    const list = await Bun.$`nft list set inet ${tableOf(this.network.gateway)} locked`.text()
    return list.split('elements')[1] ?? ''
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.net[Symbol.asyncDispose]()
    this.cgroups.remove(this.computer.name)
    this.proxy[Symbol.dispose]()
    this.api[Symbol.dispose]()
  }
}

let scene: Scene
beforeEach(async () => {
  scene = await new Scene().setUp()
})
afterEach(async () => {
  await scene[Symbol.asyncDispose]()
})

/** Nothing of what `seen` tells may change. */
async function staysAs(seen: () => string, value: string): Promise<void> {
  const from = performance.now()
  await eventually(() => {
    expect(seen()).toBe(value)
    return performance.now() - from > SILENCE_MS
  }, 'the end of the silence')
}

describe('a lock', () => {
  test('that somebody took away is made again, and one too many goes', async () => {
    const { client, peer } = await scene.connect('agent')
    scene.lockAgent()
    expect(await scene.network.repairLocks()).toBe(0)
    const whole = await scene.locked()
    const table = tableOf(scene.network.gateway)
    await Bun.$`nft flush set inet ${table} locked`
    await Bun.$`nft add element inet ${table} locked { 10.9.8.7 . 1234 . 10.9.8.6 . 443 }`
    expect(await scene.network.repairLocks()).toBe(2)
    expect(await scene.locked()).toBe(whole)
    peer.write('answer\n')
    await staysAs(() => client.output, 'connected\n')
  })

  test('holds what either side says back, and hands it on when it is opened', async () => {
    const { client, peer } = await scene.connect('agent')
    expect(scene.lockAgent()).toHaveLength(1)
    peer.write('answer\n')
    client.send('more\n')
    await staysAs(() => client.output + peer.received, 'connected\n')
    scene.network.unlock(scene.computer.shortId)
    await client.shows('answer\n')
    await eventually(() => peer.received === 'more\n', 'what the agent said')
    expect(await scene.locked()).toBe('')
  })

  test('leaves everything else of the computer alone, other connections and new ones', async () => {
    const agent = await scene.connect('agent')
    const beside = await scene.connect('exec-a')
    scene.lockAgent()
    const fresh = await scene.connect('exec-a')
    for (const { client, peer } of [beside, fresh]) {
      client.send('ping\n')
      await eventually(() => peer.received === 'ping\n', 'the ping')
      peer.write('pong\n')
      await client.shows('pong\n')
    }
    expect(agent.peer.closed).toBe(false)
  })

  test('is of one computer: another keeps its own', async () => {
    const other = await scene.net.computer()
    const client = await TestClient.connect(other.name, scene.network.gateway, scene.proxy.port)
    await eventually(() => scene.proxy.peers.length === 1, 'the connection')
    await scene.connect('agent')
    scene.lockAgent()
    scene.network.unlock(other.shortId)
    scene.proxy.peers[0]?.write('hello\n')
    await client.shows('hello\n')
    expect(await scene.locked()).toContain(scene.computer.address)
  })

  test('holds over a restart of orb, from the first moment', async () => {
    const { client, peer } = await scene.connect('agent')
    const connections = scene.lockAgent()
    scene.network.close()
    peer.write('answer\n')
    scene.net.network = await Network.start(scene.net.options, new Map([[scene.computer.shortId, connections]]))
    await staysAs(() => client.output, 'connected\n')
    scene.network.unlock(scene.computer.shortId)
    await client.shows('answer\n')
    expect(peer.closed).toBe(false)
  })

  test('comes back with the rules that somebody took away', async () => {
    const { client, peer } = await scene.connect('agent')
    scene.lockAgent()
    await scene.network.ensureRules()
    const before = await scene.locked()
    await Bun.$`nft delete table inet ${tableOf(scene.network.gateway)}`
    await scene.network.ensureRules()
    expect(await scene.locked()).toBe(before)
    peer.write('answer\n')
    await staysAs(() => client.output, 'connected\n')
    scene.network.unlock(scene.computer.shortId)
    await client.shows('answer\n')
  })

  test('of before is replaced by the next one, and opened twice is no error', async () => {
    const first = await scene.connect('agent')
    scene.lockAgent()
    const none: Connection[] = []
    scene.network.lock(scene.computer.shortId, none)
    first.peer.write('answer\n')
    await first.client.shows('answer\n')
    scene.network.unlock(scene.computer.shortId)
    scene.network.unlock(scene.computer.shortId)
    scene.network.unlock('ffffffff')
  })

  test('takes as many connections as an agent may have', async () => {
    const remote = { address: Uint8Array.of(203, 0, 113, 7), port: 443 }
    const address = Uint8Array.from(scene.computer.address.split('.').map(Number))
    const connections = Array.from({ length: 4000 }, (_, index) => ({
      local: { address, port: 20_000 + index },
      remote,
    }))
    scene.network.lock(scene.computer.shortId, connections)
    expect((await scene.locked()).match(/203\.0\.113\.7/g)).toHaveLength(4000)
    scene.network.unlock(scene.computer.shortId)
    expect(await scene.locked()).toBe('')
  })
})

describe('who is calling', () => {
  const cgroupAt = (port: number) => scene.network.cgroupOf(scene.computer.shortId, scene.computer.slot, port)

  test('tells the agent from a command beside it', async () => {
    const agent = await scene.connect('agent')
    const beside = await scene.connect('exec-a')
    expect(cgroupAt(agent.peer.port)).toBe(scene.agentCgroup)
    expect(cgroupAt(beside.peer.port)).not.toBe(scene.agentCgroup)
    expect(cgroupAt(beside.peer.port)).not.toBeNull()
    expect(cgroupAt(1)).toBeNull()
    // And again, over the same socket to the kernel.
    expect(cgroupAt(agent.peer.port)).toBe(scene.agentCgroup)
  })

  test('knows IPv4 connections of IPv6 sockets', async () => {
    const connect = `import { connect } from 'node:net'
      const socket = connect(${scene.proxy.port}, '::ffff:${scene.network.gateway}', () => console.log('connected'))
      socket.on('error', (error) => console.log(error.code))`
    const [procs = ''] = scene.cgroups.joinFiles(scene.computer.name, 'agent')
    const client = TestClient.start(scene.computer.name, procs, [process.execPath, '-e', connect])
    await client.shows('connected\n')
    await eventually(() => scene.proxy.peers.length === 1, 'the connection')
    expect(cgroupAt(scene.proxy.peers[0]?.port ?? 0)).toBe(scene.agentCgroup)
    const connections = scene.network.connectionsOf(scene.computer.shortId, scene.agentCgroup)
    expect(connections).toEqual(
      [
        {
          local: { address: bytes(scene.computer.address), port: scene.proxy.peers[0]?.port ?? 0 },
          remote: { address: bytes(scene.network.gateway), port: scene.proxy.port },
        },
      ].map((connection) => expect.objectContaining(connection)),
    )
    expect(scene.network.resetProxyConnections(scene.computer.shortId, scene.agentCgroup)).toBe(1)
    await eventually(() => /ECONN(ABORTED|RESET)/.test(client.output), 'the reset')
  })

  test('counts what leads out of the computer, not what stays in it', async () => {
    const listen = `import { connect, createServer } from 'node:net'
      const server = createServer().listen(0, '127.0.0.1', () => connect(server.address().port, '127.0.0.1', () => console.log('inside')))`
    const [procs = ''] = scene.cgroups.joinFiles(scene.computer.name, 'agent')
    const client = TestClient.start(scene.computer.name, procs, [process.execPath, '-e', listen])
    await client.shows('inside\n')
    expect(scene.network.connectionsOf(scene.computer.shortId, scene.agentCgroup)).toEqual([])
  })
})

describe('a reset', () => {
  test('ends the agent’s calls at once, and nothing else', async () => {
    const agent = await scene.connect('agent')
    const beside = await scene.connect('exec-a')
    const elsewhere = await scene.connect('agent', scene.api)
    expect(scene.network.resetProxyConnections(scene.computer.shortId, scene.agentCgroup)).toBe(1)
    await agent.client.shows('Software caused connection abort')
    for (const { client, peer } of [beside, elsewhere]) {
      peer.write('still here\n')
      await client.shows('still here\n')
    }
    expect(scene.network.resetProxyConnections(scene.computer.shortId, scene.agentCgroup)).toBe(0)
  })
})

const bytes = (address: string): Uint8Array => {
  const number = addressNumber(address)
  return Uint8Array.of(number >>> 24, (number >>> 16) & 255, (number >>> 8) & 255, number & 255)
}
