import { closeSync, existsSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { z } from 'zod'
import { log } from '../log.ts'
import { type AppSocket, AppSockets } from './app-socket.ts'
import { run } from './command.ts'
import { errnoCode } from './libc.ts'
import { type Connection, NftSets, type Ports, SocketDiag, sameEndpoint } from './netlink.ts'
import { networkRules } from './network-rules.ts'
import { addressBytes, type Cidr, dotted, LEARNT, Outbound } from './outbound.ts'
import { objectName } from './paths.ts'
import { reservePorts } from './reserved-ports.ts'

export interface NetworkOptions {
  /** Computers and their gateway are numbered from this. */
  subnet: Cidr
  /** Port of the LLM proxy on the gateway. */
  proxyPort: number
  /** Port of the API on the gateway, or null when it does not listen on TCP. */
  apiPort: number | null
  /** Private networks that computers may reach all the same. */
  allow: string[]
}

const NETNS_DIR = '/run/netns'
/** Network, gateway and broadcast address are no computer's. */
const RESERVED_ADDRESSES = 3

/** The kernel's default is one for each core at both ends, each of which costs some KB. */
const ONE_QUEUE = 'numtxqueues 1 numrxqueues 1'

export const addressNumber = (text: string): number =>
  text.split('.').reduce((sum, part) => ((sum << 8) | Number(part)) >>> 0, 0)

/**
 * The network of all computers: each has a namespace with one veth and one /32 address; all share the gateway address,
 * which lies on the server's loopback. The rules are one nftables table of this orb's own.
 *
 * The connections of a sleeping agent are locked: no packet of them passes. Its namespace has no socket for them, so a
 * single packet that got through would be answered with a reset and the connection be lost. Commands beside the agent
 * have connections of their own and go on.
 */
export class Network {
  readonly gateway: string
  /** What computers with an outbound list may reach. */
  readonly outbound: Outbound
  private readonly table: string
  private readonly gatewayNumber: number
  private readonly sets: NftSets
  private readonly ownNetns = openSync('/proc/self/ns/net', 'r')
  private readonly diags = new Map<string, SocketDiag>()
  private readonly locks: Map<string, Connection[]>
  private readonly apps = new AppSockets()
  /** Computers whose namespace keeps ports free for a sleeping agent. */
  private readonly reserved = new Set<string>()

  private constructor(
    private readonly options: NetworkOptions,
    locked: Map<string, Connection[]>,
  ) {
    this.locks = new Map(locked)
    this.gatewayNumber = (options.subnet.base + 1) >>> 0
    this.gateway = dotted(this.gatewayNumber)
    this.table = `orb_${hex(this.gatewayNumber)}`
    this.sets = new NftSets(this.table)
    this.outbound = new Outbound(this.sets, (slot) => (this.gatewayNumber + slot) >>> 0)
  }

  /** Number of computers that the subnet has room for. */
  static capacity(subnet: Cidr): number {
    return 2 ** (32 - subnet.bits) - RESERVED_ADDRESSES
  }

  /**
   * Sets up addresses and rules; the locks of sleeping agents (by short id) and the limits of computers with an outbound
   * list (by slot) hold from the first moment.
   */
  static async start(
    options: NetworkOptions,
    locked: Map<string, Connection[]>,
    limited: Map<number, Cidr[]> = new Map(),
  ): Promise<Network> {
    const network = new Network(options, locked)
    for (const [slot, networks] of limited) network.outbound.restore(slot, networks)
    if (limited.size > 0) await network.adoptLearnt()
    await network.prepareHost()
    await network.makeRules()
    return network
  }

  /** What names led to is known to the programs of a former orb's computers, and to the kernel. */
  private async adoptLearnt(): Promise<void> {
    const listed = await run(['nft', '-j', 'list', 'set', 'inet', this.table, LEARNT]).catch(() => null)
    if (listed === null) return
    try {
      this.outbound.adopt(readLearnt(listed), (address) => (address - this.gatewayNumber) | 0)
    } catch (error) {
      // Programs look their names up again.
      log('warn', 'addresses that names led to are closed', { error })
    }
  }

  private async makeRules(): Promise<void> {
    await run(['nft', '-f', '-'], this.rules([...this.locks.values()].flat()))
    this.outbound.remade()
  }

  /** Address of the computer in `slot` (1 and up). */
  address(slot: number): string {
    return dotted((this.gatewayNumber + slot) >>> 0)
  }

  /** The slot behind an address, or null when it is no computer's. */
  slotOf(address: string): number | null {
    const slot = (addressNumber(address) - this.gatewayNumber) | 0
    return slot > 0 && slot <= Network.capacity(this.options.subnet) ? slot : null
  }

  netnsFile(shortId: string): string {
    return `${NETNS_DIR}/${objectName(shortId)}`
  }

  /** Makes namespace, veth, addresses and routes of a computer; what a crash left half done is made anew. */
  async create(shortId: string, slot: number): Promise<void> {
    const name = objectName(shortId)
    if (await this.isComplete(name, shortId, slot)) return
    await this.remove(shortId)
    const address = this.address(slot)
    const [outside, inside] = ['02:6f', '02:72'].map((prefix) => `${prefix}:${macTail(addressNumber(address))}`)
    await run(['ip', 'netns', 'add', name])
    await run(
      ['ip', '-batch', '-'],
      [
        `link add ${name} address ${outside} ${ONE_QUEUE} type veth peer name eth0 address ${inside} ${ONE_QUEUE} netns ${name}`,
        `link set ${name} addrgenmode none`,
        `link set ${name} up`,
        `route replace ${address}/32 dev ${name} src ${this.gateway}`,
        // Neighbours never change: without ARP there is no question whose answer could be late after a wake.
        `neigh replace ${address} lladdr ${inside} dev ${name} nud permanent`,
      ].join('\n'),
    )
    writeFileSync(`/proc/sys/net/ipv4/conf/${name}/rp_filter`, '1')
    await run(
      ['ip', '-n', name, '-batch', '-'],
      [
        'link set lo up',
        // Without an address for it the kernel would still ask for IPv6 routers, for ever: traffic of an idle agent.
        'link set eth0 addrgenmode none',
        `addr add ${address}/32 dev eth0`,
        'link set eth0 up',
        `route add ${this.gateway}/32 dev eth0`,
        `route add default via ${this.gateway} dev eth0`,
        `neigh replace ${this.gateway} lladdr ${outside} dev eth0 nud permanent`,
      ].join('\n'),
    )
  }

  /** The default route inside is made last of all, so it tells that nothing is missing. */
  private async isComplete(name: string, shortId: string, slot: number): Promise<boolean> {
    if (!existsSync(this.netnsFile(shortId)) || !existsSync(`/sys/class/net/${name}`)) return false
    const routes = await run(['ip', '-n', name, '-o', 'route', 'show', 'default']).catch(() => '')
    const addresses = await run(['ip', '-n', name, '-o', 'addr', 'show', 'eth0']).catch(() => '')
    return routes.includes(`via ${this.gateway} `) && addresses.includes(` ${this.address(slot)}/32 `)
  }

  /** Whether a link is the host's end of a computer of this subnet, which its hardware address tells. */
  owns(link: string): boolean {
    const [, tail] = /^02:6f:((?:[0-9a-f]{2}:){3}[0-9a-f]{2})$/.exec(readLine(`/sys/class/net/${link}/address`)) ?? []
    return tail !== undefined && this.slotOf(dotted(Number.parseInt(tail.replaceAll(':', ''), 16))) !== null
  }

  /** Whether nothing of a computer's network is missing. */
  isUp(shortId: string): boolean {
    return existsSync(this.netnsFile(shortId)) && existsSync(`/sys/class/net/${objectName(shortId)}`)
  }

  /**
   * Makes the set of locked connections what it should be: an element too many would cut off whoever gets that port next,
   * one too few would cost a sleeping agent its connection. Returns how many were wrong.
   */
  async repairLocks(): Promise<number> {
    const listed = await run(['nft', '-j', 'list', 'set', 'inet', this.table, 'locked'])
    const there = new Set(readElements(listed).map((key) => Buffer.from(key).toString('hex')))
    const wanted = [...this.locks.values()].flat().map(lockKey)
    const kept = new Set(wanted.map((key) => Buffer.from(key).toString('hex')))
    const missing = wanted.filter((key) => !there.has(Buffer.from(key).toString('hex')))
    const extra = [...there].filter((key) => !kept.has(key)).map((key) => Buffer.from(key, 'hex'))
    this.sets.add('locked', missing)
    for (const key of extra) this.sets.remove('locked', [key])
    return missing.length + extra.length
  }

  /** Removes a computer's namespace and with it its veth; nothing there is no error. */
  async remove(shortId: string): Promise<void> {
    const name = objectName(shortId)
    this.apps.breakOff(shortId)
    this.diags.get(shortId)?.close()
    this.diags.delete(shortId)
    // A veth goes with its namespace only once the last process there is gone: the host's end goes at once.
    if (existsSync(`/sys/class/net/${name}`)) await run(['ip', 'link', 'delete', name]).catch(() => '')
    if (existsSync(this.netnsFile(shortId))) await run(['ip', 'netns', 'delete', name])
  }

  /** From here on no packet passes of these connections and of orb's to the agent. Replaces an earlier lock of the computer. */
  lock(shortId: string, connections: Connection[]): void {
    this.unlock(shortId)
    this.sets.add('locked', connections.map(lockKey))
    this.locks.set(shortId, connections)
    this.reserve(
      shortId,
      connections.map(({ local }) => local.port),
    )
    this.apps.lock(shortId)
  }

  /** Until `unlock` no program of the computer is given one of these ports by chance: the sleeping agent needs them back. */
  reserve(shortId: string, ports: number[]): void {
    if (ports.length === 0) return
    reservePorts(this.netnsFile(shortId), this.ownNetns, ports)
    this.reserved.add(shortId)
  }

  /** Makes the rules anew if somebody has taken them away, as a reload of the server's firewall does, or they lack something. */
  async ensureRules(): Promise<void> {
    const there = await run(['nft', 'list', 'chain', 'inet', this.table, 'forward']).catch(() => null)
    if (there !== null && !this.outbound.isStale) return
    log('warn', 'the rules of the computers were gone and are made anew', { table: this.table })
    await this.makeRules()
  }

  unlock(shortId: string): void {
    // What a former orb locked it may have reserved ports for as well.
    if (this.reserved.delete(shortId) || this.locks.has(shortId)) {
      reservePorts(this.netnsFile(shortId), this.ownNetns, [])
    }
    this.sets.remove('locked', (this.locks.get(shortId) ?? []).map(lockKey))
    this.locks.delete(shortId)
    this.apps.unlock(shortId)
  }

  /** The agent is being restored, or that has failed: orb's connections to it hear it, or go on hearing nothing. */
  expectApps(shortId: string, restoring: boolean): void {
    if (restoring) this.apps.expect(shortId)
    else this.apps.lock(shortId)
  }

  /** A socket to a port that a program of the computer listens on, not connected yet. @throws Errno */
  appSocket(shortId: string, family: 4 | 6, port: number): AppSocket {
    return this.apps.open(shortId, this.netnsFile(shortId), this.ownNetns, family, port)
  }

  /** Ends orb's connections to the agent, whose tree is gone: under the lock no word of that came through. */
  breakOffApps(shortId: string): void {
    this.apps.breakOff(shortId)
  }

  /** Connections of a cgroup (inode of its v2 directory) that lead out of the computer. */
  connectionsOf(shortId: string, cgroup: bigint): Connection[] {
    return this.diag(shortId)
      .connectionsOf(cgroup)
      .filter(({ remote }) => remote.address[0] !== LOOPBACK_NETWORK)
  }

  /** Lets one computer reach one private address and port, for a clone. Returns what takes it back. */
  permit(slot: number, address: string, port: number): () => void {
    const key = Uint8Array.of(
      ...addressBytes((this.gatewayNumber + slot) >>> 0),
      ...addressBytes(addressNumber(address)),
      ...portBytes(port),
    )
    this.sets.add('permitted', [key])
    return () => this.sets.remove('permitted', [key])
  }

  /** The cgroup (inode of its v2 directory) that opened the connection from `port` of a computer to the LLM proxy. */
  cgroupOf(shortId: string, slot: number, port: number): bigint | null {
    const local = { address: addressBytes((this.gatewayNumber + slot) >>> 0), port }
    return this.diag(shortId).cgroupOf({ local, remote: this.proxyEndpoint })
  }

  /** Resets the cgroup's connections to the LLM proxy, but for those whose other end (at these ports) is not gone. Returns how many. */
  resetProxyConnections(shortId: string, cgroup: bigint, kept: Ports = new Set()): number {
    return this.diag(shortId).reset(cgroup, this.proxyEndpoint, kept)
  }

  leadsToProxy({ remote }: Connection): boolean {
    return sameEndpoint(remote, this.proxyEndpoint)
  }

  /** Takes this orb's rules and its gateway address away; computers must be gone. */
  async stop(): Promise<void> {
    this.close()
    await run(['nft', 'delete', 'table', 'inet', this.table])
    await run(['ip', 'addr', 'del', `${this.gateway}/32`, 'dev', 'lo'])
  }

  /** Closes orb's own handles; all rules stay. */
  close(): void {
    for (const diag of this.diags.values()) diag.close()
    this.diags.clear()
    this.sets.close()
    closeSync(this.ownNetns)
  }

  private get proxyEndpoint() {
    return { address: addressBytes(this.gatewayNumber), port: this.options.proxyPort }
  }

  private diag(shortId: string): SocketDiag {
    const known = this.diags.get(shortId)
    if (known) return known
    const fd = openSync(this.netnsFile(shortId), 'r')
    try {
      const diag = new SocketDiag({ fd, own: this.ownNetns })
      this.diags.set(shortId, diag)
      return diag
    } finally {
      closeSync(fd)
    }
  }

  private rules(locked: Connection[]): string {
    const { subnet, proxyPort, apiPort, allow } = this.options
    return networkRules({
      table: this.table,
      gateway: this.gateway,
      subnet: `${dotted(subnet.base)}/${subnet.bits}`,
      ports: apiPort === null ? [proxyPort] : [proxyPort, apiPort],
      allow,
      locked,
      outbound: this.outbound.elements(),
    })
  }

  private async prepareHost(): Promise<void> {
    const label = `lo:${this.table.replace('_', '-')}`
    const addresses = await run(['ip', '-o', 'addr', 'show', 'dev', 'lo'])
    if (!addresses.includes(` ${this.gateway}/32 `)) {
      await run(['ip', 'addr', 'add', `${this.gateway}/32`, 'dev', 'lo', 'label', label])
    }
    atLeast('/proc/sys/net/ipv4/ip_forward', 1)
  }
}

const LOOPBACK_NETWORK = 127

/** Each field of a key takes a multiple of four bytes. */
const lockKey = ({ local, remote }: Connection): Uint8Array =>
  Uint8Array.of(...local.address, ...portBytes(local.port), ...remote.address, ...portBytes(remote.port))

const portBytes = (port: number): number[] => [port >>> 8, port & 0xff, 0, 0]

function atLeast(file: string, value: number): void {
  if (Number(readFileSync(file, 'utf8')) < value) writeFileSync(file, String(value))
}

const hex = (number: number): string => number.toString(16).padStart(8, '0')

const macTail = (address: number): string => hex(address).replace(/(..)(?=.)/g, '$1:')

const NftElements = z.object({
  nftables: z.array(
    z.object({
      set: z
        .object({
          elem: z.array(z.object({ concat: z.tuple([z.string(), z.number(), z.string(), z.number()]) })).default([]),
        })
        .optional(),
    }),
  ),
})

/** Keys of the set that `nft -j list set` shows. */
const readElements = (json: string): Uint8Array[] =>
  NftElements.parse(JSON.parse(json))
    .nftables.flatMap(({ set }) => set?.elem ?? [])
    .map(({ concat: [local, localPort, remote, remotePort] }) =>
      lockKey({
        local: { address: addressBytes(addressNumber(local)), port: localPort },
        remote: { address: addressBytes(addressNumber(remote)), port: remotePort },
      }),
    )

const NftLearnt = z.object({
  nftables: z.array(
    z.object({
      set: z
        .object({
          elem: z
            .array(
              z.object({
                elem: z.object({ val: z.object({ concat: z.tuple([z.string(), z.string()]) }), expires: z.number() }),
              }),
            )
            .default([]),
        })
        .optional(),
    }),
  ),
})

/** Elements of the set of learnt addresses, as `nft -j list set` shows them. */
const readLearnt = (json: string): { computer: number; address: number; lifetimeMs: number }[] =>
  NftLearnt.parse(JSON.parse(json))
    .nftables.flatMap(({ set }) => set?.elem ?? [])
    .map(({ elem: { val, expires } }) => ({
      computer: addressNumber(val.concat[0]),
      address: addressNumber(val.concat[1]),
      lifetimeMs: expires * 1000,
    }))

function readLine(file: string): string {
  try {
    return readFileSync(file, 'utf8').trim()
  } catch (thrown) {
    if (['ENOENT', 'EINVAL'].includes(errnoCode(thrown) ?? '')) return ''
    throw thrown
  }
}

/** Name servers of the host that are worth asking from here. */
export async function hostNameservers(file = '/etc/resolv.conf'): Promise<string[]> {
  const text = await readFile(file, 'utf8').catch(() => '')
  return [...text.matchAll(/^\s*nameserver\s+(\S+)/gm)].map((match) => match[1] ?? '').filter(Boolean)
}
