import { followLogs, readLogs } from '../runtime/logs.ts'
import type { Registry } from './agents/registry.ts'
import type { FindComputer } from './lookup.ts'
import type { Services } from './types.ts'

/** The agent's output and orb's own lines, Orb Cloud contract §9. Never wakes anybody. */
export function createLogs(registry: Registry, findComputer: FindComputer): Services['logs'] {
  return {
    async read(who, id, query) {
      const computer = findComputer(who, id)
      return { computer_id: computer.id, ...(await readLogs(registry.of(computer).logSource(), query)) }
    },
    follow(who, id, query, signal) {
      const life = registry.of(findComputer(who, id))
      return followLogs(life.logSource(), query, AbortSignal.any([signal, life.deleted]))
    },
  }
}
