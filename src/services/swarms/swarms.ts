import { randomInt } from 'node:crypto'
import { messageOf, OrbError } from '../../errors.ts'
import { log } from '../../log.ts'
import type { Runtime } from '../../runtime/runtime.ts'
import type { Store } from '../../store/store.ts'
import type { ComputerRow, SwarmRow } from '../../store/types.ts'
import { isoTime } from '../../time.ts'
import type { Registry } from '../agents/registry.ts'
import type { Builds } from '../builds/builds.ts'
import type { Computers } from '../computers.ts'
import { MAX_CONFIG_BYTES } from '../configs.ts'
import { resolveSecrets } from '../environment.ts'
import { type OrbConfig, parseInline, toJson } from '../orb-toml.ts'
import type { OutboundRules } from '../outbound.ts'
import { MAX_SECRETS } from '../secrets.ts'
import type {
  CreateSwarmInput,
  Principal,
  RemovedSwarm,
  Services,
  SwarmMember,
  SwarmReport,
  SwarmView,
} from '../types.ts'
import { Making, type MakingDeps } from './making.ts'
import { Places } from './places.ts'

export interface SwarmsDeps {
  store: Pick<Store, 'computers' | 'configs' | 'ports' | 'swarms' | 'agents' | 'transaction'>
  runtime: Runtime
  registry: Registry
  computers: Computers
  builds: Pick<Builds, 'buildFor' | 'share' | 'cancel'>
  agents: MakingDeps['agents']
  plainHttpAllowed(url: URL): boolean
  deleting: MakingDeps['deleting']
  sleeps: MakingDeps['sleeps']
  outbound: Pick<OutboundRules, 'enforce'>
  awaitingBuild: MakingDeps['awaitingBuild']
  newLayers: MakingDeps['newLayers']
}

export type Swarms = Services['swarms'] & {
  /** At start, when it is known of each agent what it is: what a crash cut off has failed. */
  recover(): void
  /** Begins nothing new, and gives what is under way `graceMs`. The next start notes what is left. */
  stop(graceMs: number): Promise<void>
}

/** Orb Cloud contract §20. */
const MAX_SWARMS = 100
/** Computers that are brought up and deployed, or removed, at once. */
const REPLICAS_AT_ONCE = 8
const ID_ALPHABET = 'abcdefghijklmnopqrstuvwxyz0123456789'
/** Orb Cloud contract §1.2. */
const ID_LENGTH = 10

/** Computers that are made from one configuration by one call (Orb Cloud contract §13). */
export function createSwarms(deps: SwarmsDeps): Swarms {
  const { store, computers } = deps
  const makings = new Map<string, { making: Making; over: Promise<void> }>()
  const removals = new Map<string, Promise<RemovedSwarm>>()
  const makingDeps: MakingDeps = { ...deps, places: new Places(REPLICAS_AT_ONCE) }
  const removalPlaces = new Places(REPLICAS_AT_ONCE)
  let stopped = false

  function find(who: Principal, id: string): SwarmRow {
    const byId = store.swarms.get(id)
    const swarm = byId?.orgId === who.orgId ? byId : store.swarms.byName(who.orgId, id)
    if (!swarm) throw new OrbError('not_found', 'no such swarm')
    return swarm
  }

  function view(swarm: SwarmRow): SwarmView {
    const members = computers.views(store.computers.ofSwarm(swarm.id)).map(
      ({ id, short_id, replica_index, status, subdomain, url }): SwarmMember => ({
        id,
        short_id,
        replica_index: replica_index ?? 0,
        status,
        subdomain,
        url,
      }),
    )
    return {
      swarm_id: swarm.id,
      name: swarm.name,
      replicas: swarm.replicas,
      computers: members,
      created_at: isoTime(swarm.createdAt),
    }
  }

  /** Swarm and computers are in the database when this returns, or neither. */
  function writeDown(who: Principal, input: CreateSwarmInput, config: OrbConfig): [SwarmRow, ComputerRow[]] {
    if (store.swarms.byName(who.orgId, input.name)) {
      throw new OrbError('name_taken', `there is a swarm called ${input.name} already`)
    }
    if (store.swarms.list(who.orgId).length >= MAX_SWARMS) {
      throw new OrbError('quota_exceeded', `an organisation may have at most ${MAX_SWARMS} swarms`)
    }
    const now = Date.now()
    const { name, replicas, runtime_mb, disk_mb } = input
    const swarm: SwarmRow = { id: newId(), orgId: who.orgId, name, replicas, made: false, createdAt: now }
    const wanted = Array.from({ length: replicas }, (_, index) => ({
      name: `${name}-replica-${index}`,
      runtime_mb,
      disk_mb,
      user_id: null,
      swarmId: swarm.id,
      replicaIndex: index,
    }))
    const json = toJson(config)
    const members = computers.reserve(who, wanted, (rows) => {
      store.swarms.insert(swarm)
      for (const { id } of rows) {
        store.configs.put({ computerId: id, kind: 'stored', json, toml: null, source: 'swarm', updatedAt: now })
        store.ports.reserve(id, config.ports)
      }
    })
    // From here on commands can run in them.
    for (const member of members) deps.outbound.enforce(member)
    return [swarm, members]
  }

  function checked({ orb_config, org_secrets }: CreateSwarmInput): OrbConfig {
    const { config } = parseInline(orb_config, deps.plainHttpAllowed)
    if (Buffer.byteLength(toJson(config)) > MAX_CONFIG_BYTES) {
      throw new OrbError('payload_too_large', `a configuration may have at most ${MAX_CONFIG_BYTES} bytes`)
    }
    if (Object.keys(org_secrets ?? {}).length > MAX_SECRETS) {
      throw new OrbError('invalid_request', `org_secrets: a computer may have at most ${MAX_SECRETS} secrets`)
    }
    resolveSecrets(config, {}, org_secrets)
    return config
  }

  function report(swarm: SwarmRow, making: Making): SwarmReport {
    const failed = making.failed.toSorted((one, other) => one.replica_index - other.replica_index)
    return { ...view(swarm), deployed: making.deployed, failed }
  }

  async function removeNow(who: Principal, swarm: SwarmRow): Promise<RemovedSwarm> {
    const members = store.computers.ofSwarm(swarm.id)
    const underWay = makings.get(swarm.id)
    if (underWay) {
      underWay.making.giveUp()
      await Promise.all(members.map(({ id }) => deps.builds.cancel(id)))
      await underWay.over
    }
    const result: RemovedSwarm = { swarm_id: swarm.id, deleted: 0, failed: [] }
    const remove = async (computer: ComputerRow) => {
      try {
        await computers.remove(who, computer.id)
        result.deleted++
      } catch (thrown) {
        if (!store.computers.get(computer.id)) return
        const known = thrown instanceof OrbError
        if (!known) log('error', 'a replica could not be removed', { computer: computer.id, error: messageOf(thrown) })
        result.failed.push({
          replica_index: computer.replicaIndex ?? 0,
          error: known ? thrown.code : 'internal',
          message: known ? thrown.message : 'it could not be removed, see the log of orb; try again',
          computer_id: computer.id,
        })
      }
    }
    await Promise.all(members.map((computer) => removalPlaces.run(swarm.orgId, () => remove(computer))))
    if (result.failed.length === 0) store.swarms.remove(swarm.id)
    return result
  }

  return {
    create(who, input, watch = () => undefined) {
      const config = checked(input)
      const [swarm, members] = writeDown(who, input, config)
      const making = new Making(makingDeps, { swarm, config, sent: input.org_secrets, watch }, members)
      const over = making
        .run()
        .then(() => {
          if (!stopped) store.swarms.setMade(swarm.id)
        })
        .catch((error) => log('error', 'a swarm could not be made', { swarm: swarm.id, error }))
        .finally(() => makings.delete(swarm.id))
      makings.set(swarm.id, { making, over })
      return over.then(() => report(swarm, making))
    },

    list(who) {
      const swarms = store.swarms.list(who.orgId).map(view)
      return { swarms, total: swarms.length }
    },

    get: (who, id) => view(find(who, id)),

    remove(who, id) {
      const swarm = find(who, id)
      const underWay = removals.get(swarm.id)
      if (underWay) return underWay
      const removal = removeNow(who, swarm).finally(() => removals.delete(swarm.id))
      removals.set(swarm.id, removal)
      return removal
    },

    recover() {
      for (const swarm of store.swarms.unmade()) {
        store.transaction(() => {
          for (const { id } of store.computers.ofSwarm(swarm.id)) {
            if (store.agents.get(id) || store.swarms.failure(id)) continue
            const message = 'orb was stopped while this swarm was made'
            store.swarms.fail({ computerId: id, error: 'deploy_failed', message })
          }
          store.swarms.setMade(swarm.id)
        })
      }
    },

    async stop(graceMs) {
      stopped = true
      const underWay = [...makings.values()]
      for (const { making } of underWay) making.giveUp()
      await Promise.race([Promise.all(underWay.map(({ over }) => over)), Bun.sleep(graceMs)])
    },
  }
}

const newId = (): string =>
  `swm_${Array.from({ length: ID_LENGTH }, () => ID_ALPHABET[randomInt(ID_ALPHABET.length)]).join('')}`
