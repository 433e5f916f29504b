import { log } from '../../log.ts'
import type { Runtime } from '../../runtime/runtime.ts'
import type { BootNotes } from '../boot.ts'
import type { Life } from './life.ts'
import type { Registry } from './registry.ts'
import { Slots } from './slots.ts'

/** How many agents are looked at, and how many started afresh, at once. */
const RECOVERIES_AT_ONCE = 8

/** Looks at agents that should need nothing, one after another, before others get their turn: a look takes 0.2 ms. */
const LOOKS_IN_A_ROW = 10

/**
 * After a start of orb. Resolves when it is known of each agent what it is. What then is left, such as starting agents
 * that a reboot ended and a look at those that sleep, goes on until `over`: requests that come meanwhile wait for the
 * agent that they are about.
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
  const [resting, others] = [all.filter((life) => life.shouldRest), all.filter((life) => !life.shouldRest)]
  const recovering = others.flatMap((life) => withComputer(life, life.recover(rebooted, criu, gates)) ?? [])
  const looks = resting.flatMap((life) => withComputer(life, life.recoverLater(rebooted, criu, gates)) ?? [])
  const over = lookAtAll(looks)
    .then(() => Promise.allSettled([...recovering, ...looks].map(({ over }) => over)))
    // The next start is told of what this one could not make good.
    .then(async (results) => {
      if (results.every(({ status }) => status === 'fulfilled')) await boot.recovered()
    })
    .then(() => {
      const ms = Math.round(performance.now() - started)
      log('info', 'all agents are looked after', { computers: all.length, recovered: recovering.length, ms })
    })
    .catch((error) => log('error', 'what was recovered could not be written down', { error }))
  await Promise.all(recovering.map(({ known }) => known))
  return { over }
}

/** Says of which computer it is that cannot be recovered. */
function withComputer<T extends { over: Promise<void> }>(life: Life, recovery: T | null): T | null {
  const computer = life.computer.shortId
  recovery?.over.catch((error) => log('error', 'computer could not be recovered', { computer, error }))
  return recovery
}

async function lookAtAll(looks: { now(): void }[]): Promise<void> {
  for (const [index, look] of looks.entries()) {
    // The first time, too: orb is ready before it begins.
    if (index % LOOKS_IN_A_ROW === 0) await Bun.sleep(0)
    look.now()
  }
}
