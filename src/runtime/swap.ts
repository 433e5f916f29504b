import { readFileSync, statfsSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { CommandError, run } from './command.ts'
import { readMemory } from './memory.ts'

/** statfs(2) magic numbers of file systems whose preallocated files can be swapped to as they are. */
const SWAPPABLE = new Map([
  [0xef53, 'ext4'],
  [0x58465342, 'xfs'],
])
/** What must stay available when all of the swap file comes back into memory. */
const HEADROOM_BYTES = 256 * 1024 * 1024
/** mkswap keeps the first page for itself, the kernel may leave out the last one: the sizes differ by this at most. */
const SIZE_SLACK_BYTES = 256 * 1024

interface ActiveSwap {
  bytes: number
  usedBytes: number
}

/** Why no swap file can be made in `dir`, or null. */
export function swapFileProblem(dir: string): string | null {
  if (SWAPPABLE.has(statfsSync(dir).type)) return null
  return `a swap file needs ${[...SWAPPABLE.values()].join(' or ')}, and ${dir} is on another file system`
}

/** The swap file as the kernel has it; null while it is not enabled. */
export function activeSwap(path: string): ActiveSwap | null {
  // Columns: file name, type, size and used in KiB, priority; blanks in the name are octal.
  const name = path.replace(/[\s\\]/g, (blank) => `\\${blank.charCodeAt(0).toString(8).padStart(3, '0')}`)
  for (const line of readFileSync('/proc/swaps', 'utf8').split('\n').slice(1)) {
    const [file, , kib, used] = line.split(/\s+/)
    if (file === name) return { bytes: Number(kib) * 1024, usedBytes: Number(used) * 1024 }
  }
  return null
}

/**
 * Makes and enables a swap file of `bytes` (none for 0). One that a killed orb left enabled is kept if it has this size;
 * of another size it is replaced as far as its content fits into memory. @throws Error with the reason
 */
export async function enableSwap(path: string, bytes: number): Promise<'none' | 'made' | 'adopted'> {
  const left = activeSwap(path)
  if (left && bytes > 0 && Math.abs(left.bytes - bytes) <= SIZE_SLACK_BYTES) return 'adopted'
  await disableSwap(path)
  if (bytes === 0) return 'none'
  const problem = swapFileProblem(path.slice(0, path.lastIndexOf('/')))
  if (problem) throw new Error(problem)
  try {
    // Not sparse, and readable by root alone from its first byte on: it will hold the memory of agents.
    await run(['install', '-m', '600', '/dev/null', path])
    await run(['fallocate', '-l', String(bytes), path])
    await run(['mkswap', path])
    await run(['swapon', path])
  } catch (thrown) {
    await rm(path, { force: true })
    throw thrown instanceof CommandError ? new Error(thrown.message.replaceAll('\n', '; ')) : thrown
  }
  return 'made'
}

/**
 * Brings what is in the swap file back into memory, disables and removes it; none there is no error.
 * @throws Error when memory does not suffice: it then stays as it is
 */
export async function disableSwap(path: string): Promise<void> {
  const active = activeSwap(path)
  if (active) {
    const room = readMemory().availableBytes - HEADROOM_BYTES
    if (active.usedBytes > room) {
      throw new Error(
        `${mb(active.usedBytes)} MB are in the swap file and memory has room for ${mb(Math.max(0, room))}`,
      )
    }
    await run(['swapoff', path])
  }
  await rm(path, { force: true })
}

const mb = (bytes: number): number => Math.round(bytes / (1024 * 1024))
