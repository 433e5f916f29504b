import { parseCidr } from '../cidr.ts'
import { log } from '../log.ts'
import type { NameFilter } from '../proxy/dns.ts'
import { upstreamHosts } from '../proxy/upstream-url.ts'
import type { Cidr } from '../runtime/outbound.ts'
import type { Runtime } from '../runtime/runtime.ts'
import type { Store } from '../store/store.ts'
import type { ComputerRow } from '../store/types.ts'
import type { ConfigCache } from './agents/directory.ts'
import type { OrbConfig } from './orb-toml.ts'

/**
 * Programs keep an address longer than its name server says, for connections that they open anew: it stays open to them
 * for this long at least, and for no longer than that however long the name server says (RFC 8767 §4).
 */
const SHORTEST_LEAD_S = 3600
const LONGEST_LEAD_S = 7 * 24 * 3600

/** Where a computer with an outbound list may connect to. */
export interface OutboundPolicy {
  networks: Cidr[]
  /** @param name in lower case, without its last dot */
  allows(name: string): boolean
  /** The same for policies that allow the same. */
  key: string
}

/** What of a configuration says where its computer may connect to. */
type Egress = Pick<OrbConfig, 'network' | 'source' | 'llm'>

export type OutboundNetwork = Pick<Runtime['network'], 'slotOf'> & {
  outbound: Pick<Runtime['network']['outbound'], 'limit' | 'free' | 'learn'>
}

/**
 * The policy of a computer that several configurations count for at once: it may reach what any of them allows. Null: the
 * whole internet (Orb Cloud contract §4, network.outbound). The hosts of source.git and of the LLM are always allowed.
 */
export function policyOf(configs: Egress[]): OutboundPolicy | null {
  const lists = configs.map(({ network }) => network.outbound)
  if (lists.length === 0 || lists.includes(null)) return null
  const entries = new Set([
    ...lists.flatMap((list) => list ?? []),
    ...configs.flatMap(({ source }) => (source ? hostsOf(source.git) : [])),
    ...configs.flatMap(({ llm }) => upstreamHosts(llm)),
  ])
  const networks: Cidr[] = []
  const names = new Set<string>()
  const domains: string[] = []
  for (const entry of [...entries].map(plainHost)) {
    const cidr = parseCidr(entry)
    // No computer speaks IPv6: there is nothing to open.
    if (cidr) networks.push(...(cidr.family === 4 ? [{ base: Number(cidr.value), bits: cidr.prefix }] : []))
    else if (entry.startsWith('*.')) domains.push(entry.slice(1))
    else names.add(entry)
  }
  return {
    networks,
    allows: (name) => names.has(name) || domains.some((domain) => name.length > domain.length && name.endsWith(domain)),
    key: JSON.stringify([...entries].sort()),
  }
}

const hostsOf = (url: string): string[] => {
  const host = URL.parse(url)?.hostname
  return host === undefined ? [] : [host.replace(/^\[|\]$/g, '')]
}

const plainHost = (host: string): string => host.toLowerCase().replace(/\.$/, '')

/** Policies of all computers that have one, by slot. Configurations that name no list are not even read. */
export function policiesOf(
  store: Pick<Store, 'computers' | 'configs'>,
  configs: Pick<ConfigCache, 'current'>,
): Map<number, OutboundPolicy> {
  const candidates = new Set(store.configs.mentioning('"outbound"'))
  const found = [...candidates].flatMap((id): [number, OutboundPolicy][] => {
    const computer = store.computers.get(id)
    const policy = computer && readPolicy(configs, computer)
    return computer && policy ? [[computer.slot, policy]] : []
  })
  return new Map(found)
}

const NOTHING: OutboundPolicy = { networks: [], allows: () => false, key: '[]' }

/** One computer's configuration that cannot be read must not keep the others from coming up: it may reach nothing. */
function readPolicy(configs: Pick<ConfigCache, 'current'>, computer: ComputerRow): OutboundPolicy | null {
  try {
    return policyOf(baseOf(configs, computer))
  } catch (error) {
    log('error', 'a configuration cannot be read: its computer may connect to nothing', {
      computer: computer.shortId,
      error,
    })
    return NOTHING
  }
}

/** As the runtime takes them at its start. */
export const limitsOf = (policies: Map<number, OutboundPolicy>): Map<number, Cidr[]> =>
  new Map([...policies].map(([slot, { networks }]) => [slot, networks]))

const baseOf = (configs: Pick<ConfigCache, 'current'>, computer: ComputerRow): OrbConfig[] => {
  const config = configs.current(computer)
  return config ? [config] : []
}

export type OutboundRules = ReturnType<typeof createOutbound>

/** Keeps computers to what their configuration says that they may reach. @param policies in force already, by slot */
export function createOutbound(
  configs: Pick<ConfigCache, 'current' | 'deployed'>,
  network: OutboundNetwork,
  policies: Map<number, OutboundPolicy> = new Map(),
) {
  const building = new Map<string, OrbConfig>()

  /** Puts in force what the computer's configurations say now. @throws Error when the kernel does not take it */
  function enforce(computer: ComputerRow): void {
    const built = building.get(computer.id)
    const deployed = configs.deployed(computer.id)
    const counted = built ? [...(deployed ? [deployed] : []), built] : baseOf(configs, computer)
    const policy = policyOf(counted)
    if (policy?.key === policies.get(computer.slot)?.key) return
    if (!policy) {
      policies.delete(computer.slot)
      network.outbound.free(computer.slot)
      return
    }
    // Until it is in force it is like no other: who asks again for the same must not be told that it is.
    policies.set(computer.slot, { ...policy, key: '' })
    network.outbound.limit(computer.slot, policy.networks, policy.allows)
    policies.set(computer.slot, policy)
  }

  return {
    enforce,

    /**
     * While `config` is built, what it allows is open beside what the deployed one does: a deploy that brings new hosts may
     * need them for its build, before it counts. Returns what ends that.
     */
    duringBuild(computer: ComputerRow, config: OrbConfig): () => void {
      building.set(computer.id, config)
      try {
        enforce(computer)
      } catch (thrown) {
        building.delete(computer.id)
        throw thrown
      }
      return () => {
        building.delete(computer.id)
        try {
          enforce(computer)
        } catch (error) {
          // The rules are made anew soon; the build's own answer counts.
          log('error', 'what a build opened may be open still', { computer: computer.shortId, error })
        }
      }
    },

    /** The computer is deleted; its address will be another's. */
    forget(computer: ComputerRow): void {
      building.delete(computer.id)
      policies.delete(computer.slot)
      try {
        network.outbound.free(computer.slot)
      } catch (error) {
        // The rules are made anew soon, without it; its deletion goes on.
        log('warn', 'the outbound list of a deleted computer is still in the kernel', {
          computer: computer.shortId,
          error,
        })
      }
    },

    /** For the name server: which names the computer at an address may look up. */
    filterOf(address: string): NameFilter | null {
      const slot = network.slotOf(address)
      const policy = slot === null ? undefined : policies.get(slot)
      if (slot === null || !policy) return null
      return {
        allows: policy.allows,
        learn: (name, leads) =>
          network.outbound.learn(
            slot,
            name,
            leads.map(({ address, ttlSeconds }) => ({
              address,
              lifetimeMs: Math.min(LONGEST_LEAD_S, Math.max(SHORTEST_LEAD_S, ttlSeconds)) * 1000,
            })),
          ),
      }
    },
  }
}
