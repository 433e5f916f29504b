import { ptr } from 'bun:ffi'
import { closeSync, openSync } from 'node:fs'
import { log } from '../log.ts'
import { errnoCode, sys } from './libc.ts'

/*
 * Which pages a process has in memory, and how the kernel is asked to bring them back at once. Read one by one as the
 * process stumbles over them, the pages of a Node program take 50 ms; asked for together they take 10.
 */

/** Page ranges of one process: address and length in turn, as process_madvise(2) takes them. */
export type PageRanges = BigUint64Array<ArrayBuffer>

const NR_IOCTL = process.arch === 'arm64' ? 29 : 16
const NR_PIDFD_OPEN = 434
const NR_PROCESS_MADVISE = 440
const MADV_WILLNEED = 3
/** One call takes at most this many ranges (UIO_MAXIOV). */
const RANGES_PER_CALL = 1024

/** _IOWR('f', 16, struct pm_scan_arg) of linux/fs.h, and what of it is used. Kernel 6.7 and newer. */
const PAGEMAP_SCAN = 0xc0606610
const SCAN_ARG_BYTES = 96n
const PAGE_IS_PRESENT = 1n << 3n
const PAGE_IS_SWAPPED = 1n << 4n
/** The end of what a process can map: 47 and 48 bits of address. */
const ADDRESS_END = (process.arch === 'arm64' ? 1n << 48n : 1n << 47n) - 4096n
const REGIONS_PER_SCAN = 1024
const REGION_WORDS = 3
/** A call for this much keeps the thread for some 2 ms. */
const STEP_BYTES = 4n * 1024n * 1024n

/**
 * What is prefetched at most, of all that was in memory: the small ranges, among which are the stacks, the interpreter's
 * own state and the young heap, and not the data. After the first wake, what is in memory is what was used.
 */
const PREFETCH_MAX_BYTES = 48n * 1024n * 1024n

/** More ranges than this are not looked at: 48 MiB in single pages. A process in more pieces is no usual one. */
const PREFETCH_MAX_RANGES = 12_288

/** Ranges of pages that the process has in memory, smallest first, up to 48 MiB; none where the kernel cannot tell. */
export async function workingSet(pid: number): Promise<PageRanges> {
  try {
    const ranges: [start: bigint, length: bigint][] = []
    for await (const some of rangesOf(pid, PAGE_IS_PRESENT)) {
      ranges.push(...some)
      if (ranges.length >= PREFETCH_MAX_RANGES) break
    }
    return smallest(ranges)
  } catch (thrown) {
    notSeen(pid, thrown)
    return new BigUint64Array()
  }
}

/** Has the kernel read all that the process has in swap. Big reads: in steps, so that others have their turn. */
export async function readBack(pid: number): Promise<void> {
  let step: bigint[] = []
  let bytes = 0n
  const read = async () => {
    prefetch(pid, new BigUint64Array(step))
    step = []
    bytes = 0n
    await Bun.sleep(0)
  }
  try {
    for await (const ranges of rangesOf(pid, PAGE_IS_SWAPPED)) {
      for (const [start, length] of ranges) {
        for (let at = 0n; at < length; ) {
          const part = length - at < STEP_BYTES - bytes ? length - at : STEP_BYTES - bytes
          step.push(start + at, part)
          at += part
          bytes += part
          if (bytes === STEP_BYTES || step.length === 2 * RANGES_PER_CALL) await read()
        }
      }
    }
    if (step.length > 0) await read()
  } catch (thrown) {
    notSeen(pid, thrown)
  }
}

/** ENOTTY, EINVAL: kernel before 6.7. ENOENT, ESRCH: it has ended. */
function notSeen(pid: number, thrown: unknown): void {
  if (['ENOTTY', 'EINVAL', 'ENOENT', 'ESRCH'].includes(errnoCode(thrown) ?? '')) return
  log('warn', 'the memory of a sleeping process cannot be looked at', { pid, error: thrown })
}

/** In pieces, between which others have their turn: a process may have its memory in a million of them. */
async function* rangesOf(pid: number, kind: bigint): AsyncGenerator<[start: bigint, length: bigint][]> {
  const fd = openSync(`/proc/${pid}/pagemap`, 'r')
  try {
    const regions = new BigUint64Array(REGION_WORDS * REGIONS_PER_SCAN)
    for (let from = 0n; from < ADDRESS_END; ) {
      const ranges: [bigint, bigint][] = []
      // struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, anyof, return.
      const argument = new BigUint64Array([
        SCAN_ARG_BYTES,
        0n,
        from,
        ADDRESS_END,
        0n,
        BigInt(ptr(regions)),
        BigInt(REGIONS_PER_SCAN),
        0n,
        0n,
        kind,
        0n,
        kind,
      ])
      const found = sys(NR_IOCTL, fd, PAGEMAP_SCAN, argument)
      for (let at = 0; at < found * REGION_WORDS; at += REGION_WORDS) {
        const [start = 0n, end = 0n] = regions.subarray(at, at + 2)
        ranges.push([start, end - start])
      }
      yield ranges
      const walked = argument[4] ?? ADDRESS_END
      if (walked <= from) break
      from = walked
      await Bun.sleep(0)
    }
  } finally {
    closeSync(fd)
  }
}

function smallest(ranges: [start: bigint, length: bigint][]): PageRanges {
  const sorted = ranges.toSorted(([, a], [, b]) => Number(a - b))
  const chosen: bigint[] = []
  let total = 0n
  for (const [start, length] of sorted) {
    total += length
    if (total > PREFETCH_MAX_BYTES) break
    chosen.push(start, length)
  }
  return new BigUint64Array(chosen)
}

/** Has the kernel read the pages, without waiting for them. Pages that are there already cost next to nothing. */
export function prefetch(pid: number, ranges: PageRanges): void {
  let pidfd = -1
  try {
    pidfd = sys(NR_PIDFD_OPEN, pid, 0)
    for (let at = 0; at < ranges.length; at += 2 * RANGES_PER_CALL) {
      const part = ranges.slice(at, at + 2 * RANGES_PER_CALL)
      sys(NR_PROCESS_MADVISE, pidfd, part, part.length / 2, MADV_WILLNEED, 0)
    }
  } catch (thrown) {
    // It has ended, or changed its mappings since. The pages come in as it touches them.
    if (!['ESRCH', 'ENOMEM', 'EBADF'].includes(errnoCode(thrown) ?? '')) {
      log('warn', 'the memory of a waking process is not read ahead', { pid, error: thrown })
    }
  } finally {
    if (pidfd >= 0) closeSync(pidfd)
  }
}
