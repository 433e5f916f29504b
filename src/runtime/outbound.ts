import { log } from '../log.ts'
import type { NftSets, SetChange, SetElement } from './netlink.ts'

/** An IPv4 network. */
export interface Cidr {
  /** The network's address as a number. */
  base: number
  /** Length of its prefix in bits. */
  bits: number
}

/** An address that a name led to. */
export interface Lead {
  /** IPv4, as a number. */
  address: number
  /** For how long connections to it may be opened. */
  lifetimeMs: number
}

/** Names of the nftables sets. Keys begin with the address of the computer. */
export const LIMITED = 'outbound_limited'
export const HOSTS = 'outbound_hosts'
export const NETWORKS = 'outbound_networks'
export const LEARNT = 'outbound_learnt'

/**
 * Addresses by name that one computer may use at once; more drive out those that end first. Kernel memory is no computer's
 * account: some 150 bytes each.
 */
const MAX_LEARNT = 1024
/** Names by which one address is kept when the list changes, the latest. Below `*.domain` there are any number of them. */
const MAX_NAMES = 16
/** An element's new time is told to the kernel once it is this much later than the one that it knows. */
const RENEWAL_MS = 60_000
/** What is left at least, after sleep, of the time of an address that was good before. */
const AFTER_SLEEP_MS = 60_000

interface Learnt {
  expiresAt: number
  /** When it was told last. */
  since: number
  /** Empty: learnt by a former orb, which took its names with it. */
  names: Set<string>
}

/** What a list names. */
interface List {
  hosts: number[]
  networks: Cidr[]
}

interface Limit extends List {
  learnt: Map<number, Learnt>
  /** Since when the agent sleeps; its addresses do not grow old meanwhile. */
  pausedAt: number | null
}

/**
 * Which addresses computers with an outbound list may open connections to: those that the list names, and for a time
 * those that its names led to. What is not limited costs nothing. It is all kept here too, for rules that are made anew.
 * An open connection is never cut.
 */
export class Outbound {
  private readonly limits = new Map<number, Limit>()
  /** The kernel may not have what is here. */
  private stale = false

  /** @param addressOf address of a computer, by slot @param now milliseconds */
  constructor(
    private readonly sets: Pick<NftSets, 'change'>,
    private readonly addressOf: (slot: number) => number,
    private readonly now: () => number = () => performance.now(),
  ) {}

  /** Whether the kernel may have missed a change, so that the rules have to be made anew. */
  get isStale(): boolean {
    return this.stale
  }

  /** The rules were made anew, of `elements`. */
  remade(): void {
    this.stale = false
  }

  /**
   * From now on the computer reaches these networks, and what names lead to. @param keeps whether addresses stay that
   * this name led to before @throws Errno; the rules hold once they are made anew
   */
  limit(slot: number, networks: Cidr[], keeps: (name: string) => boolean): void {
    const before = this.limits.get(slot)
    const known = [...(before?.learnt ?? [])]
    const kept = known.filter(([, { names }]) => [...names].some(keeps))
    const limit: Limit = { ...split(networks), learnt: new Map(kept), pausedAt: before?.pausedAt ?? null }
    this.limits.set(slot, limit)
    const dropped = known.flatMap(([address]) => (limit.learnt.has(address) ? [] : address))
    // What stays is not touched: of a set of networks the kernel removes each element in a time that grows with all of it.
    this.change([
      ...this.listed('remove', slot, without(before, limit)),
      ...this.absent(slot, dropped),
      { op: 'add', set: LIMITED, elements: [{ key: this.key(slot) }] },
      ...this.listed('add', slot, without(limit, before)),
    ])
  }

  /** The computer reaches what all computers may. @throws Errno; it does once the rules are made anew */
  free(slot: number): void {
    const limit = this.limits.get(slot)
    if (!limit) return
    this.limits.delete(slot)
    this.change([
      ...this.listed('remove', slot, limit),
      ...this.absent(slot, [...limit.learnt.keys()]),
      { op: 'remove', set: LIMITED, elements: [{ key: this.key(slot) }] },
    ])
  }

  /** Opens the way to what a name led to. Nothing happens where there is no limit. @throws Errno */
  learn(slot: number, name: string, leads: Lead[]): void {
    const limit = this.limits.get(slot)
    if (!limit) return
    const now = this.now()
    const later: number[] = []
    for (const { address, lifetimeMs } of leads) {
      const known = limit.learnt.get(address)
      if (known) remember(known.names, name)
      if (known && known.expiresAt > now && known.expiresAt + RENEWAL_MS > now + lifetimeMs) continue
      const names = known?.names ?? new Set([name])
      limit.learnt.set(address, { names, since: now, expiresAt: Math.max(now + lifetimeMs, known?.expiresAt ?? 0) })
      later.push(address)
    }
    if (later.length === 0) return
    const gone = this.evict(limit, now)
    const kept = later.filter((address) => limit.learnt.has(address))
    this.change([...this.renewed(slot, limit, kept, now), ...this.absent(slot, gone)])
  }

  /** The agent sleeps: to it no time passes. */
  pause(slot: number): void {
    const limit = this.limits.get(slot)
    if (limit) limit.pausedAt ??= this.now()
  }

  /** The agent is awake: what it knew is as good as before. */
  resume(slot: number): void {
    const limit = this.limits.get(slot)
    if (!limit || limit.pausedAt === null) return
    const { pausedAt } = limit
    const now = this.now()
    limit.pausedAt = null
    if (now - pausedAt < RENEWAL_MS) return
    const valid = [...limit.learnt].filter(([, { expiresAt }]) => expiresAt > pausedAt)
    for (const [, learnt] of valid)
      learnt.expiresAt = now + Math.max(learnt.expiresAt - Math.max(pausedAt, learnt.since), AFTER_SLEEP_MS)
    try {
      this.change(
        this.renewed(
          slot,
          limit,
          valid.map(([address]) => address),
          now,
        ),
      )
    } catch (error) {
      // The agent looks its names up again.
      log('warn', 'addresses of an agent that woke are closed', { slot, error })
    }
  }

  /** Takes over what a former orb had learnt and what still holds. */
  adopt(
    learnt: { computer: number; address: number; lifetimeMs: number }[],
    slotOf: (address: number) => number,
  ): void {
    const now = this.now()
    for (const { computer, address, lifetimeMs } of learnt)
      this.limits
        .get(slotOf(computer))
        ?.learnt.set(address, { expiresAt: now + lifetimeMs, since: now, names: new Set() })
  }

  /** As `limit`, for rules that are still to be made. */
  restore(slot: number, networks: Cidr[]): void {
    this.limits.set(slot, { ...split(networks), learnt: new Map(), pausedAt: null })
  }

  /** Everything, as `nft -f` takes the elements of each set. */
  elements(): Record<typeof LIMITED | typeof HOSTS | typeof NETWORKS | typeof LEARNT, string[]> {
    const now = this.now()
    const all = [...this.limits].map(([slot, limit]) => ({ from: dotted(this.addressOf(slot)), limit }))
    return {
      [LIMITED]: all.map(({ from }) => from),
      [HOSTS]: all.flatMap(({ from, limit }) => limit.hosts.map((host) => `${from} . ${dotted(host)}`)),
      [NETWORKS]: all.flatMap(({ from, limit }) => limit.networks.map((network) => `${from} . ${textOf(network)}`)),
      [LEARNT]: all.flatMap(({ from, limit }) =>
        [...limit.learnt].flatMap(([address, { expiresAt }]) =>
          expiresAt > now ? `${from} . ${dotted(address)} timeout ${Math.ceil((expiresAt - now) / 1000)}s` : [],
        ),
      ),
    }
  }

  private change(changes: SetChange[]): void {
    try {
      this.sets.change(changes)
    } catch (thrown) {
      this.stale = true
      throw thrown
    }
  }

  private listed(op: SetChange['op'], slot: number, { hosts, networks }: List): SetChange[] {
    return [
      { op, set: HOSTS, elements: hosts.map((host) => ({ key: this.key(slot, host) })) },
      { op, set: NETWORKS, elements: networks.map((network) => this.interval(slot, network)) },
    ]
  }

  /** The kernel may have removed them by itself, and does not take that well: they are added first. */
  private absent(slot: number, addresses: number[]): SetChange[] {
    const elements = addresses.map((address) => ({ key: this.key(slot, address) }))
    return [
      { op: 'add', set: LEARNT, elements },
      { op: 'remove', set: LEARNT, elements },
    ]
  }

  private renewed(slot: number, limit: Limit, addresses: number[], now: number): SetChange[] {
    const elements = addresses.map((address) => ({
      key: this.key(slot, address),
      timeoutMs: Math.max(1000, (limit.learnt.get(address)?.expiresAt ?? 0) - now),
    }))
    return [...this.absent(slot, addresses), { op: 'add', set: LEARNT, elements }]
  }

  /** Forgets what is over, and the oldest of what is too much. Returns what the kernel may still have of it. */
  private evict(limit: Limit, now: number): number[] {
    const over = limit.pausedAt ?? now
    for (const [address, { expiresAt }] of limit.learnt) if (expiresAt <= over) limit.learnt.delete(address)
    const excess = limit.learnt.size - MAX_LEARNT
    if (excess <= 0) return []
    const oldest = [...limit.learnt].sort(([, a], [, b]) => a.expiresAt - b.expiresAt).slice(0, excess)
    for (const [address] of oldest) limit.learnt.delete(address)
    return oldest.map(([address]) => address)
  }

  private key(slot: number, remote?: number): Uint8Array {
    const own = addressBytes(this.addressOf(slot))
    return remote === undefined ? own : Uint8Array.of(...own, ...addressBytes(remote))
  }

  private interval(slot: number, { base, bits }: Cidr): SetElement {
    const last = (base + 2 ** (IPV4_BITS - bits) - 1) >>> 0
    return { key: this.key(slot, base), end: this.key(slot, last) }
  }
}

const IPV4_BITS = 32

/** Adds the latest name, and drops the one that was used longest ago where there are too many. */
function remember(names: Set<string>, name: string): void {
  names.delete(name)
  names.add(name)
  const [oldest] = names
  if (names.size > MAX_NAMES && oldest !== undefined) names.delete(oldest)
}

/** Single addresses, which a hash finds, and networks, none of which lies in another: the kernel refuses that. */
function split(networks: Cidr[]): List {
  const widest: Cidr[] = []
  for (const network of [...networks].sort((a, b) => a.bits - b.bits))
    if (!widest.some((wide) => contains(wide, network))) widest.push(network)
  return {
    hosts: widest.filter(({ bits }) => bits === IPV4_BITS).map(({ base }) => base),
    networks: widest.filter(({ bits }) => bits < IPV4_BITS),
  }
}

/** What `list` has and `other` has not. */
function without(list: List | undefined, other: List | undefined): List {
  const [hosts, networks] = [new Set(other?.hosts), new Set(other?.networks.map(textOf))]
  return {
    hosts: list?.hosts.filter((host) => !hosts.has(host)) ?? [],
    networks: list?.networks.filter((network) => !networks.has(textOf(network))) ?? [],
  }
}

const textOf = ({ base, bits }: Cidr): string => `${dotted(base)}/${bits}`

/** Whether a network that is no wider lies in `wide`. */
const contains = (wide: Cidr, network: Cidr): boolean => {
  const size = 2 ** (IPV4_BITS - wide.bits)
  return Math.floor(network.base / size) === Math.floor(wide.base / size)
}

export const dotted = (address: number): string => [24, 16, 8, 0].map((shift) => (address >>> shift) & 0xff).join('.')

export const addressBytes = (address: number): Uint8Array =>
  Uint8Array.of(address >>> 24, (address >>> 16) & 0xff, (address >>> 8) & 0xff, address & 0xff)
