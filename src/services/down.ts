import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { parseCidr } from '../cidr.ts'
import type { Settings } from '../config.ts'
import { unpackBundle } from '../runtime/bundle.ts'
import { lockFile } from '../runtime/lock.ts'
import { dataPaths } from '../runtime/paths.ts'
import { Runtime } from '../runtime/runtime.ts'
import { disableSwap } from '../runtime/swap.ts'
import { openStore } from '../store/store.ts'
import type { ComputerRow } from '../store/types.ts'
import { ConfigCache } from './agents/directory.ts'
import { AGENT_PORT } from './agents/machine.ts'
import { BootNotes } from './boot.ts'
import { networkOf } from './computers.ts'
import { Crontabs, lookAtCronFile } from './cron/crontabs.ts'
import { limitsOf, policiesOf } from './outbound.ts'

const DOWN_AT_ONCE = 8

/**
 * Takes everything that computers of a data directory have in the kernel away: processes, mounts, cgroups, network, rules
 * and swap file. Disks, checkpoints and database stay; the next serve finds the machine as after a reboot. Returns how many
 * computers were up, or null when there was nothing to take down. @throws Error when an orb serves the directory
 */
export async function takeDown(settings: Settings): Promise<number | null> {
  const data = dataPaths(settings.dataDir)
  const notes = new BootNotes(data.run)
  if (!existsSync(join(settings.dataDir, 'orb.db'))) throw new Error(`${settings.dataDir} is no data directory of orb`)
  const unlock = lockFile(join(settings.dataDir, 'orb.lock'))
  if (!unlock) throw new Error(`an orb serves ${settings.dataDir}: stop it first`)
  const store = openStore(join(settings.dataDir, 'orb.db'))
  try {
    // Not the subnet of the settings: the rules of another orb may be those of that one.
    const subnet = parseCidr((await notes.subnet()) ?? '')
    if (!subnet) {
      await disableSwap(data.swap)
      return null
    }
    const runtime = await Runtime.start(
      {
        data,
        files: await unpackBundle(settings.dataDir),
        base: settings.base,
        memoryMultiplier: settings.memoryMultiplier,
        network: { subnet: networkOf({ subnet }), proxyPort: AGENT_PORT, apiPort: null, allow: [] },
      },
      [],
      // Computers run on until their turn comes.
      limitsOf(policiesOf(store, new ConfigCache(store))),
    )
    const computers = store.computers.all()
    const left = [...computers]
    const look = (computer: ComputerRow, last: string | null) => lookAtCronFile(runtime.paths(computer).rootfs, last)
    // Its jobs count on, though its disk will not be mounted.
    const crontabs = new Crontabs({ store, look }, Date.now())
    const worker = async () => {
      for (let computer = left.pop(); computer; computer = left.pop()) {
        const alive = runtime.agentAlive(computer)
        crontabs.look(computer, Date.now())
        await runtime.down(computer)
        if (alive) store.usage.ended(computer.id)
        const image = store.agents.get(computer.id)?.image
        if (image) await runtime.checkpoints.syncImage(computer, image)
      }
    }
    await Promise.all(Array.from({ length: DOWN_AT_ONCE }, worker))
    await runtime.stop()
    await disableSwap(data.swap)
    await notes.allDown()
    return computers.length
  } finally {
    store.close()
    unlock()
  }
}
