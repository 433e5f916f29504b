/*
 * criu's list of open files, as far as orb reads and changes it. An image file is two magic numbers and then messages,
 * each behind its length; the messages are protocol buffers, whose shapes are criu's images/*.proto.
 */

/** A file that has a path, which criu opens again at a restore: descriptors, mappings, programs, working directories. */
export interface NamedFile {
  id: number
  /** Absolute, as the agent sees it. */
  path: string
  /** Type and permission bits of stat(2). */
  mode: number
  /** Bytes that criu insists on, or null where it takes any number. */
  size: number | null
}

export interface OpenFiles {
  /** Without those that had no name any more at the dump. */
  files: NamedFile[]
  /** Paths that are watched by inotify. */
  watched: string[]
  /** Local ports of TCP and UDP sockets. */
  ports: number[]
}

/** What a file's entry is to say instead. Its size, mode and build id are then no longer insisted on. */
export interface Fix {
  path?: string
}

const MAGIC_BYTES = 8
const LENGTH_BYTES = 4

/** Field numbers of fdinfo.proto, regfile.proto, sk-inet.proto, fsnotify.proto, fh.proto and remap-file-path.proto. */
const FILE = { reg: 3, socket: 4, inotify: 13 }
const SOCKET_PORT = 7
const REG = { id: 1, name: 6, size: 8, mode: 10, validated: [8, 10, 11, 12, 13, 14] }
const INOTIFY_WATCH = 5
const WATCH_HANDLE = 7
const HANDLE_PATH = 4
const REMAP_ORIGINAL = 1

const WIRE = { varint: 0, fixed64: 1, bytes: 2, fixed32: 5 }

interface Field {
  number: number
  /** Of a varint. */
  value: number
  /** Of a length-delimited field. */
  bytes: Uint8Array
  /** The whole field, tag included. */
  raw: Uint8Array
}

/** @param images contents of files.img, and of remap-fpath.img where there is one. @throws Error when they are not criu's */
export function readOpenFiles(images: { files: Uint8Array; remaps: Uint8Array | null }): OpenFiles {
  const remapped = new Set(
    images.remaps === null ? [] : messagesOf(images.remaps).map((entry) => varintIn(entry, REMAP_ORIGINAL)),
  )
  const files: NamedFile[] = []
  const watched: string[] = []
  const ports = new Set<number>()
  for (const entry of messagesOf(images.files)) {
    for (const field of fieldsOf(entry)) {
      if (field.number === FILE.reg) {
        const file = namedFile(field.bytes)
        if (!remapped.has(file.id)) files.push(file)
      }
      if (field.number === FILE.socket) ports.add(varintIn(field.bytes, SOCKET_PORT))
      if (field.number === FILE.inotify) watched.push(...watchesOf(field.bytes).flatMap((watch) => watch.path ?? []))
    }
  }
  // A socket that is not bound yet has none.
  ports.delete(0)
  return { files, watched, ports: [...ports] }
}

/** files.img with some entries fixed, and without the watches of paths in `unwatched`. */
export function fixOpenFiles(files: Uint8Array, fixes: Map<number, Fix>, unwatched: Set<string>): Uint8Array {
  const parts: Uint8Array[] = [files.subarray(0, MAGIC_BYTES)]
  for (const entry of messagesOf(files)) {
    const fields = fieldsOf(entry).map((field) => {
      if (field.number === FILE.reg) {
        const fix = fixes.get(varintIn(field.bytes, REG.id))
        return fix ? bytesField(FILE.reg, fixed(field.bytes, fix)) : field.raw
      }
      return field.number === FILE.inotify ? bytesField(FILE.inotify, without(field.bytes, unwatched)) : field.raw
    })
    const message = Buffer.concat(fields)
    const length = Buffer.alloc(LENGTH_BYTES)
    length.writeUInt32LE(message.length)
    parts.push(length, message)
  }
  return Buffer.concat(parts)
}

function namedFile(entry: Uint8Array): NamedFile {
  const file: NamedFile = { id: 0, path: '', mode: 0, size: null }
  for (const { number, value, bytes } of fieldsOf(entry)) {
    if (number === REG.id) file.id = value
    if (number === REG.name) file.path = Buffer.from(bytes).toString()
    if (number === REG.size) file.size = value
    if (number === REG.mode) file.mode = value
  }
  return file
}

function fixed(entry: Uint8Array, fix: Fix): Uint8Array {
  const kept = fieldsOf(entry)
    .filter(({ number }) => !REG.validated.includes(number))
    .map((field) =>
      field.number === REG.name && fix.path !== undefined ? bytesField(REG.name, Buffer.from(fix.path)) : field.raw,
    )
  return Buffer.concat(kept)
}

function watchesOf(inotify: Uint8Array): { field: Field; path: string | null }[] {
  return fieldsOf(inotify)
    .filter(({ number }) => number === INOTIFY_WATCH)
    .map((field) => {
      const handle = fieldsOf(field.bytes).find(({ number }) => number === WATCH_HANDLE)
      const path = handle && fieldsOf(handle.bytes).find(({ number }) => number === HANDLE_PATH)
      return { field, path: path ? Buffer.from(path.bytes).toString() : null }
    })
}

function without(inotify: Uint8Array, unwatched: Set<string>): Uint8Array {
  const dropped = new Set(
    watchesOf(inotify)
      .filter(({ path }) => path !== null && unwatched.has(path))
      .map(({ field }) => field.raw.byteOffset),
  )
  return Buffer.concat(fieldsOf(inotify).flatMap(({ raw }) => (dropped.has(raw.byteOffset) ? [] : [raw])))
}

function messagesOf(image: Uint8Array): Uint8Array[] {
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength)
  const messages: Uint8Array[] = []
  for (let at = MAGIC_BYTES; at < image.length; ) {
    const end = at + LENGTH_BYTES + view.getUint32(at, true)
    if (end > image.length) throw new Error('a list of open files is cut short')
    messages.push(image.subarray(at + LENGTH_BYTES, end))
    at = end
  }
  return messages
}

const varintIn = (message: Uint8Array, number: number): number =>
  fieldsOf(message).find((field) => field.number === number)?.value ?? 0

const NONE: Uint8Array = new Uint8Array()

function fieldsOf(message: Uint8Array): Field[] {
  const fields: Field[] = []
  let at = 0
  const varint = (): number => {
    let value = 0
    for (let scale = 1; ; scale *= 128) {
      const byte = message[at++]
      if (byte === undefined) throw new Error('a list of open files is not in the form that criu writes')
      value += (byte & 127) * scale
      if (byte < 128) return value
    }
  }
  while (at < message.length) {
    const start = at
    const tag = varint()
    const wire = tag & 7
    let value = 0
    let bytes: Uint8Array = NONE
    if (wire === WIRE.varint) value = varint()
    else if (wire === WIRE.fixed64) at += 8
    else if (wire === WIRE.fixed32) at += 4
    else {
      const length = varint()
      bytes = message.subarray(at, at + length)
      at += length
    }
    if (at > message.length) throw new Error('a list of open files is not in the form that criu writes')
    fields.push({ number: tag >>> 3, value, bytes, raw: message.subarray(start, at) })
  }
  return fields
}

function bytesField(number: number, bytes: Uint8Array): Uint8Array {
  return Buffer.concat([varintBytes((number << 3) | WIRE.bytes), varintBytes(bytes.length), bytes])
}

function varintBytes(value: number): Uint8Array {
  const bytes: number[] = []
  for (; value > 127; value >>>= 7) bytes.push((value & 127) | 128)
  return Uint8Array.from([...bytes, value])
}
