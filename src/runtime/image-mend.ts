import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { build, type Field, get, parse, put, rewriteImage } from './image-file.ts'

/*
 * What criu (4.2) writes down and cannot bring back as it was, mended in the image:
 *
 * - a periodic timerfd that had expired and was not read is saved with nothing left until its next time, which is also
 *   how one that is switched off looks. In a frozen agent each of them is like this after one period.
 * - `alarm` and `setitimer` without a period: only those with one are restored.
 * - address space that is reserved and not writable, as browsers and JavaScript engines have by the terabyte: it is
 *   mapped writable first, and more of that than there is memory is refused.
 *
 * Numbers of fields are those of criu's images/{fdinfo,timerfd,core,timer,mm,vma}.proto.
 */

/** What a timer without a period gets for one, so that criu restores it: it will not come round. Ten years, in seconds. */
const NEVER_S = 315_360_000n

const FILE_TIMERFD = 12
const TIMERFD = { seconds: 7, nanoseconds: 8, period: 9, periodNanoseconds: 10 }
const CORE_TASK = 3
const TASK_TIMERS = 7
/** ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF */
const INTERVAL_TIMERS = [1, 2, 3]
const TIMER = { period: 1, periodMicroseconds: 2, seconds: 3, microseconds: 4 }

const MEMORY_AREA = 14
const AREA = { start: 1, end: 2, protection: 5, flags: 6 }
const PROT_WRITE = 0x2n
const MAP_PRIVATE_ANONYMOUS = 0x22n
const MAP_NORESERVE = 0x4000n
/** Smaller areas are never refused. */
const LARGE_BYTES = 1n << 30n

/** Mends a whole image. Doing it twice changes nothing more. @throws Error; the image is as good as it was */
export async function mendImage(dir: string): Promise<void> {
  const names = await readdir(dir)
  const editing = EDITS.flatMap(({ files, edit }) =>
    names
      .filter((name) => files.test(name))
      .map((name) => rewriteImage(join(dir, name), (fields) => (edit(fields) ? [fields] : null))),
  )
  await Promise.all(editing)
}

/** Changes fields in place, and says whether it did. */
type Edit = (fields: Field[]) => boolean

const mendFile: Edit = (file) =>
  within(file, [FILE_TIMERFD], (timer) => {
    const { seconds, nanoseconds, period, periodNanoseconds } = TIMERFD
    if (isSet(timer, seconds, nanoseconds) || !isSet(timer, period, periodNanoseconds)) return false
    put(timer, seconds, get(timer, period))
    put(timer, nanoseconds, get(timer, periodNanoseconds))
    return true
  })

const mendTask: Edit = (core) =>
  within(core, [CORE_TASK], (task) =>
    within(task, [TASK_TIMERS], (timers) =>
      within(timers, INTERVAL_TIMERS, (timer) => {
        const { seconds, microseconds, period, periodMicroseconds } = TIMER
        if (isSet(timer, period, periodMicroseconds) || !isSet(timer, seconds, microseconds)) return false
        put(timer, period, NEVER_S)
        return true
      }),
    ),
  )

const mendMemory: Edit = (memory) =>
  within(memory, [MEMORY_AREA], (area) => {
    const [flags, bytes] = [get(area, AREA.flags), get(area, AREA.end) - get(area, AREA.start)]
    if (bytes < LARGE_BYTES || (get(area, AREA.protection) & PROT_WRITE) !== 0n) return false
    if ((flags & MAP_PRIVATE_ANONYMOUS) !== MAP_PRIVATE_ANONYMOUS || (flags & MAP_NORESERVE) !== 0n) return false
    put(area, AREA.flags, flags | MAP_NORESERVE)
    return true
  })

const EDITS = [
  { files: /^files\.img$/, edit: mendFile },
  { files: /^core-\d+\.img$/, edit: mendTask },
  { files: /^mm-\d+\.img$/, edit: mendMemory },
]

/** Edits each of the messages that these fields hold. */
function within(fields: Field[], numbers: number[], edit: Edit): boolean {
  let changed = false
  for (const field of fields) {
    if (!numbers.includes(field.number) || !(field.value instanceof Uint8Array)) continue
    const inner = parse(field.value)
    if (!edit(inner)) continue
    field.value = build(inner)
    changed = true
  }
  return changed
}

const isSet = (fields: Field[], ...numbers: number[]): boolean => numbers.some((number) => get(fields, number) !== 0n)
