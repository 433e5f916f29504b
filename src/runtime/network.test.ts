/* Real namespaces, links and rules on a subnet of each test's own. Needs root. */
import { describe, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import {
  attempt,
  eventually,
  Internet,
  ip,
  TestClient,
  TestNetwork,
  TestServer,
  tableOf,
  testNetwork,
} from '../../test/support/network.ts'
import { hostNameservers, Network } from './network.ts'
import { dotted } from './outbound.ts'

setDefaultTimeout(30_000)

/** What is forbidden must fail within this (Orb Cloud contract §4, network.outbound). */
const REFUSAL_MS = 5000
const REFUSED = ['No route to host', 'Permission denied', 'Network is unreachable', 'Connection refused']

async function expectRefused(netns: string, address: string, port: number): Promise<void> {
  const { error, ms } = await attempt(netns, address, port)
  expect([address, REFUSED.includes(error ?? ''), error]).toEqual([address, true, error])
  expect(ms).toBeLessThan(REFUSAL_MS)
}

describe('addresses', () => {
  test('slots and addresses lead to each other, and to nobody outside', async () => {
    await using net = await TestNetwork.start(testNetwork({ proxyPort: 1 }))
    const { network } = net
    const { base } = net.options.subnet
    expect(network.gateway).toBe(dotted(base + 1))
    expect(Network.capacity(net.options.subnet)).toBe(253)
    for (const slot of [1, 2, 253]) expect(network.slotOf(network.address(slot))).toBe(slot)
    for (const address of [base - 1, base, base + 1, base + 255, base + 256, 0]) {
      expect(network.slotOf(dotted(address >>> 0))).toBeNull()
    }
  })

  test('name servers are those of the file, none without one', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'orb-network-'))
    try {
      const file = join(dir, 'resolv.conf')
      writeFileSync(file, '# nameserver 1.1.1.1\nsearch x\nnameserver 192.0.2.1\n  nameserver\t2001:db8::1 \n')
      expect(await hostNameservers(file)).toEqual(['192.0.2.1', '2001:db8::1'])
      expect(await hostNameservers(join(dir, 'none'))).toEqual([])
    } finally {
      rmSync(dir, { recursive: true })
    }
  })
})

describe('a computer reaches', () => {
  test('the LLM proxy and the API on the gateway, under its own address, and no other port there', async () => {
    using proxy = new TestServer()
    using api = new TestServer()
    using other = new TestServer()
    await using net = await TestNetwork.start(testNetwork({ proxyPort: proxy.port, apiPort: api.port }))
    const computer = await net.computer()
    const { gateway } = net.network
    for (const server of [proxy, api]) {
      expect((await attempt(computer.name, gateway, server.port)).error).toBeNull()
      await eventually(() => server.peers.length === 1, 'the connection')
      expect(server.peers[0]?.address).toBe(computer.address)
    }
    await expectRefused(computer.name, gateway, other.port)
    await expectRefused(computer.name, gateway, 22)
    expect(other.peers).toEqual([])
  })

  test('no private network and no other address of the server', async () => {
    using server = new TestServer()
    await using net = await TestNetwork.start(testNetwork({ proxyPort: server.port }))
    // Another orb on the same machine: its gateway is one more address of the server.
    await using neighbour = await TestNetwork.start(testNetwork({ proxyPort: server.port }))
    const computer = await net.computer()
    const targets = [
      '169.254.169.254',
      '10.255.255.1',
      '172.16.0.1',
      '192.168.0.1',
      '100.64.0.1',
      '198.18.0.1',
      '240.0.0.1',
    ]
    await Promise.all(
      [...targets, neighbour.network.gateway].map((target) => expectRefused(computer.name, target, server.port)),
    )
    expect(server.peers).toEqual([])
  })

  test('nothing forbidden, and many tries at once are each refused in time', async () => {
    await using net = await TestNetwork.start(testNetwork({ proxyPort: 1 }))
    const computer = await net.computer()
    await Promise.all(Array.from({ length: 24 }, (_, index) => expectRefused(computer.name, `10.255.0.${index}`, 80)))
  })

  test('no other computer, of its own orb or of another', async () => {
    using server = new TestServer()
    await using net = await TestNetwork.start(testNetwork({ proxyPort: server.port }))
    await using neighbour = await TestNetwork.start(testNetwork({ proxyPort: server.port }))
    const [one, two, foreign] = [await net.computer(), await net.computer(), await neighbour.computer()]
    for (const target of [two, foreign]) {
      const listen = `const s = Bun.listen({ hostname: '0.0.0.0', port: 0, socket: { data() {} } }); console.log('port ' + s.port)`
      const listener = TestClient.start(target.name, '/dev/null', [process.execPath, '-e', listen])
      await eventually(() => /port \d+\n/.test(listener.output), 'a listener')
      const port = Number(/port (\d+)/.exec(listener.output)?.[1])
      await expectRefused(one.name, target.address, port)
      // The server itself gets there: that is how requests from outside do.
      const socket = await Bun.connect({ hostname: target.address, port, socket: { data() {} } })
      socket.end()
    }
  })

  test('a private network that the operator allows, and a single service while it is permitted', async () => {
    using server = new TestServer()
    using other = new TestServer()
    await using service = await TestNetwork.start(testNetwork({ proxyPort: server.port }))
    const { gateway: target } = service.network
    await using allowing = await TestNetwork.start(testNetwork({ proxyPort: 1, allow: [`${target}/32`] }))
    expect((await attempt((await allowing.computer()).name, target, server.port)).error).toBeNull()

    await using net = await TestNetwork.start(testNetwork({ proxyPort: 1 }))
    const [one, two] = [await net.computer(), await net.computer()]
    await expectRefused(one.name, target, server.port)
    const takeBack = net.network.permit(one.slot, target, server.port)
    expect((await attempt(one.name, target, server.port)).error).toBeNull()
    await expectRefused(one.name, target, other.port)
    await expectRefused(two.name, target, server.port)
    takeBack()
    await expectRefused(one.name, target, server.port)
    takeBack()
  })

  test('the internet, under the address of the server; the internet does not reach it', async () => {
    using server = new TestServer()
    await using net = await TestNetwork.start(testNetwork({ proxyPort: server.port }))
    const computer = await net.computer()
    await using internet = await Internet.start()
    const [address = ''] = internet.addresses
    expect((await attempt(computer.name, address, internet.port)).error).toBeNull()
    await internet.listener.shows(`from ${internet.uplink}\n`)
    await ip('-n', internet.name, 'route', 'add', `${computer.address}/32`, 'via', internet.uplink)
    await expectRefused(internet.name, computer.address, 1)
  })
})

describe('a computer cannot', () => {
  test('send under an address that is not its own', async () => {
    const seen: string[] = []
    await using net = await TestNetwork.start(testNetwork({ proxyPort: 1 }))
    const { gateway } = net.network
    const [computer, other] = [await net.computer(), await net.computer()]
    const server = await Bun.udpSocket({
      hostname: gateway,
      port: 53,
      socket: { data: (_, bytes, __, address) => void seen.push(`${address} ${bytes}`) },
    })
    try {
      for (const source of [other.address, '198.51.100.7', '192.168.7.7', computer.address]) {
        if (source !== computer.address) await ip('-n', computer.name, 'addr', 'add', `${source}/32`, 'dev', 'eth0')
        await ip('-n', computer.name, 'route', 'replace', `${gateway}/32`, 'dev', 'eth0', 'src', source)
        const argv = ['bash', '-c', `echo -n "as ${source}" > /dev/udp/${gateway}/53`]
        expect(await TestClient.start(computer.name, '/dev/null', argv).exited).toBe(0)
      }
      await eventually(() => seen.length > 0, 'a datagram')
      expect(seen).toEqual([`${computer.address} as ${computer.address}`])
    } finally {
      server.close()
    }
  })

  test('speak IPv6 to the server', async () => {
    const seen: string[] = []
    await using net = await TestNetwork.start(testNetwork({ proxyPort: 1 }))
    const computer = await net.computer()
    expect(await ip('-6', 'addr', 'show', 'dev', computer.name)).toBe('')
    // Its kernel has no address from which it could ask for routers.
    expect(await ip('-n', computer.name, '-6', 'addr', 'show', 'dev', 'eth0')).toBe('')
    // Even if the server had an address there.
    await ip('-6', 'addr', 'add', 'fd6f:7262::1/64', 'dev', computer.name, 'nodad')
    await ip('-n', computer.name, '-6', 'addr', 'add', 'fd6f:7262::2/64', 'dev', 'eth0', 'nodad')
    const server = await Bun.udpSocket({
      hostname: '::',
      port: 0,
      socket: { data: (_, bytes) => void seen.push(`${bytes}`) },
    })
    try {
      const send = `echo -n inside > /dev/udp/fd6f:7262::1/${server.port}`
      await TestClient.start(computer.name, '/dev/null', ['bash', '-c', send]).exited
      const local = await Bun.udpSocket({ hostname: '::' })
      local.send('server', server.port, 'fd6f:7262::1')
      await eventually(() => seen.includes('server'), 'the server’s own datagram')
      local.close()
      expect(seen).toEqual(['server'])
    } finally {
      server.close()
    }
  })
})

describe('making and removing', () => {
  const identity = (name: string) => [statSync(`/run/netns/${name}`).ino, statSync(`/sys/class/net/${name}`).ino]

  test('what is whole already is left as it is', async () => {
    using server = new TestServer()
    await using net = await TestNetwork.start(testNetwork({ proxyPort: server.port }))
    const { shortId, slot, name } = await net.computer()
    const before = identity(name)
    await net.network.create(shortId, slot)
    expect(identity(name)).toEqual(before)
  })

  const halves: [string, (name: string) => Promise<unknown>][] = [
    ['without its route', (name) => ip('-n', name, 'route', 'del', 'default')],
    ['without its address', (name) => ip('-n', name, 'addr', 'flush', 'dev', 'eth0')],
    ['without its link', (name) => ip('link', 'delete', name)],
    ['without its namespace', (name) => ip('netns', 'delete', name)],
    ['with a file in place of its namespace', (name) => Bun.$`umount /run/netns/${name}`],
  ]
  test.each(halves)('one %s is made anew', async (_, halve) => {
    using server = new TestServer()
    await using net = await TestNetwork.start(testNetwork({ proxyPort: server.port }))
    const { shortId, slot, name } = await net.computer()
    await halve(name)
    await net.network.create(shortId, slot)
    expect((await attempt(name, net.network.gateway, server.port)).error).toBeNull()
  })

  test('nothing stays, even where a program still runs', async () => {
    using server = new TestServer()
    const net = await TestNetwork.start(testNetwork({ proxyPort: server.port }))
    const { shortId, name, address } = await net.computer()
    const { gateway } = net.network
    try {
      await TestClient.connect(name, gateway, server.port)
      const program = Number((await ip('netns', 'pids', name)).split('\n')[0])
      await net.network.remove(shortId)
      expect([existsSync(`/run/netns/${name}`), existsSync(`/sys/class/net/${name}`)]).toEqual([false, false])
      expect(await ip('route', 'show', address)).toBe('')
      process.kill(program, 'SIGKILL')
      // And once more, for nothing.
      await net.network.remove(shortId)
    } finally {
      await net[Symbol.asyncDispose]()
    }
    expect(await ip('addr', 'show', 'dev', 'lo')).not.toContain(` ${gateway}/`)
    expect(await Bun.$`nft list tables`.text()).not.toContain(tableOf(gateway))
  })
})
