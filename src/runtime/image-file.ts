import { readFile, rename, rm, writeFile } from 'node:fs/promises'

/*
 * The files of a criu image: a magic number, then protobuf messages, each after its length.
 */

const HEADER_BYTES = 8
const LENGTH_BYTES = 4

export type Field = { number: number; wire: number; value: bigint | Uint8Array }

/** What is to stand in place of a message, or null where it stays. The fields may be changed in place. */
export type Rewrite = (fields: Field[]) => Field[][] | null

/** Replaces the file at once and only if something changes. @throws Error; the file is as it was */
export async function rewriteImage(path: string, rewrite: Rewrite): Promise<void> {
  const image = await readFile(path)
  const pieces: Uint8Array[] = [image.subarray(0, HEADER_BYTES)]
  let changed = false
  for (let at = HEADER_BYTES; at < image.length; ) {
    const start = at + LENGTH_BYTES
    const end = start + image.readUInt32LE(at)
    const message = image.subarray(start, end)
    const instead = rewrite(parse(message))
    changed ||= instead !== null
    for (const one of instead?.map(build) ?? [message]) pieces.push(lengthOf(one), one)
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

function lengthOf(message: Uint8Array): Uint8Array {
  const length = Buffer.alloc(LENGTH_BYTES)
  length.writeUInt32LE(message.length)
  return length
}

/** The number in a field; 0 when it is not there. */
export const get = (fields: Field[], number: number): bigint => {
  const value = fields.find((field) => field.number === number)?.value
  return typeof value === 'bigint' ? value : 0n
}

/** Changes a field that is there. */
export function put(fields: Field[], number: number, value: bigint): void {
  const field = fields.find((field) => field.number === number)
  if (field) field.value = value
}

const VARINT = 0
const BYTES = 2
/** Lengths of the fields that are neither. */
const FIXED: Record<number, number> = { 1: 8, 5: 4 }

/** @throws Error when it is no message */
export function parse(message: Uint8Array): Field[] {
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

export function build(fields: Field[]): Uint8Array {
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
