import { messageOf, OrbError } from '../../errors.ts'
import { log } from '../../log.ts'
import { newLayerName, onLayer } from '../../runtime/layers.ts'
import { appendOrbLine } from '../../runtime/log-file.ts'
import type { Runtime } from '../../runtime/runtime.ts'
import type { Store } from '../../store/store.ts'
import type { ComputerRow, ReplicaError, SwarmRow } from '../../store/types.ts'
import type { Registry } from '../agents/registry.ts'
import type { Slots } from '../agents/slots.ts'
import type { Builds } from '../builds/builds.ts'
import { creationError } from '../computers.ts'
import type { OrbConfig } from '../orb-toml.ts'
import type { FailedReplica, SwarmProgress } from '../types.ts'
import type { Places } from './places.ts'

export interface MakingDeps {
  store: Pick<Store, 'computers' | 'swarms' | 'transaction'>
  /** Ids of computers that are on their way out. */
  deleting: ReadonlySet<string>
  runtime: Pick<Runtime, 'isMade' | 'makeLayer' | 'paths'>
  registry: Pick<Registry, 'of' | 'setBase'>
  computers: { bringUp(computer: ComputerRow): Promise<void> }
  builds: Pick<Builds, 'buildFor' | 'share'>
  agents: { redeploy(computerId: string, sent?: Record<string, string>): Promise<void> }
  /** Replicas that are brought up and deployed at once, those of all swarms, by organisation. */
  places: Places
  /** Dumps and restores. */
  sleeps: Pick<Slots, 'holdUnasked'>
  /** Ids of computers that wait for a build that another does for them. */
  awaitingBuild: Set<string>
  /** Layers that no row names yet. */
  newLayers: Set<string>
}

export interface Order {
  swarm: SwarmRow
  config: OrbConfig
  /** `org_secrets` as they were sent. */
  sent: Record<string, string> | undefined
  watch(progress: SwarmProgress): void
}

/** What went wrong with a replica, with a message for the user. */
class ReplicaFailure extends Error {
  override name = 'ReplicaFailure'
  constructor(
    readonly error: ReplicaError,
    message: string,
  ) {
    super(message)
  }
}

/** Brings up and deploys the computers of one swarm, whose rows are there; what all of them build is built once. */
export class Making {
  readonly failed: FailedReplica[] = []
  private readonly started = new Set<ComputerRow>()
  private readonly end = new AbortController()
  /** Brought up by somebody else before there was a layer for it: such a one builds for itself. */
  private readonly buildsItself = new Set<string>()

  constructor(
    private readonly deps: MakingDeps,
    private readonly order: Order,
    private readonly members: ComputerRow[],
  ) {}

  get deployed(): number {
    return this.started.size
  }

  /** Nothing new is begun from here on; `run` returns when what is under way has ended. */
  giveUp(): void {
    this.end.abort()
  }

  /** Resolves when every replica is up or has failed. */
  async run(): Promise<void> {
    for (const member of this.members) this.deps.registry.of(member)
    this.tell('created', null, `${this.members.length} computers`)
    const { source, build } = this.order.config
    const ready = source || build ? await this.buildOnce() : this.members
    // The first would fall asleep while the last are not up yet.
    const endHold = this.deps.sleeps.holdUnasked()
    try {
      await Promise.all(ready.map((member) => this.deploy(member)))
    } finally {
      endHold()
    }
    // Some that had started may have ended while others were made.
    for (const member of this.started) this.checkStillRuns(member)
  }

  /** Builds in one of them and has the others stand on that. Returns those that have not failed. */
  private async buildOnce(): Promise<ComputerRow[]> {
    const builder = await this.firstUp()
    if (!builder) return []
    const others = this.members.filter((member) => member !== builder && !this.hasFailed(member))
    for (const { id } of others) this.deps.awaitingBuild.add(id)
    try {
      await this.build(builder, others.length)
    } catch (thrown) {
      for (const member of [builder, ...others]) this.fail(member, 'build_failed', thrown)
      return []
    } finally {
      // Before anything else can happen: a build of its own would not count otherwise.
      for (const { id } of others) this.deps.awaitingBuild.delete(id)
    }
    try {
      if (others.length > 0) await this.share(builder, others)
      return [builder, ...others]
    } catch (thrown) {
      for (const member of others) this.fail(member, 'create_failed', creationError(thrown))
      return [builder]
    }
  }

  private async firstUp(): Promise<ComputerRow | null> {
    for (const member of this.members) {
      try {
        await this.bringUp(member)
        return member
      } catch (thrown) {
        this.fail(member, 'create_failed', thrown)
      }
    }
    return null
  }

  private async build(computer: ComputerRow, forOthers: number): Promise<void> {
    this.checkGoesOn()
    const { config, sent } = this.order
    this.tell('building', computer, forOthers > 0 ? `building for itself and ${forOthers} others` : 'building')
    const began = performance.now()
    const { success, message } = await this.deps.builds.buildFor(computer, config, { org_secrets: sent })
    if (!success) throw new ReplicaFailure('build_failed', message ?? 'the build failed')
    this.tell('built', computer, `built in ${seconds(began)} s`)
  }

  /** What the builder's disk holds becomes a layer below those of the others. */
  private async share(builder: ComputerRow, others: ComputerRow[]): Promise<void> {
    this.checkGoesOn()
    const { store, runtime, registry, builds, newLayers } = this.deps
    const began = performance.now()
    const layer = newLayerName()
    const base = onLayer(builder.base, layer)
    newLayers.add(layer)
    try {
      await runtime.makeLayer(builder, layer, this.end.signal)
      // One that was deleted meanwhile is found out when it is to be brought up.
      const there = others.filter((member) => this.exists(member))
      store.transaction(() => {
        for (const member of there) {
          if (runtime.isMade(member)) this.buildsItself.add(member.id)
          else store.computers.setBase(member.id, base)
          if (!this.buildsItself.has(member.id)) builds.share(builder, member)
        }
      })
      for (const member of there) if (!this.buildsItself.has(member.id)) registry.setBase(member, base)
    } finally {
      newLayers.delete(layer)
    }
    this.tell('shared', null, `the build is shared, in ${seconds(began)} s`)
  }

  private async deploy(member: ComputerRow): Promise<void> {
    const inPlace = (work: () => Promise<void>) => this.deps.places.run(this.order.swarm.orgId, work)
    let otherwise: ReplicaError = 'create_failed'
    const bringUp = async () => {
      await this.bringUp(member)
      otherwise = 'deploy_failed'
    }
    try {
      if (this.buildsItself.has(member.id)) {
        await inPlace(bringUp)
        // For as long as its steps take, which must not keep a place from others.
        await this.build(member, 0)
      }
      await inPlace(async () => {
        await bringUp()
        this.checkGoesOn()
        await this.deps.agents.redeploy(member.id, this.order.sent)
        this.checkRuns(member)
        this.started.add(member)
        this.tell('deployed', member, 'deployed')
      })
    } catch (thrown) {
      this.fail(member, otherwise, thrown)
    }
  }

  private async bringUp(member: ComputerRow): Promise<void> {
    this.checkGoesOn()
    if (!this.exists(member)) throw new ReplicaFailure('create_failed', 'it was deleted before it was made')
    await this.deps.computers.bringUp(member)
  }

  private checkStillRuns(member: ComputerRow): void {
    try {
      this.checkRuns(member)
    } catch (thrown) {
      this.started.delete(member)
      this.fail(member, 'deploy_failed', thrown)
    }
  }

  private exists = ({ id }: ComputerRow): boolean =>
    !this.deps.deleting.has(id) && this.deps.store.computers.get(id) !== null

  private checkRuns(member: ComputerRow): void {
    if (!this.exists(member)) return
    const row = this.deps.registry.of(member).row()
    if (row?.phase !== 'failed') return
    const last = row.stderrTail?.trim().split('\n').at(-1) ?? ''
    throw new ReplicaFailure('deploy_failed', `the agent exited with code ${row.exitCode}${last ? `: ${last}` : ''}`)
  }

  private checkGoesOn(): void {
    if (this.end.signal.aborted) throw new ReplicaFailure('deploy_failed', 'the swarm was given up before it was made')
  }

  private hasFailed = (member: ComputerRow): boolean => this.failed.some(({ computer_id }) => computer_id === member.id)

  private fail(member: ComputerRow, otherwise: ReplicaError, thrown: unknown): void {
    const failure = this.failureOf(thrown, otherwise)
    const replica = { replica_index: member.replicaIndex ?? 0, ...failure, computer_id: member.id }
    this.failed.push(replica)
    // Whoever gave it up deletes it, or has stopped orb: then the next start notes it.
    if (!this.end.signal.aborted && this.exists(member)) {
      this.deps.store.swarms.fail({ computerId: member.id, ...failure })
    }
    this.tell('failed', member, `${failure.error}: ${failure.message}`)
  }

  private failureOf(thrown: unknown, otherwise: ReplicaError): { error: ReplicaError; message: string } {
    if (thrown instanceof ReplicaFailure) return { error: thrown.error, message: thrown.message }
    if (thrown instanceof OrbError) return { error: otherwise, message: thrown.message }
    log('error', 'a replica could not be made', { swarm: this.order.swarm.id, error: messageOf(thrown) })
    return { error: otherwise, message: 'it could not be made, see the log of orb' }
  }

  /** To whoever listens, and into the computer's own log. */
  private tell(phase: SwarmProgress['phase'], member: ComputerRow | null, message: string): void {
    const { swarm, watch } = this.order
    watch({
      swarm_id: swarm.id,
      phase,
      replica_index: member?.replicaIndex ?? null,
      message,
      deployed: this.deployed,
      failed: this.failed.length,
      replicas: swarm.replicas,
    })
    if (member === null || !this.deps.runtime.isMade(member)) return
    const line = `swarm ${swarm.name}, replica ${member.replicaIndex} of ${swarm.replicas}: ${message}`
    appendOrbLine(this.deps.runtime.paths(member).log, line, Date.now())
  }
}

const MS_PER_SECOND = 1000
const seconds = (began: number): string => ((performance.now() - began) / MS_PER_SECOND).toFixed(1)
