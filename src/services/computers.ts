import { randomUUID } from 'node:crypto'
import type { Settings } from '../config.ts'
import { OrbError } from '../errors.ts'
import { log } from '../log.ts'
import { CommandError } from '../runtime/command.ts'
import { splitBase } from '../runtime/layers.ts'
import { errnoCode } from '../runtime/libc.ts'
import { Network } from '../runtime/network.ts'
import type { Runtime } from '../runtime/runtime.ts'
import type { Store } from '../store/store.ts'
import type { ComputerRow } from '../store/types.ts'
import type { ConfigCache } from './agents/directory.ts'
import type { Registry } from './agents/registry.ts'
import type { FindComputer } from './lookup.ts'
import type { OutboundRules } from './outbound.ts'
import type { ComputerView, CreateComputerInput, Principal, Services } from './types.ts'
import { computerView } from './views.ts'
import { computerNews, type Outbox } from './webhooks/outbox.ts'

export interface ComputersDeps {
  settings: Settings
  store: Store
  outbox: Pick<Outbox, 'tell'>
  runtime: Runtime
  registry: Registry
  configs: ConfigCache
  findComputer: FindComputer
  /** Ids of those that are on their way out. */
  deleting: Set<string>
  builds: { isBuilding(computerId: string): boolean; cancel(computerId: string): Promise<void> }
  terminals: { end(computerId: string, why: 'deleted'): void }
  /** LLM answers that are kept for a replay. */
  forgetCalls(computerId: string): void
  /** Its jobs of cron. */
  forgetJobs(computerId: string): void
  outbound: Pick<OutboundRules, 'forget'>
  removeUnusedLayers(): Promise<number>
}

/** A computer that is to be made, perhaps as a member of a swarm. */
export type NewComputer = CreateComputerInput & Pick<ComputerRow, 'swarmId' | 'replicaIndex'>

export type Computers = Services['computers'] & {
  /**
   * Rows of computers of which nothing else is there yet, all or none. `within` stores what belongs to them.
   * @throws OrbError quota_exceeded, no_capacity
   */
  reserve(who: Principal, wanted: NewComputer[], within?: (computers: ComputerRow[]) => void): ComputerRow[]
  /** @throws OrbError disk_full */
  bringUp(computer: ComputerRow): Promise<void>
  /** All must be of one organisation. */
  views(computers: ComputerRow[]): ComputerView[]
}

/** Length of the short id: the first characters of the id (Orb Cloud contract §1.2). */
const SHORT_ID_LENGTH = 8

/** Orb Cloud contract §3. */
export function createComputers(deps: ComputersDeps): Computers {
  const { settings, store, outbox, runtime, registry, findComputer, deleting } = deps
  const view = (
    computer: ComputerRow,
    ports = store.ports.list(computer.id),
    failed = store.swarms.failure(computer.id) !== null,
  ) => {
    const condition = deps.builds.isBuilding(computer.id) ? 'building' : failed ? 'failed' : null
    return computerView(computer, registry.of(computer).row(), condition, ports, settings)
  }

  function views(computers: ComputerRow[]): ComputerView[] {
    const orgId = computers[0]?.orgId
    if (orgId === undefined) return []
    // One question for all: one for each takes most of the time of a long list.
    const ports = Map.groupBy(store.ports.ofOrg(orgId), ({ computerId }) => computerId)
    const failed = store.swarms.failedOf(orgId)
    return computers.map((computer) => view(computer, ports.get(computer.id) ?? [], failed.has(computer.id)))
  }

  function reserve(who: Principal, wanted: NewComputer[], within?: (computers: ComputerRow[]) => void): ComputerRow[] {
    if (store.computers.count(who.orgId) + wanted.length > settings.maxComputers) {
      throw new OrbError('quota_exceeded', `an organisation may have at most ${settings.maxComputers} computers`)
    }
    if (store.computers.total() + wanted.length > Network.capacity(networkOf(settings))) {
      throw new OrbError('no_capacity', `all addresses of ${settings.subnet.text} are in use`)
    }
    return store.transaction(() => {
      const computers = wanted.map((input) => insert(who, input))
      within?.(computers)
      for (const computer of computers) outbox.tell(computer, computerNews('computer.created', computer))
      return computers
    })
  }

  async function bringUp(computer: ComputerRow): Promise<void> {
    await runtime.up(computer).catch((thrown) => {
      throw creationError(thrown)
    })
  }

  function insert(who: Principal, input: NewComputer): ComputerRow {
    const now = Date.now()
    for (;;) {
      const id = randomUUID()
      const shortId = id.slice(0, SHORT_ID_LENGTH)
      if (store.computers.get(shortId)) continue
      return store.computers.insert({
        id,
        shortId,
        orgId: who.orgId,
        name: input.name,
        runtimeMb: input.runtime_mb,
        diskMb: input.disk_mb,
        userId: input.user_id,
        swarmId: input.swarmId,
        replicaIndex: input.replicaIndex,
        base: runtime.base.name,
        createdAt: now,
        updatedAt: now,
      })
    }
  }

  async function discard(computer: ComputerRow): Promise<void> {
    await runtime.down(computer)
    await registry.remove(computer)
    deps.forgetCalls(computer.id)
    await runtime
      .markDeleted(computer)
      .catch((error) => log('warn', 'a deleted computer is not marked', { id: computer.id, error }))
    // The next computer of this slot has its address.
    deps.outbound.forget(computer)
    store.transaction(() => {
      const removed = store.computers.remove(computer.id)
      if (removed) outbox.tell(computer, computerNews('computer.destroyed', computer))
    })
    deps.configs.forget(computer.id)
    deps.forgetJobs(computer.id)
    // The row goes before the files: files without a row, after a crash or a failure here, are cleared away later.
    await runtime
      .erase(computer)
      .catch((error) => log('error', 'files of a deleted computer are still there', { id: computer.id, error }))
    const { layer } = splitBase(computer.base)
    if (layer === null || store.computers.bases().includes(computer.base)) return
    await deps
      .removeUnusedLayers()
      .catch((error) => log('error', 'a layer that nobody stands on is still there', { layer, error }))
  }

  return {
    reserve,
    bringUp,
    views,

    async create(who, input) {
      const [computer] = reserve(who, [{ ...input, swarmId: null, replicaIndex: null }])
      if (!computer) throw new Error('no computer was made')
      try {
        await bringUp(computer)
        return view(computer)
      } catch (thrown) {
        await discard(computer).catch((error) =>
          log('error', 'a failed computer is not wholly removed', { id: computer.id, error }),
        )
        throw thrown
      }
    },

    list(who) {
      const computers = views(store.computers.list(who.orgId))
      return { computers, total: computers.length }
    },

    get: (who, id) => view(findComputer(who, id)),

    async remove(who, id) {
      const computer = findComputer(who, id)
      deleting.add(computer.id)
      try {
        deps.terminals.end(computer.id, 'deleted')
        await deps.builds.cancel(computer.id)
        await registry.of(computer).stop('deleted')
        await discard(computer)
      } finally {
        deleting.delete(computer.id)
      }
      return { id: computer.id, computer_id: computer.id, deleted: true }
    },
  }
}

/** The subnet in the form that the runtime takes. */
export const networkOf = (settings: Pick<Settings, 'subnet'>): { base: number; bits: number } => ({
  base: Number(settings.subnet.value),
  bits: settings.subnet.prefix,
})

/** What a failure to make something on the server's disk means to a client; anything unforeseen comes back as it is. */
export function creationError(thrown: unknown): unknown {
  const text = thrown instanceof CommandError ? thrown.stderr : ''
  if (errnoCode(thrown) === 'ENOSPC' || /No space left on device/.test(text)) {
    return new OrbError('disk_full', 'the server has no room for the disk of another computer', {}, { cause: thrown })
  }
  return thrown
}
