/* The limits of computers with an outbound list, in a kernel's rules. Needs root. */
import { describe, expect, setDefaultTimeout, test } from 'bun:test'
import { attempt, Internet, TestClient, TestNetwork, TestServer, testNetwork } from '../../test/support/network.ts'
import type { SetChange } from './netlink.ts'
import { addressNumber, Network } from './network.ts'
import { dotted, HOSTS, LEARNT, LIMITED, NETWORKS, Outbound } from './outbound.ts'

setDefaultTimeout(30_000)

const REFUSED = ['No route to host', 'Permission denied', 'Network is unreachable', 'Connection refused']
const HOUR_MS = 3_600_000
const always = () => true
const never = () => false
const lead = (address: string, lifetimeMs = HOUR_MS) => ({ address: addressNumber(address), lifetimeMs })
const host = (address: string) => ({ base: addressNumber(address), bits: 32 })

/** A kernel of sets without a clock: what it was told is there until it is removed. */
function setUp() {
  const clock = { now: 0 }
  const there = new Map<string, number | undefined>()
  const log: SetChange[][] = []
  const state = { broken: false }
  const name = (set: string, key: Uint8Array) =>
    `${set} ${[...key].join('.').replace(/^(\d+\.\d+\.\d+\.\d+)\./, '$1>')}`
  const change = (changes: SetChange[]) => {
    if (state.broken) throw new Error('broken')
    log.push(changes)
    for (const { op, set, elements } of changes)
      for (const { key, timeoutMs } of elements) {
        const id = name(set, key)
        if (op === 'remove' && !there.delete(id)) throw new Error(`${id} is not there`)
        if (op === 'add' && !there.has(id)) there.set(id, timeoutMs)
      }
  }
  const base = addressNumber('10.9.0.1')
  const outbound = new Outbound(
    { change },
    (slot) => base + slot,
    () => clock.now,
  )
  return {
    outbound,
    clock,
    there,
    log,
    state,
    of: (set: string) => [...there.keys()].filter((id) => id.startsWith(set)),
  }
}

describe('what is kept', () => {
  test('a new list replaces the old one; of what was learnt stays what a name of it led to', () => {
    const { outbound, there } = setUp()
    outbound.limit(1, [host('1.1.1.1'), { base: addressNumber('2.0.0.0'), bits: 8 }], always)
    outbound.learn(1, 'a.example', [lead('3.3.3.3')])
    outbound.learn(1, 'b.example', [lead('3.3.3.3'), lead('4.4.4.4')])
    outbound.learn(1, 'a.example', [lead('5.5.5.5')])
    outbound.limit(1, [host('6.6.6.6')], (name) => name === 'b.example')
    expect([...there.keys()].sort()).toEqual([
      `${HOSTS} 10.9.0.2>6.6.6.6`,
      `${LEARNT} 10.9.0.2>3.3.3.3`,
      `${LEARNT} 10.9.0.2>4.4.4.4`,
      `${LIMITED} 10.9.0.2`,
    ])
    outbound.free(1)
    expect([...there.keys()]).toEqual([])
    outbound.learn(1, 'a.example', [lead('3.3.3.3')])
    expect([...there.keys()]).toEqual([])
  })

  test('a list that changes in part touches no more than that part', () => {
    const { outbound, log } = setUp()
    outbound.limit(1, [host('1.1.1.1'), { base: 0x02000000, bits: 8 }, { base: 0x03000000, bits: 8 }], always)
    outbound.learn(1, 'a', [lead('9.9.9.9')])
    outbound.limit(1, [host('1.1.1.1'), { base: 0x02000000, bits: 8 }, { base: 0x03000000, bits: 16 }], always)
    const last = log.at(-1)?.flatMap(({ op, set, elements }) => (elements.length > 0 ? `${op} ${set}` : []))
    expect(last).toEqual([`remove ${NETWORKS}`, `add ${LIMITED}`, `add ${NETWORKS}`])
  })

  test('of networks that lie in each other the widest, for the kernel takes no others', () => {
    const { outbound } = setUp()
    const networks = ['10.0.0.0/8', '10.1.0.0/16', '10.1.2.3/32', '11.0.0.0/8', '11.0.0.0/8', '12.0.0.1/32']
    outbound.limit(
      1,
      networks.map((text) => ({ base: addressNumber(text.split('/')[0] ?? ''), bits: Number(text.split('/')[1]) })),
      always,
    )
    expect(outbound.elements()[NETWORKS]).toEqual(['10.9.0.2 . 10.0.0.0/8', '10.9.0.2 . 11.0.0.0/8'])
    expect(outbound.elements()[HOSTS]).toEqual(['10.9.0.2 . 12.0.0.1'])
    outbound.limit(1, [{ base: 0, bits: 0 }, host('1.1.1.1')], always)
    expect(outbound.elements()[NETWORKS]).toEqual(['10.9.0.2 . 0.0.0.0/0'])
    expect(outbound.elements()[HOSTS]).toEqual([])
  })

  test('an address gets new time when that is much later, and the kernel is not asked before', () => {
    const { outbound, clock, there, log } = setUp()
    outbound.limit(1, [], always)
    outbound.learn(1, 'a', [lead('3.3.3.3')])
    const before = log.length
    clock.now = 50_000
    outbound.learn(1, 'a', [lead('3.3.3.3')])
    expect(log.length).toBe(before)
    clock.now = 70_000
    outbound.learn(1, 'a', [lead('3.3.3.3')])
    expect(log.length).toBe(before + 1)
    expect(there.get(`${LEARNT} 10.9.0.2>3.3.3.3`)).toBe(HOUR_MS)
    // Never less than it had.
    clock.now = 80_000
    outbound.learn(1, 'a', [lead('3.3.3.3', 1000)])
    expect(outbound.elements()[LEARNT]).toEqual([`10.9.0.2 . 3.3.3.3 timeout ${(HOUR_MS - 10_000) / 1000}s`])
  })

  test('no more addresses of one computer than there may be: the oldest go, also from the kernel', () => {
    const { outbound, clock, of } = setUp()
    outbound.limit(1, [], always)
    for (let index = 0; index < 1100; index++) {
      clock.now = index
      outbound.learn(1, 'a', [lead(dotted(addressNumber('3.0.0.0') + index))])
    }
    expect(of(LEARNT)).toHaveLength(1024)
    expect(of(LEARNT)).not.toContain(`${LEARNT} 10.9.0.2>3.0.0.0`)
    const many = Array.from({ length: 3000 }, (_, index) => lead(dotted(addressNumber('4.0.0.0') + index)))
    outbound.learn(1, 'a', many)
    expect(of(LEARNT)).toHaveLength(1024)
  })

  test('no more names of one address than there may be: those that were asked for last', () => {
    const { outbound, of } = setUp()
    const keeps = (...names: string[]) => {
      outbound.limit(1, [], always)
      outbound.learn(1, 'first', [lead('3.3.3.3')])
      for (let index = 0; index < 1000; index++) {
        outbound.learn(1, `name-${index}`, [lead('3.3.3.3')])
        outbound.learn(1, 'often', [lead('3.3.3.3')])
      }
      outbound.limit(1, [], (name) => names.includes(name))
      const kept = of(LEARNT).length
      outbound.free(1)
      return kept
    }
    expect(['first', 'name-500', 'name-984', 'name-985', 'name-999', 'often'].map((name) => keeps(name))).toEqual([
      0, 0, 0, 1, 1, 1,
    ])
  })

  test('while the agent sleeps its addresses do not grow old', () => {
    const { outbound, clock, there } = setUp()
    outbound.limit(1, [], always)
    outbound.learn(1, 'a', [lead('3.3.3.3'), lead('4.4.4.4', 1000)])
    clock.now = HOUR_MS - 5000
    outbound.pause(1)
    outbound.pause(1)
    clock.now = 9 * HOUR_MS
    outbound.learn(1, 'b', [lead('5.5.5.5')])
    outbound.resume(1)
    expect(there.get(`${LEARNT} 10.9.0.2>3.3.3.3`)).toBe(60_000)
    expect(outbound.elements()[LEARNT]).toEqual(['10.9.0.2 . 3.3.3.3 timeout 60s', '10.9.0.2 . 5.5.5.5 timeout 3600s'])
  })

  test('what the kernel did not take is there when the rules are made anew', () => {
    const { outbound, state } = setUp()
    state.broken = true
    expect(() => outbound.limit(1, [host('1.1.1.1')], always)).toThrow('broken')
    expect([outbound.isStale, outbound.elements()[LIMITED]]).toEqual([true, ['10.9.0.2']])
    outbound.remade()
    expect(outbound.isStale).toBe(false)
  })
})

describe('a computer with a list', () => {
  const open = async (name: string, address: string, port: number) => {
    const { error } = await attempt(name, address, port)
    if (error !== null) expect([address, REFUSED.includes(error), error]).toEqual([address, true, error])
    return error === null
  }

  test('reaches what the list names and what names led to, its gateway, and nothing else; others are not touched', async () => {
    using proxy = new TestServer()
    await using net = await TestNetwork.start(testNetwork({ proxyPort: proxy.port }))
    await using internet = await Internet.start()
    const [one, two] = [await net.computer(), await net.computer()]
    const { addresses, port } = internet
    const [listed = '', learnt = '', other = '', , , , inNetwork = ''] = addresses
    const { outbound } = net.network
    expect(await open(one.name, other, port)).toBe(true)
    outbound.limit(one.slot, [host(listed), { base: addressNumber(inNetwork) & ~1, bits: 31 }], always)
    outbound.learn(one.slot, 'a', [lead(learnt)])
    const reach = async (computer: typeof one) => ({
      listed: await open(computer.name, listed, port),
      learnt: await open(computer.name, learnt, port),
      inNetwork: await open(computer.name, inNetwork, port),
      other: await open(computer.name, other, port),
      gateway: await open(computer.name, net.network.gateway, proxy.port),
    })
    expect(await reach(one)).toEqual({ listed: true, learnt: true, inNetwork: true, other: false, gateway: true })
    expect(await reach(two)).toEqual({ listed: true, learnt: true, inNetwork: true, other: true, gateway: true })
    outbound.limit(one.slot, [], never)
    expect(await reach(one)).toEqual({ listed: false, learnt: false, inNetwork: false, other: false, gateway: true })
    outbound.free(one.slot)
    expect(await reach(one)).toEqual({ listed: true, learnt: true, inNetwork: true, other: true, gateway: true })
  })

  test('gets no private address opened by its list or by a name, but what the operator allows only by its list', async () => {
    using server = new TestServer()
    await using service = await TestNetwork.start(testNetwork({ proxyPort: server.port }))
    const { gateway: target } = service.network
    const allow = [`${target}/32`]
    await using strict = await TestNetwork.start(testNetwork({ proxyPort: 1 }))
    await using allowing = await TestNetwork.start(testNetwork({ proxyPort: 1, allow }))
    const [one, two] = [await strict.computer(), await allowing.computer()]
    strict.network.outbound.limit(one.slot, [{ base: 0, bits: 0 }], always)
    strict.network.outbound.learn(one.slot, 'a', [lead(target)])
    expect(await open(one.name, target, server.port)).toBe(false)
    allowing.network.outbound.limit(two.slot, [], always)
    expect(await open(two.name, target, server.port)).toBe(false)
    allowing.network.outbound.learn(two.slot, 'a', [lead(target)])
    expect(await open(two.name, target, server.port)).toBe(true)
  })

  test('keeps a connection that is open when its address is closed, and opens no other', async () => {
    await using net = await TestNetwork.start(testNetwork({ proxyPort: 1 }))
    await using internet = await Internet.start()
    const computer = await net.computer()
    const [address = ''] = internet.addresses
    const { outbound } = net.network
    outbound.limit(computer.slot, [], always)
    // Kernels count such times in ticks of some ms, so this one is over at once.
    outbound.learn(computer.slot, 'a', [lead(address, 1500)])
    const client = await TestClient.connect(computer.name, address, internet.port)
    while (await open(computer.name, address, internet.port)) await Bun.sleep(100)
    client.send('still here\n')
    await client.shows('still here\n')
    // The same name again.
    outbound.learn(computer.slot, 'a', [lead(address)])
    expect(await open(computer.name, address, internet.port)).toBe(true)
  })

  test('sends no datagram elsewhere, under its own address or under one of a neighbour', async () => {
    await using net = await TestNetwork.start(testNetwork({ proxyPort: 1 }))
    await using internet = await Internet.start()
    const [one, two] = [await net.computer(), await net.computer()]
    const [address = '', allowed = ''] = internet.addresses
    net.network.outbound.limit(one.slot, [host(allowed)], always)
    const send = (netns: string, to: string, word: string) =>
      TestClient.start(netns, '/dev/null', ['bash', '-c', `echo -n ${word} > /dev/udp/${to}/${internet.port}`]).exited
    await send(one.name, address, 'own')
    await Bun.$`ip -n ${one.name} addr add ${two.address}/32 dev eth0`
    await Bun.$`ip -n ${one.name} route replace ${address}/32 via ${net.network.gateway} dev eth0 src ${two.address}`
    await send(one.name, address, 'spoofed')
    await send(one.name, allowed, 'listed')
    await internet.listener.shows('datagram listed\n')
    await send(two.name, address, 'neighbour')
    await internet.listener.shows('datagram neighbour\n')
    expect(internet.listener.output).not.toMatch(/datagram (own|spoofed)/)
  })

  test('is limited from the first moment of the next orb, which knows what was learnt, and after the rules were lost', async () => {
    const options = testNetwork({ proxyPort: 1 })
    await using net = await TestNetwork.start(options)
    await using internet = await Internet.start()
    const computer = await net.computer()
    const [listed = '', learnt = '', other = ''] = internet.addresses
    const { port } = internet
    const check = async () => [
      await open(computer.name, listed, port),
      await open(computer.name, learnt, port),
      await open(computer.name, other, port),
    ]
    net.network.outbound.limit(computer.slot, [host(listed)], always)
    net.network.outbound.learn(computer.slot, 'a', [lead(learnt)])
    net.network.close()
    net.network = await Network.start(options, new Map(), new Map([[computer.slot, [host(listed)]]]))
    expect(await check()).toEqual([true, true, false])

    await Bun.$`nft delete table inet ${`orb_${Buffer.from(net.network.gateway.split('.').map(Number)).toString('hex')}`}`
    expect(() => net.network.outbound.learn(computer.slot, 'b', [lead(other)])).toThrow()
    await net.network.ensureRules()
    expect(await check()).toEqual([true, true, true])
  })
})
