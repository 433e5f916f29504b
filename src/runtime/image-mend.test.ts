import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { mendImage } from './image-mend.ts'

const MAGIC = [0x19, 0x43, 0x56, 0x54, 0x38, 0x31, 0x30, 0x56]
const FIXED_FIELD = [0x11, 1, 2, 3, 4, 5, 6, 7, 8]

let dir: string
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'orb-image-'))
})
afterEach(() => rmSync(dir, { recursive: true }))

/** Fields whose numbers and values take a byte each, or hold a message. */
const message = (fields: Record<number, number | number[]>): number[] =>
  Object.entries(fields).flatMap(([number, value]) => {
    if (typeof value === 'number') return [Number(number) << 3, value]
    return [(Number(number) << 3) | 2, value.length, ...value]
  })

const image = (...messages: number[][]): Buffer =>
  Buffer.from([...MAGIC, ...messages.flatMap((one) => [one.length & 0xff, one.length >> 8, 0, 0, ...one])])

const timerfd = (fields: Record<number, number>): number[] =>
  message({ 1: 17, 2: 5, 12: message({ 1: 5, 2: 2, 3: [8, 0], 4: 1, 5: 1, 6: 0, ...fields }) })

const core = (real: Record<number, number>): number[] => [
  ...message({
    1: 1,
    3: message({ 1: 1, 6: [0x61], 7: message({ 1: message(real), 2: message({ 1: 0, 2: 0, 3: 0, 4: 0 }) }) }),
  }),
  ...FIXED_FIELD,
]

async function mended(name: string, before: Buffer): Promise<Buffer> {
  writeFileSync(join(dir, name), before)
  await mendImage(dir)
  return readFileSync(join(dir, name))
}

test('a periodic timerfd with no time left gets its period, the other files of an image stay', async () => {
  const other = timerfd({ 7: 0, 8: 9, 9: 3, 10: 4 })
  const off = timerfd({ 7: 0, 8: 0, 9: 0, 10: 0 })
  const before = image(other, timerfd({ 7: 0, 8: 0, 9: 3, 10: 4 }), off)
  expect(await mended('files.img', before)).toEqual(image(other, timerfd({ 7: 3, 8: 4, 9: 3, 10: 4 }), off))
  expect(readdirSync(dir)).toEqual(['files.img'])
})

test('an alarm gets a period of ten years, what stands around it stays', async () => {
  const years = [0x80, 0x86, 0xb0, 0x96, 0x01]
  const before = image(core({ 1: 0, 2: 0, 3: 7, 4: 9 }))
  const alarm = [8, ...years, 16, 0, 24, 7, 32, 9]
  const timers = [...message({ 1: alarm }), ...message({ 2: message({ 1: 0, 2: 0, 3: 0, 4: 0 }) })]
  const wanted = [...message({ 1: 1, 3: message({ 1: 1, 6: [0x61], 7: timers }) }), ...FIXED_FIELD]
  const after = await mended('core-7.img', before)
  expect(after).toEqual(image(wanted))
  expect(await mended('core-7.img', after)).toEqual(after)
})

test.each([
  { what: 'a timer with a period', real: { 1: 1, 2: 0, 3: 0, 4: 5 } },
  { what: 'one that is off', real: { 1: 0, 2: 0, 3: 0, 4: 0 } },
])('$what stays as it is', async ({ real }) => {
  const before = image(core(real))
  expect(await mended('core-7.img', before)).toEqual(before)
})

test('a core of a thread, which has no timers, stays as it is', async () => {
  const before = image(message({ 1: 1, 5: [8, 1] }))
  expect(await mended('core-8.img', before)).toEqual(before)
})

/** An area of memory from 0 to `end`, both as varints. */
const area = (end: number[], protection: number, flags: number[]): number[] => {
  const fields = [8, 0, 16, ...end, 40, protection, 48, ...flags]
  return [0x72, fields.length, ...fields]
}
const GIB = [0x80, 0x80, 0x80, 0x80, 0x04]
const PRIVATE = [0x22]

test('a large reservation is not counted as memory, what is small, writable or shared stays', async () => {
  const others = [...area([1], 0, PRIVATE), ...area(GIB, 3, PRIVATE), ...area(GIB, 0, [0x21])]
  const before = image([...others, ...area(GIB, 0, PRIVATE)])
  const after = await mended('mm-7.img', before)
  expect(after).toEqual(image([...others, ...area(GIB, 0, [0xa2, 0x80, 0x01])]))
})

test('a file that is no image is refused', async () => {
  await expect(mended('core-7.img', image([0x1a, 9, 1]))).rejects.toThrow('malformed')
})
