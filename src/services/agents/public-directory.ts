import { OrbError } from '../../errors.ts'
import type { PublicComputer, PublicDirectory } from '../../proxy/ingress-types.ts'
import type { Runtime } from '../../runtime/runtime.ts'
import type { Store } from '../../store/store.ts'
import type { OutboundRules } from '../outbound.ts'
import type { ConfigCache } from './directory.ts'
import type { Life } from './life.ts'
import type { Registry } from './registry.ts'

export interface PublicDirectoryDeps {
  store: Store
  runtime: Runtime
  registry: Registry
  configs: ConfigCache
  outbound: Pick<OutboundRules, 'filterOf'>
  /** Ids of computers that are on their way out: they are not found any more. */
  deleting: ReadonlySet<string>
}

/** Tells the front door which computer a host name means, and how its agent is reached (Orb Cloud contract §12). */
export function createPublicDirectory({
  store,
  runtime,
  registry,
  configs,
  outbound,
  deleting,
}: PublicDirectoryDeps): PublicDirectory {
  return {
    find(label) {
      const computer = store.computers.get(label)
      if (!computer || deleting.has(computer.id)) return null
      const life = registry.of(computer)
      return {
        ports: configs.current(computer)?.ports ?? [],
        wake: () => wake(life),
        running: () => life.running,
        whenRunning: (callback) => life.whenRunning(callback),
        socket: (port, family) => runtime.network.appSocket(computer.shortId, family, port),
        begin: () => life.activity.begin(() => life.ladder.touch()),
      } satisfies PublicComputer
    },
    mayReach: (address, host) => outbound.filterOf(address)?.allows(host) ?? true,
  }
}

function wake(life: Life): Promise<void> | undefined {
  if (life.running) return undefined
  const row = life.row()
  if (!row || row.phase === 'failed' || row.phase === 'stopping') return Promise.reject(notRunning())
  return life.wake('http')?.catch((thrown) => {
    throw publicError(thrown)
  })
}

/** What a visitor may know. */
function publicError(thrown: unknown): OrbError {
  const code = thrown instanceof OrbError ? thrown.code : 'internal'
  if (code === 'agent_failed' || code === 'agent_not_found' || code === 'not_found') return notRunning()
  if (code === 'no_capacity') return new OrbError(code, 'The server has no room for the agent now.')
  return new OrbError('wake_failed', 'The agent could not be woken.', {}, { cause: thrown })
}

const notRunning = (): OrbError => new OrbError('agent_not_running', 'No agent runs here.')
