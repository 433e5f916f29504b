/** What of this machine's RAM is in use, and by what. */
import { readFileSync } from 'node:fs'

const KB = 1024
/** Files, programs and free pages. */
const NOT_KERNEL = ['MemFree', 'Buffers', 'Cached', 'AnonPages']
/** Slabs that keep account of the page cache, and go with it. */
const OF_CACHE = ['buffer_head', 'radix_tree_node']
const PAGE_BYTES = 4096
const PARTS = ['SUnreclaim', 'SReclaimable', 'Percpu', 'KernelStack', 'PageTables', 'VmallocUsed']

/**
 * RAM that the kernel holds for itself, in bytes: everything but free pages, the page cache and the memory of programs, so
 * that neither other programs nor files that are kept because there is room for them count. `parts` are as meminfo has them.
 */
export function kernelMemory(): { total: number; parts: Record<string, number> } {
  const text = readFileSync('/proc/meminfo', 'utf8')
  const bytes = (name: string): number => Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, 'm').exec(text)?.[1] ?? 0) * KB
  return {
    total: NOT_KERNEL.reduce((rest, name) => rest - bytes(name), bytes('MemTotal')) - accountOfCache(),
    parts: Object.fromEntries(PARTS.map((name) => [name, bytes(name)])),
  }
}

/** slabinfo(5), whose last columns are slabs; pages of one slab stand before `: tunables`. */
function accountOfCache(): number {
  const text = readFileSync('/proc/slabinfo', 'utf8')
  return OF_CACHE.reduce((sum, name) => {
    const line = new RegExp(`^${name} .* (\\d+) : tunables .* : slabdata +\\d+ +(\\d+)`, 'm').exec(text)
    return sum + Number(line?.[1] ?? 0) * Number(line?.[2] ?? 0) * PAGE_BYTES
  }, 0)
}

/** RAM of processes, of shared pages their share: bytes. */
export const processMemory = (pids: number[]): number =>
  pids.reduce((sum, pid) => {
    const text = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8')
    return sum + Number(/^Pss:\s+(\d+) kB$/m.exec(text)?.[1] ?? 0) * KB
  }, 0)
