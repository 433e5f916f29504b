import { followLogs, type LogLine, type LogQuery, readLogs } from '../runtime/logs.ts'
import type { Runtime } from '../runtime/runtime.ts'
import type { Life } from './agents/life.ts'
import type { Registry } from './agents/registry.ts'
import type { FindComputer } from './lookup.ts'
import type { Services } from './types.ts'

/** The agent's output and orb's own lines, Orb Cloud contract §9. Never wakes anybody. */
export function createLogs(runtime: Runtime, registry: Registry, findComputer: FindComputer): Services['logs'] {
  return {
    async read(who, id, query) {
      const computer = findComputer(who, id)
      await runtime.up(computer)
      return { computer_id: computer.id, ...(await readLogs(registry.of(computer).logSource(), query)) }
    },
    follow(who, id, query, signal) {
      const life = registry.of(findComputer(who, id))
      return follow(runtime, life, query, AbortSignal.any([signal, life.deleted]))
    },
  }
}

async function* follow(runtime: Runtime, life: Life, query: LogQuery, signal: AbortSignal): AsyncGenerator<LogLine> {
  await runtime.up(life.computer)
  yield* followLogs(life.logSource(), query, signal)
}
