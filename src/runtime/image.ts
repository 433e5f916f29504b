import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { open, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'
import { log } from '../log.ts'
import { run } from './command.ts'
import { hasManifest } from './image-manifest.ts'
import { errnoCode } from './libc.ts'
import type { Connection } from './netlink.ts'

/*
 * A directory with the image of one agent: what criu wrote, what orb has to know without criu, and how each of criu's
 * runs on it ended.
 */

/** Exit codes, written down by orb-init: they are there also when orb died meanwhile. */
export const DUMP_RESULT = 'dump.result'
export const RESTORE_RESULT = 'restore.result'
export const PAGES_DRAINED = 'lazy.result'
const SYNCED = 'synced'

/** The dump ran to its end: only then is the image whole, and has a manifest. */
export const isComplete = async (dir: string): Promise<boolean> =>
  hasManifest(dir) || (await resultOf(dir, DUMP_RESULT)) === 0

/** The last restore ran to its end. */
export const isRestored = async (dir: string): Promise<boolean> => (await resultOf(dir, RESTORE_RESULT)) === 0

/** All pages of the last restore were handed over. */
export const isDrained = async (dir: string): Promise<boolean> => (await resultOf(dir, PAGES_DRAINED)) === 0

const resultOf = async (dir: string, name: string): Promise<number | null> =>
  codeIn(await readFile(join(dir, name), 'utf8').catch(() => ''))

const codeIn = (text: string): number | null => (text.endsWith('\n') ? Number(text) : null)

/** The image as a whole has reached stable storage. */
export const isSynced = async (dir: string): Promise<boolean> => existsSync(join(dir, SYNCED))

/** Whole, and on stable storage: as `isComplete` and `isSynced`, but for many images one after another. */
export function isStored(dir: string): boolean {
  return existsSync(join(dir, SYNCED)) && codeIn(readIfThere(join(dir, DUMP_RESULT))) === 0
}

function readIfThere(file: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch {
    return ''
  }
}

/**
 * Waits until all of a whole image is on stable storage, and marks it, unless `aborted` comes first.
 * @param mount of its computer's disk: what the agent wrote before must be there when it is brought back
 */
export async function syncImage(init: string, dir: string, mount: string, aborted: AbortSignal): Promise<void> {
  if (aborted.aborted || !(await isComplete(dir)) || (await isSynced(dir))) return
  try {
    await run([init, 'flush', dir, mount], undefined, aborted)
    await (await open(join(dir, SYNCED), 'w')).close()
    await sync(dir)
  } catch (thrown) {
    // One that is removed meanwhile is no error.
    if (!aborted.aborted && existsSync(dir)) throw thrown
  }
}

async function sync(path: string): Promise<void> {
  const handle = await open(path, 'r')
  await handle.sync().finally(() => handle.close())
}

/** What orb has to know of an image without criu. */
export interface ImageNotes {
  /** Locked again before anything else after a start of orb. */
  connections: Connection[]
  /** /dev/shm held nothing and is not in the image. */
  emptyShm: boolean
}

const NOTES = 'orb.json'

const ADDRESS = z.array(z.number()).length(4)

/** As the notes stand in the file: local address and port, remote address and port. */
const STORED = z.object({
  connections: z.array(z.tuple([ADDRESS, z.number(), ADDRESS, z.number()])),
  emptyShm: z.boolean(),
})

export function writeNotes(dir: string, { connections, emptyShm }: ImageNotes): void {
  const stored: z.input<typeof STORED> = {
    connections: connections.map(({ local, remote }) => [
      [...local.address],
      local.port,
      [...remote.address],
      remote.port,
    ]),
    emptyShm,
  }
  writeFileSync(join(dir, `${NOTES}.part`), JSON.stringify(stored))
  renameSync(join(dir, `${NOTES}.part`), join(dir, NOTES))
}

/** Those of an image that was never begun, or that a power cut took, are empty. */
export function readNotes(dir: string): ImageNotes {
  try {
    const stored = STORED.parse(JSON.parse(readFileSync(join(dir, NOTES), 'utf8')))
    return {
      connections: stored.connections.map(([local, localPort, remote, remotePort]) => ({
        local: { address: Uint8Array.from(local), port: localPort },
        remote: { address: Uint8Array.from(remote), port: remotePort },
      })),
      emptyShm: stored.emptyShm,
    }
  } catch (error) {
    if (errnoCode(error) !== 'ENOENT') log('warn', 'the notes of a checkpoint cannot be read', { dir, error })
    return { connections: [], emptyShm: false }
  }
}
