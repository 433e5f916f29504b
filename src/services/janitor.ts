import { log } from '../log.ts'
import type { Runtime } from '../runtime/runtime.ts'
import type { Store } from '../store/store.ts'
import type { Registry } from './agents/registry.ts'

/** How often it looks after the first time. */
const INTERVAL_MS = 3_600_000

export interface JanitorDeps {
  runtime: Pick<Runtime, 'removeStrays' | 'hasVanished'> & { network: Pick<Runtime['network'], 'repairLocks'> }
  store: Pick<Store, 'orgs'>
  registry: Pick<Registry, 'all'>
  /** Ids of all computers of the database. */
  known(): Set<string>
  /** Returns how many. */
  removeUnusedLayers(): Promise<number>
}

/** What a round found. Zero everywhere is what a healthy server shows. */
export type Round = Record<string, number>

/**
 * Reconciles the machine with the database, at start and every hour: what belongs to no computer of this data directory
 * is removed, computers that are not there any more are named. Nothing of another orb is touched, no transition held up.
 */
export class Janitor {
  private readonly timer: Timer
  private round: Promise<unknown>

  constructor(private readonly deps: JanitorDeps) {
    // Orb is ready before it begins.
    this.round = Bun.sleep(0).then(() => this.look())
    this.timer = setInterval(() => {
      this.round = this.round.then(() => this.look())
    }, INTERVAL_MS)
  }

  /** Resolves when the round that is under way has ended; there is no other. */
  async stop(): Promise<void> {
    clearInterval(this.timer)
    await this.round
  }

  private async look(): Promise<void> {
    try {
      const found = await this.sweep()
      const removed = Object.fromEntries(Object.entries(found).filter(([, count]) => count > 0))
      log('info', Object.keys(removed).length > 0 ? 'leftovers were removed' : 'no leftovers', removed)
    } catch (error) {
      log('error', 'leftovers could not be looked for', { error })
    }
  }

  private async sweep(): Promise<Round> {
    const { runtime, store, registry } = this.deps
    if (store.orgs.isEmpty()) {
      // A database that was lost and made anew knows nothing of the computers whose disks may lie here.
      log('info', 'the database is new: nothing in the data directory is taken for a leftover')
      return {}
    }
    const swept = await runtime.removeStrays(this.deps.known)
    const layers = await this.deps.removeUnusedLayers()
    const locks = await runtime.network.repairLocks()
    let images = 0
    for (const life of registry.all()) {
      // Its computer was deleted meanwhile.
      images += await life.removeStrays().catch(() => 0)
      if (!life.deleted.aborted && runtime.hasVanished(life.computer))
        log('warn', 'a computer is not there: its next command or wake makes it anew', {
          computer: life.computer.shortId,
        })
    }
    return { ...swept, layers, locks, images }
  }
}
