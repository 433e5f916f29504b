import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type Field, get, put, type Rewrite, rewriteImage } from './image-file.ts'
import { errnoCode } from './libc.ts'

/*
 * A lazily restored agent fetches each page that it touches from the page daemon, 0.1 ms a page, and to handle an answer
 * it touches a hundred and more: mostly those of the last time. So the pages that the daemon was asked for are marked in
 * the next image to be read with the restore, at 1 µs each.
 */

/** What criu's page daemon writes its log to, in the image that it serves. */
export const PAGES_LOG = 'lazy-pages.log'
/** The level at which it names the pages. */
export const PAGES_LOG_LEVEL = '-v4'

/** Of one process. More would make the restore longer than they are worth; the ones touched last count. */
const MAX_PAGES = 1024
/** An agent that goes through all its memory at once has no few pages that matter. */
const MAX_LOG_BYTES = 1024 * 1024
const PAGE_BYTES = 4096n

/** `uffd: 2-9: #PF at 0x7fab85f60000`: pid in the agent's namespace, descriptor, page. */
const FAULT = /uffd: (\d+)-\d+: #PF at (0x[0-9a-f]+)/g

/** Numbers of fields and flags are those of criu's images/pagemap.proto. */
const RUN = { address: 1, flags: 4, pages: 5 }
const LAZY = 2n

/** Pages in the order in which they shall be kept. */
type Pages = Set<bigint>

/** Which pages agents touched at their last wakes, as long as orb runs: one that does not know them is only slower. */
export class HotPages {
  private readonly known = new Map<string, Map<number, Pages>>()

  /** Learns from the log of the page daemon that served the image. */
  async learn(computer: string, dir: string): Promise<void> {
    const text = await textOf(join(dir, PAGES_LOG))
    const learnt = new Map<number, Pages>()
    for (const [, pid, page] of text.slice(0, MAX_LOG_BYTES).matchAll(FAULT)) {
      if (pid === undefined || page === undefined) continue
      const pages = learnt.get(Number(pid)) ?? new Set()
      learnt.set(Number(pid), pages.add(BigInt(page)))
    }
    const before = this.known.get(computer)
    // What was read with the restore was not asked for; it makes room when new ones come.
    for (const [pid, pages] of learnt) {
      learnt.set(pid, new Set([...pages, ...(before?.get(pid) ?? [])].slice(0, MAX_PAGES)))
    }
    this.known.set(computer, new Map([...(before ?? []), ...learnt]))
  }

  forget(computer: string): void {
    this.known.delete(computer)
  }

  /** Marks what is known of in a whole image. @throws Error; the image is as good as it was */
  async mark(computer: string, dir: string): Promise<void> {
    for (const [pid, pages] of this.known.get(computer) ?? []) {
      await rewriteImage(join(dir, `pagemap-${pid}.img`), splitter(pages)).catch((thrown) => {
        if (errnoCode(thrown) !== 'ENOENT') throw thrown
      })
    }
  }
}

/** Makes of a run of lazy pages several, of which the hot ones are not lazy. Runs come in the order of their addresses. */
function splitter(pages: Pages): Rewrite {
  const hot = [...pages].sort((a, b) => (a < b ? -1 : 1))
  let next = 0
  return (run) => {
    const [flags, start, count] = [get(run, RUN.flags), get(run, RUN.address), get(run, RUN.pages)]
    if ((flags & LAZY) === 0n) return null
    const end = start + count * PAGE_BYTES
    const before = (limit: bigint) => next < hot.length && (hot[next] as bigint) < limit
    while (before(start)) next++
    if (!before(end)) return null
    const parts: Field[][] = []
    const add = (from: bigint, to: bigint, flag: bigint) => {
      if (from === to) return
      const part = run.map((field) => ({ ...field }))
      put(part, RUN.address, from)
      put(part, RUN.pages, (to - from) / PAGE_BYTES)
      put(part, RUN.flags, flag)
      parts.push(part)
    }
    let at = start
    while (before(end)) {
      const from = hot[next] as bigint
      let to = from
      for (; hot[next] === to && to < end; next++) to += PAGE_BYTES
      add(at, from, flags)
      add(from, to, flags & ~LAZY)
      at = to
    }
    add(at, end, flags)
    return parts
  }
}

async function textOf(file: string): Promise<string> {
  try {
    return await readFile(file, 'latin1')
  } catch (thrown) {
    if (errnoCode(thrown) === 'ENOENT') return ''
    throw thrown
  }
}
