import { log } from '../../log.ts'
import type { Runtime } from '../../runtime/runtime.ts'
import type { BootNotes } from '../boot.ts'
import type { Registry } from './registry.ts'
import { Slots } from './slots.ts'

/** How many agents are looked at, and how many started afresh, at once. */
const RECOVERIES_AT_ONCE = 8

/**
 * After a start of orb. Resolves when it is known of each agent what it is. What then is left, such as starting agents
 * that a reboot ended, goes on until `over`: requests that come meanwhile wait for the agent that they are about.
 */
export async function recoverAgents(
  registry: Registry,
  runtime: Runtime,
  boot: BootNotes,
): Promise<{ over: Promise<void> }> {
  const started = performance.now()
  const rebooted = await boot.processesLost()
  const criu = runtime.checkpoints.running()
  const gates = { look: new Slots(RECOVERIES_AT_ONCE), rest: new Slots(RECOVERIES_AT_ONCE) }
  const all = registry.all()
  const recovering = all.flatMap((life) => {
    const recovery = life.recover(rebooted, criu, gates)
    const computer = life.computer.shortId
    recovery?.over.catch((error) => log('error', 'computer could not be recovered', { computer, error }))
    return recovery ?? []
  })
  const over = Promise.allSettled(recovering.map(({ over }) => over))
    .then(() => boot.recovered())
    .then(() => {
      const ms = Math.round(performance.now() - started)
      log('info', 'all agents are looked after', { computers: all.length, recovered: recovering.length, ms })
    })
    .catch((error) => log('error', 'what was recovered could not be written down', { error }))
  await Promise.all(recovering.map(({ known }) => known))
  return { over }
}
