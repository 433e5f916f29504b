import { describe, expect, test } from 'bun:test'
import { fixOpenFiles, readOpenFiles } from './criu-files.ts'

const varint = (value: number): number[] => (value < 128 ? [value] : [(value & 127) | 128, ...varint(value >>> 7)])
const number = (field: number, value: number): number[] => [...varint(field << 3), ...varint(value)]
const bytes = (field: number, content: number[]): number[] => [
  ...varint((field << 3) | 2),
  ...varint(content.length),
  ...content,
]
const text = (field: number, content: string): number[] => bytes(field, [...Buffer.from(content)])

const MAGIC = [0x19, 0x43, 0x56, 0x54, 0x38, 0x31, 0x30, 0x56]
const image = (...messages: number[][]): Uint8Array =>
  Uint8Array.from([
    ...MAGIC,
    ...messages.flatMap((message) => [message.length & 255, message.length >> 8, 0, 0, ...message]),
  ])

/** As fdinfo.proto has them. */
const regular = (id: number, path: string, size: number | null): number[] => [
  ...number(1, 1),
  ...number(2, id),
  ...bytes(3, [
    ...number(1, id),
    ...number(2, 0o100002),
    ...number(3, 4),
    ...bytes(5, number(1, 0)),
    ...text(6, path),
    ...(size === null ? [] : number(8, size)),
    ...number(10, 0o100644),
    ...number(11, 77),
    ...number(11, 78),
  ]),
]
const watch = (wd: number, path: string | null): number[] =>
  bytes(5, [
    ...number(1, wd),
    ...bytes(7, [...number(1, 8), ...number(3, 2 ** 20), ...(path === null ? [] : text(4, path))]),
  ])
const inotify = (id: number, ...watches: number[][]): number[] => [
  ...number(1, 8),
  ...number(2, id),
  ...bytes(13, [...number(1, id), ...watches.flat()]),
]
const pipe = [...number(1, 2), ...number(2, 9), ...bytes(18, number(1, 9))]

const socket = (id: number, port: number): number[] => [
  ...number(1, 4),
  ...number(2, id),
  ...bytes(4, [...number(1, id), ...number(6, 10), ...number(7, port), ...number(8, 443)]),
]

const LIST = image(
  socket(5, 8000),
  socket(6, 0),
  socket(7, 8000),
  socket(8, 40_001),
  regular(1, '/agent/data/read', 300),
  pipe,
  regular(2, '/agent/data/log', null),
  regular(3, '/agent/data/deleted', 4),
  inotify(4, watch(1, '/agent'), watch(2, '/agent/data/gone'), watch(3, null)),
)
const REMAPS = image([...number(1, 3), ...number(2, 1), ...number(3, 1)])

test('files with a name are read, those that had none any more are not', () => {
  expect(readOpenFiles({ files: LIST, remaps: REMAPS })).toEqual({
    files: [
      { id: 1, path: '/agent/data/read', mode: 0o100644, size: 300 },
      { id: 2, path: '/agent/data/log', mode: 0o100644, size: null },
    ],
    watched: ['/agent', '/agent/data/gone'],
    ports: [8000, 40_001],
  })
  expect(readOpenFiles({ files: LIST, remaps: null }).files).toHaveLength(3)
})

describe('a fixed list', () => {
  test('without any fix is the same', () => {
    expect(Buffer.from(fixOpenFiles(LIST, new Map(), new Set())).equals(LIST)).toBe(true)
  })

  test('has the new name, and nothing that the file is compared with', () => {
    const path = `/${'long'.repeat(50)}`
    const list = fixOpenFiles(LIST, new Map([[1, { path }]]), new Set())
    const [file, ...others] = readOpenFiles({ files: list, remaps: REMAPS }).files
    expect(file).toEqual({ id: 1, path, mode: 0, size: null })
    expect(others).toEqual(readOpenFiles({ files: LIST, remaps: REMAPS }).files.slice(1))
  })

  test('may keep the name', () => {
    const list = fixOpenFiles(LIST, new Map([[1, {}]]), new Set())
    expect(readOpenFiles({ files: list, remaps: null }).files[0]).toEqual({
      id: 1,
      path: '/agent/data/read',
      mode: 0,
      size: null,
    })
  })

  test('has no watch of what is gone, and all the others', () => {
    const list = fixOpenFiles(LIST, new Map(), new Set(['/agent/data/gone']))
    const expected = image(
      socket(5, 8000),
      socket(6, 0),
      socket(7, 8000),
      socket(8, 40_001),
      regular(1, '/agent/data/read', 300),
      pipe,
      regular(2, '/agent/data/log', null),
      regular(3, '/agent/data/deleted', 4),
      inotify(4, watch(1, '/agent'), watch(3, null)),
    )
    expect(Buffer.from(list).equals(expected)).toBe(true)
  })
})

test.each([LIST.subarray(0, LIST.length - 3), image([0x1a, 0x7f]), image([0xff])])(
  'what criu did not write is refused',
  (list) => {
    expect(() => readOpenFiles({ files: list, remaps: null })).toThrow('list of open files')
  },
)
