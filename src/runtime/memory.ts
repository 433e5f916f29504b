import { readFileSync } from 'node:fs'

/** The host's memory at this moment. */
export interface HostMemory {
  totalBytes: number
  /** What could be had without swapping. */
  availableBytes: number
  swapTotalBytes: number
  swapFreeBytes: number
  /** Share of the last ten seconds in which some task waited for memory, 0 to 100; null where the kernel does not count it. */
  stalledPercent: number | null
}

const MEMINFO = '/proc/meminfo'
const PRESSURE = '/proc/pressure/memory'

export function readMemory(): HostMemory {
  const text = readFileSync(MEMINFO, 'utf8')
  const bytes = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(text)?.[1] ?? 0) * 1024
  return {
    totalBytes: bytes('MemTotal'),
    availableBytes: bytes('MemAvailable'),
    swapTotalBytes: bytes('SwapTotal'),
    swapFreeBytes: bytes('SwapFree'),
    stalledPercent: stalledPercent(),
  }
}

/** Kernels have pressure figures compiled out, or switched off: then the file is absent or cannot be read. */
function stalledPercent(): number | null {
  try {
    const average = /^some avg10=([\d.]+)/m.exec(readFileSync(PRESSURE, 'utf8'))?.[1]
    return average === undefined ? null : Number(average)
  } catch {
    return null
  }
}
