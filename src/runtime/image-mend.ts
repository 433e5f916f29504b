import { readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

/*
 * What criu (4.2) writes down and cannot bring back as it was, mended in the image:
 *
 * - a periodic timerfd that had expired and was not read is saved with nothing left until its next time, which is also
 *   how one that is switched off looks. In a frozen agent each of them is like this after one period.
 * - `alarm` and `setitimer` without a period: only those with one are restored.
 * - address space that is reserved and not writable, as browsers and JavaScript engines have by the terabyte: it is
 *   mapped writable first, and more of that than there is memory is refused.
 *
 * The files of an image are a magic number and then protobuf messages, each after its length; numbers of fields are
 * those of criu's images/{fdinfo,timerfd,core,timer,mm,vma}.proto.
 */

const HEADER_BYTES = 8
const LENGTH_BYTES = 4
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
    names.filter((name) => files.test(name)).map((name) => rewrite(join(dir, name), edit)),
  )
  await Promise.all(editing)
}

type Field = { number: number; wire: number; value: bigint | Uint8Array }
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

const get = (fields: Field[], number: number): bigint => {
  const value = fields.find((field) => field.number === number)?.value
  return typeof value === 'bigint' ? value : 0n
}

const isSet = (fields: Field[], ...numbers: number[]): boolean => numbers.some((number) => get(fields, number) !== 0n)

function put(fields: Field[], number: number, value: bigint): void {
  const field = fields.find((field) => field.number === number)
  if (field) field.value = value
}

async function rewrite(path: string, edit: Edit): Promise<void> {
  const image = await readFile(path)
  const pieces: Uint8Array[] = [image.subarray(0, HEADER_BYTES)]
  let changed = false
  for (let at = HEADER_BYTES; at < image.length; ) {
    const start = at + LENGTH_BYTES
    const end = start + image.readUInt32LE(at)
    const fields = parse(image.subarray(start, end))
    const message = edit(fields) ? build(fields) : null
    changed ||= message !== null
    const length = Buffer.alloc(LENGTH_BYTES)
    length.writeUInt32LE(message?.length ?? end - start)
    pieces.push(length, message ?? image.subarray(start, end))
    at = end
  }
  if (!changed) return
  const part = `${path}.part`
  try {
    await writeFile(part, Buffer.concat(pieces))
    await rename(part, path)
  } catch (thrown) {
    await rm(part, { force: true })
    throw thrown
  }
}

const VARINT = 0
const BYTES = 2
/** Lengths of the fields that are neither. */
const FIXED: Record<number, number> = { 1: 8, 5: 4 }

/** @throws Error when it is no message */
function parse(message: Uint8Array): Field[] {
  const fields: Field[] = []
  let at = 0
  const varint = (): bigint => {
    let value = 0n
    for (let shift = 0n; ; shift += 7n) {
      const byte = message[at++]
      if (byte === undefined) throw new Error('a message of the image ends within a number')
      value |= BigInt(byte & 0x7f) << shift
      if (byte < 0x80) return value
    }
  }
  while (at < message.length) {
    const key = Number(varint())
    const [number, wire] = [key >> 3, key & 7]
    if (wire === VARINT) {
      fields.push({ number, wire, value: varint() })
      continue
    }
    const length = wire === BYTES ? Number(varint()) : FIXED[wire]
    if (length === undefined || at + length > message.length) throw new Error('a message of the image is malformed')
    fields.push({ number, wire, value: message.subarray(at, at + length) })
    at += length
  }
  return fields
}

function build(fields: Field[]): Uint8Array {
  const pieces = fields.flatMap(({ number, wire, value }) => {
    const key = varintOf(BigInt((number << 3) | wire))
    if (typeof value === 'bigint') return [key, varintOf(value)]
    return wire === BYTES ? [key, varintOf(BigInt(value.length)), value] : [key, value]
  })
  return Buffer.concat(pieces)
}

function varintOf(value: bigint): Uint8Array {
  const bytes: number[] = []
  let rest = value
  for (; rest >= 0x80n; rest >>= 7n) bytes.push(Number(rest & 0x7fn) | 0x80)
  return Uint8Array.from([...bytes, Number(rest)])
}
