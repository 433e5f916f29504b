import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Connection } from './netlink.ts'

/** What orb has to know of an image without criu; it lies beside it. */
export interface ImageNotes {
  /** Locked again before anything else after a start of orb. */
  connections: Connection[]
  /** /dev/shm held nothing and is not in the image. */
  emptyShm: boolean
}

const FILE = 'orb.json'

/** As the notes stand in the file: addresses are lists of four numbers. */
interface Stored {
  connections: [local: number[], localPort: number, remote: number[], remotePort: number][]
  emptyShm: boolean
}

export function writeNotes(dir: string, { connections, emptyShm }: ImageNotes): void {
  const stored: Stored = {
    connections: connections.map(({ local, remote }) => [
      [...local.address],
      local.port,
      [...remote.address],
      remote.port,
    ]),
    emptyShm,
  }
  writeFileSync(join(dir, FILE), JSON.stringify(stored))
}

/** Those of an image that was never begun are empty. */
export function readNotes(dir: string): ImageNotes {
  const file = join(dir, FILE)
  if (!existsSync(file)) return { connections: [], emptyShm: false }
  const stored: Stored = JSON.parse(readFileSync(file, 'utf8'))
  return {
    connections: stored.connections.map(([local, localPort, remote, remotePort]) => ({
      local: { address: Uint8Array.from(local), port: localPort },
      remote: { address: Uint8Array.from(remote), port: remotePort },
    })),
    emptyShm: stored.emptyShm,
  }
}
