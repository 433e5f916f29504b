import { log } from '../../log.ts'
import type { LlmCall, LlmDirectory } from '../../proxy/types.ts'
import type { Runtime } from '../../runtime/runtime.ts'
import type { Store } from '../../store/store.ts'
import type { ComputerRow, ConfigRow } from '../../store/types.ts'
import type { UsageRepository } from '../../store/usage.ts'
import type { Metrics } from '../metrics.ts'
import { fromJson, type OrbConfig } from '../orb-toml.ts'
import type { Registry } from './registry.ts'

/** Calls of exec, cron, terminal and builds neither freeze nor wake the agent. */
const FORWARDED: LlmCall = {
  answering: () => undefined,
  waiting: () => undefined,
  wake: () => undefined,
  writable: () => undefined,
  slept: () => false,
  end: () => undefined,
}

/** Tells the LLM proxy whose connection it has: the address says which computer, the socket's cgroup says whether the agent. */
export function createDirectory(deps: {
  runtime: Runtime
  registry: Registry
  configs: ConfigCache
  metrics: Metrics
  usage: Pick<UsageRepository, 'countCall'>
}): LlmDirectory {
  const { runtime, registry, configs, metrics, usage } = deps
  return {
    identify({ address, port }) {
      const slot = runtime.network.slotOf(address)
      const life = slot === null ? null : registry.atSlot(slot)
      if (!life) return null
      const { computer } = life
      const agentTree = runtime.isAgentConnection(computer, port)
      return {
        computerId: computer.id,
        agentTree,
        get llm() {
          return configs.current(computer)?.llm ?? { baseUrl: null, provider: 'multi' }
        },
        ownCall() {
          try {
            usage.countCall(computer.id, Date.now())
          } catch (error) {
            log('warn', 'an llm call is not counted', { computer: computer.shortId, error })
          }
        },
        begin: () => counted(agentTree ? life.ladder.begin() : FORWARDED, metrics),
      }
    },
  }
}

/** The call, and how long its answer took and how it ended. */
function counted(call: LlmCall, metrics: Metrics): LlmCall {
  let sentAt: number | null = null
  return {
    ...call,
    waiting() {
      sentAt = performance.now()
      call.waiting()
    },
    wake() {
      if (sentAt !== null) metrics.observe('orb_llm_upstream_seconds', (performance.now() - sentAt) / 1000)
      return call.wake()
    },
    end(outcome) {
      metrics.inc('orb_llm_requests_total', { outcome })
      if (outcome === 'replayed') metrics.inc('orb_llm_replays_total')
      call.end(outcome)
    },
  }
}

/** Parsed configurations: read at each LLM call, so they are kept until the stored row is replaced. */
export class ConfigCache {
  private readonly parsed = new WeakMap<ConfigRow, OrbConfig>()

  constructor(private readonly store: Store) {}

  /** The deployed one, before a deploy the stored one. */
  current(computer: ComputerRow): OrbConfig | null {
    return this.deployed(computer.id) ?? this.stored(computer.id)
  }

  deployed(computerId: string): OrbConfig | null {
    return this.read(computerId, 'deployed')
  }

  stored(computerId: string): OrbConfig | null {
    return this.read(computerId, 'stored')
  }

  forget(computerId: string): void {
    this.store.configs.forget(computerId)
  }

  private read(computerId: string, kind: 'deployed' | 'stored'): OrbConfig | null {
    const row = this.store.configs.get(computerId, kind)
    if (!row) return null
    const known = this.parsed.get(row)
    if (known) return known
    const config = fromJson(row.json)
    this.parsed.set(row, config)
    return config
  }
}
