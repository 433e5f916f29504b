import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import { execFileSync, spawn } from 'node:child_process'
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { OrbError } from '../errors.ts'
import { writePath } from './file-write.ts'
import { type Listing, type OpenedFile, readPath } from './files.ts'

const MAX_BYTES = 1_000_000
const base = mkdtempSync(join(tmpdir(), 'orb-files-'))
const root = join(base, 'rootfs')
const outside = join(base, 'outside')
const at = (path: string): string => join(root, path)

beforeAll(() => {
  if (process.getuid?.() !== 0) throw new Error('these tests change owners and mount a disk: run them as root')
  mkdirSync(at('agent/data'), { recursive: true })
  mkdirSync(at('etc'))
  mkdirSync(outside)
  writeFileSync(join(outside, 'secret'), 'of the server')
  writeFileSync(at('etc/secret'), 'of the computer')
})
afterAll(() => rmSync(base, { recursive: true }))

const isListing = (result: Listing | OpenedFile): result is Listing => 'files' in result
const listing = async (path: string): Promise<Listing> => {
  const result = await readPath(root, path)
  if (!isListing(result)) throw new Error('a file')
  return result
}
const opened = async (path: string): Promise<OpenedFile> => {
  const result = await readPath(root, path)
  if (isListing(result)) throw new Error('a directory')
  return result
}
const content = async (path: string): Promise<string> => {
  const file = await opened(path)
  return (await file.content(0, file.size)).text()
}
const bodyOf = (...chunks: (string | Uint8Array)[]): ReadableStream<Uint8Array> =>
  new ReadableStream({
    start(controller) {
      for (const chunk of chunks) controller.enqueue(typeof chunk === 'string' ? Buffer.from(chunk) : chunk)
      controller.close()
    },
  })
const put = (path: string, ...chunks: (string | Uint8Array)[]): Promise<{ path: string; size: number }> =>
  writePath(root, path, bodyOf(...chunks), { contentLength: null, maxBytes: MAX_BYTES })
const codeOf = async (promise: Promise<unknown>): Promise<string | null> => {
  try {
    await promise
  } catch (thrown) {
    if (thrown instanceof OrbError) return thrown.code
    throw thrown
  }
  return null
}
const openDescriptors = (): number => readdirSync('/proc/self/fd').length
const leftovers = (dir: string): string[] => readdirSync(dir).filter((name) => name.startsWith('.orb-upload-'))

describe('read', () => {
  test('a listing names every kind of entry, sorted', async () => {
    const dir = at('kinds')
    mkdirSync(join(dir, 'sub'), { recursive: true })
    writeFileSync(join(dir, 'b'), '12345')
    writeFileSync(join(dir, 'A'), '')
    chmodSync(join(dir, 'b'), 0o4755)
    utimesSync(join(dir, 'b'), 1776571500, 1776571500)
    symlinkSync('b', join(dir, 'link'))
    execFileSync('mkfifo', [join(dir, 'pipe')])
    const { path, files, truncated } = await listing('kinds')
    expect(path).toBe('kinds')
    expect(truncated).toBeUndefined()
    expect(files.map(({ name, type, mode }) => [name, type, mode])).toEqual([
      ['A', 'file', '0644'],
      ['b', 'file', '4755'],
      ['link', 'symlink', '0777'],
      ['pipe', 'other', '0644'],
      ['sub', 'directory', '0755'],
    ])
    expect(files[1]).toMatchObject({ size: 5, mtime: '2026-04-19T04:05:00Z' })
  })

  test.each(['', '/', '.'])('%p is the root', async (path) => {
    expect((await listing(path)).files.map((file) => file.name)).toContain('agent')
  })

  test('names that are not UTF-8 and times beyond the calendar are shown, not thrown', async () => {
    mkdirSync(at('odd'))
    writeFileSync(Buffer.concat([Buffer.from(`${at('odd')}/`), Buffer.from([0x61, 0xff])]), '')
    execFileSync('touch', ['-d', '@-100000', at('odd/old')])
    expect((await listing('odd')).files).toMatchObject([
      { name: 'a\ufffd' },
      { name: 'old', mtime: '1970-01-01T00:00:00Z' },
    ])
  })

  test('10,000 entries are complete, one more is truncated', async () => {
    mkdirSync(at('crowd'))
    for (let index = 0; index < 10_000; index++) writeFileSync(at(`crowd/${String(index).padStart(5, '0')}`), '')
    const full = await listing('crowd')
    expect([full.files.length, full.truncated]).toEqual([10_000, undefined])
    writeFileSync(at('crowd/!first'), '')
    const cut = await listing('crowd')
    expect([cut.files.length, cut.truncated]).toEqual([10_000, true])
    expect(cut.files[0]?.name).toBe('!first')
    expect(cut.files.at(-1)?.name).toBe('09998')
  })

  test('any range of a large file is exact and every descriptor is given back', async () => {
    const bytes = new Uint8Array(700_000).map((_, index) => (index * 7) % 251)
    writeFileSync(at('agent/data/large'), bytes)
    const before = openDescriptors()
    for (const [start, end] of [
      [0, 700_000],
      [0, 0],
      [5, 6],
      [262_143, 262_145],
      [699_999, 700_000],
    ] as const) {
      const file = await opened('agent/data/large')
      expect(file.size).toBe(700_000)
      expect(new Uint8Array(await (await file.content(start, end)).arrayBuffer())).toEqual(bytes.slice(start, end))
    }
    const unread = await opened('agent/data/large')
    unread.close()
    unread.close()
    // Long content is sent by whoever opens it once more: its descriptor is kept for that.
    expect(openDescriptors()).toBeLessThanOrEqual(before + 1)
  })

  test('a file that shrinks while it is read ends in an error, not in a short answer', async () => {
    writeFileSync(at('shrinks'), Buffer.alloc(600_000))
    const before = openDescriptors()
    const file = await opened('shrinks')
    truncateSync(at('shrinks'), 1000)
    await expect(file.content(0, 200_000)).rejects.toThrow('became shorter')
    expect(openDescriptors()).toBeLessThanOrEqual(before)
  })

  test('16 reads at once', async () => {
    const digests = await Promise.all(
      Array.from({ length: 16 }, async () => Bun.hash(await content('agent/data/large'))),
    )
    expect(new Set(digests).size).toBe(1)
  })

  test('symlinks lead where they lead inside the computer', async () => {
    symlinkSync('/etc/secret', at('absolute'))
    symlinkSync('../../../../../../etc/secret', at('agent/data/climbing'))
    symlinkSync('/agent', at('dir'))
    symlinkSync(join(outside, 'secret'), at('escape'))
    expect(await content('absolute')).toBe('of the computer')
    expect(await content('agent/data/climbing')).toBe('of the computer')
    expect((await listing('dir')).files.map((file) => file.name)).toEqual(['data'])
    expect(await codeOf(readPath(root, 'escape'))).toBe('not_found')
  })

  test('a fifo, a socket, a device answer at once', async () => {
    const server = createServer().listen(at('socket'))
    await new Promise((resolve) => server.once('listening', resolve))
    execFileSync('mknod', [at('null'), 'c', '1', '3'])
    for (const path of ['kinds/pipe', 'socket', 'null']) expect(await codeOf(readPath(root, path))).toBe('invalid_path')
    for (const path of ['kinds/pipe', 'socket', 'null']) expect(await codeOf(put(path, 'x'))).toBe('invalid_path')
    server.close()
  })

  test('a file that a process has leased answers at once instead of waiting for the lease to break', async () => {
    writeFileSync(at('leased'), 'x')
    const F_SETLEASE = 1024
    const F_WRLCK = 1
    const fcntl = process.arch === 'arm64' ? 25 : 72
    const holder = spawn(
      process.execPath,
      [
        '-e',
        `const { sys } = require(process.argv[1])
         const fd = require('node:fs').openSync(process.argv[2], 'r+')
         sys(${fcntl}, fd, ${F_SETLEASE}, ${F_WRLCK})
         process.on('SIGIO', () => undefined)
         process.stdout.write('ready')
         setInterval(() => undefined, 1000)`,
        join(import.meta.dir, 'libc.ts'),
        at('leased'),
      ],
      { stdio: ['ignore', 'pipe', 'inherit'] },
    )
    await new Promise((resolve) => holder.stdout.once('data', resolve))
    const started = performance.now()
    try {
      expect(await codeOf(readPath(root, 'leased'))).toBe('invalid_path')
      expect(performance.now() - started).toBeLessThan(1000)
    } finally {
      holder.kill('SIGKILL')
      await new Promise((resolve) => holder.once('exit', resolve))
    }
    expect(await content('leased')).toBe('x')
  })

  test.each([
    ['nothing', 'not_found'],
    ['etc/secret/below', 'not_found'],
    ['a/../etc', 'invalid_path'],
    ['..', 'invalid_path'],
    ['etc\0/x', 'invalid_path'],
    ['n'.repeat(256), 'invalid_path'],
    ['d/'.repeat(3000), 'invalid_path'],
  ])('%p is refused', async (path, code) => expect(await codeOf(readPath(root, path))).toBe(code))
})

describe('write', () => {
  test('a new file is root’s, 0644, with its parents, whatever the umask', async () => {
    const umask = process.umask(0o077)
    try {
      expect(await put('new/deep/file.txt', 'hello ', 'world')).toEqual({ path: 'new/deep/file.txt', size: 11 })
    } finally {
      process.umask(umask)
    }
    expect(readFileSync(at('new/deep/file.txt'), 'utf8')).toBe('hello world')
    const modes = ['new', 'new/deep', 'new/deep/file.txt'].map((path) =>
      (lstatSync(at(path)).mode & 0o7777).toString(8),
    )
    expect(modes).toEqual(['755', '755', '644'])
    expect(lstatSync(at('new/deep/file.txt'))).toMatchObject({ uid: 0, gid: 0 })
  })

  test('an overwritten file keeps owner and mode, and readers of the old one keep it', async () => {
    writeFileSync(at('owned'), 'old')
    chownSync(at('owned'), 1234, 4321)
    chmodSync(at('owned'), 0o4750)
    const old = await opened('owned')
    await put('owned', 'new')
    expect(readFileSync(at('owned'), 'utf8')).toBe('new')
    const { uid, gid, mode } = lstatSync(at('owned'))
    expect([uid, gid, mode & 0o7777]).toEqual([1234, 4321, 0o4750])
    expect(await (await old.content(0, 3)).text()).toBe('old')
  })

  test('an empty body makes an empty file', async () => {
    expect(await writePath(root, 'empty', null, { contentLength: 0, maxBytes: MAX_BYTES })).toEqual({
      path: 'empty',
      size: 0,
    })
    expect(lstatSync(at('empty')).size).toBe(0)
  })

  test('symlinks in the last place are followed inside the computer and stay links', async () => {
    writeFileSync(at('target'), 'old')
    symlinkSync('/target', at('to-absolute'))
    symlinkSync('../to-absolute', at('agent/chain'))
    symlinkSync('/made/by/link', at('dangling'))
    symlinkSync(join(outside, 'secret'), at('to-outside'))
    symlinkSync('itself', at('itself'))
    symlinkSync('/etc/', at('to-directory'))
    symlinkSync('..', at('agent/up'))
    await put('agent/chain', 'through two links')
    expect(readFileSync(at('target'), 'utf8')).toBe('through two links')
    expect(lstatSync(at('to-absolute')).isSymbolicLink()).toBe(true)
    await put('dangling', 'made')
    expect(readFileSync(at('made/by/link'), 'utf8')).toBe('made')
    await put('to-outside', 'stays inside')
    expect(readFileSync(join(outside, 'secret'), 'utf8')).toBe('of the server')
    expect(readFileSync(join(root, outside, 'secret'), 'utf8')).toBe('stays inside')
    expect(await codeOf(put('itself', 'x'))).toBe('invalid_path')
    expect(await codeOf(put('to-directory', 'x'))).toBe('is_a_directory')
    expect(await codeOf(put('agent/up', 'x'))).toBe('is_a_directory')
  })

  test.each([
    ['', 'invalid_path'],
    ['/', 'invalid_path'],
    ['a/../b', 'invalid_path'],
    ['a\0b', 'invalid_path'],
    ['n'.repeat(256), 'invalid_path'],
    ['agent', 'is_a_directory'],
    ['agent/new/', 'is_a_directory'],
    ['etc/secret/below', 'not_a_directory'],
    ['etc/secret/below/deep', 'not_a_directory'],
    ['dead-end/below', 'not_a_directory'],
  ])('%p is refused and nothing is left', async (path, code) => {
    rmSync(at('dead-end'), { force: true })
    symlinkSync('/no/such/dir', at('dead-end'))
    expect(await codeOf(put(path, 'x'))).toBe(code)
    expect(readFileSync(at('etc/secret'), 'utf8')).toBe('of the computer')
    expect(leftovers(root)).toEqual([])
  })

  test('a body over the limit is refused before it is read when announced, midway when not', async () => {
    let pulled = 0
    let cancelled = false
    const endless = (): ReadableStream<Uint8Array> =>
      new ReadableStream(
        {
          pull(controller) {
            pulled++
            controller.enqueue(new Uint8Array(300_000))
          },
          cancel() {
            cancelled = true
          },
        },
        { highWaterMark: 0 },
      )
    const announced = writePath(root, 'big', endless(), { contentLength: MAX_BYTES + 1, maxBytes: MAX_BYTES })
    expect(await codeOf(announced)).toBe('payload_too_large')
    expect(pulled).toBe(0)
    const streamed = writePath(root, 'big', endless(), { contentLength: null, maxBytes: MAX_BYTES })
    expect(await codeOf(streamed)).toBe('payload_too_large')
    expect([pulled, cancelled]).toEqual([4, true])
    expect(existsSync(at('big'))).toBe(false)
    expect(leftovers(root)).toEqual([])
    expect((await put('big', new Uint8Array(MAX_BYTES))).size).toBe(MAX_BYTES)
  })

  test('a body that breaks off, ends early or is aborted leaves the old file', async () => {
    await put('kept', 'old')
    const before = openDescriptors()
    const broken = new ReadableStream<Uint8Array>({
      start(controller) {
        controller.enqueue(Buffer.from('half'))
      },
      pull(controller) {
        controller.error(new Error('the client left'))
      },
    })
    await expect(writePath(root, 'kept', broken, { contentLength: null, maxBytes: MAX_BYTES })).rejects.toThrow(
      'the client left',
    )
    const short = writePath(root, 'kept', bodyOf('half'), { contentLength: 8, maxBytes: MAX_BYTES })
    expect(await codeOf(short)).toBe('invalid_request')
    const abort = new AbortController()
    const stalled = new ReadableStream<Uint8Array>({
      pull() {
        abort.abort(new Error('enough'))
        return new Promise(() => undefined)
      },
    })
    const options = { contentLength: null, maxBytes: MAX_BYTES, signal: abort.signal }
    await expect(writePath(root, 'kept', stalled, options)).rejects.toThrow('enough')
    await Promise.resolve()
    expect(await content('kept')).toBe('old')
    expect(leftovers(root)).toEqual([])
    expect(openDescriptors()).toBeLessThanOrEqual(before)
  })

  test('a full disk is disk_full and leaves the old file', async () => {
    const image = join(base, 'disk.img')
    const disk = join(base, 'disk')
    mkdirSync(disk)
    writeFileSync(image, '')
    truncateSync(image, 4 * 1024 * 1024)
    execFileSync('mkfs.ext4', ['-q', '-F', image])
    execFileSync('mount', ['-o', 'loop', image, disk])
    try {
      writeFileSync(join(disk, 'file'), 'old')
      const body = (): ReadableStream<Uint8Array> =>
        bodyOf(...Array.from({ length: 16 }, () => new Uint8Array(1024 * 1024)))
      const options = { contentLength: null, maxBytes: 200 * 1024 * 1024 }
      expect(await codeOf(writePath(disk, 'file', body(), options))).toBe('disk_full')
      expect(await codeOf(writePath(disk, 'other/file', body(), options))).toBe('disk_full')
      expect(readFileSync(join(disk, 'file'), 'utf8')).toBe('old')
      expect(leftovers(disk)).toEqual([])
      expect(existsSync(join(disk, 'other/file'))).toBe(false)
      expect((await writePath(disk, 'other/file', bodyOf('fits'), options)).size).toBe(4)
    } finally {
      execFileSync('umount', [disk])
    }
  })
})

const RACE_MS = 20_000

test('a process that swaps symlinks gets nothing outside read or written', async () => {
  mkdirSync(at('race'))
  // In memory: hundreds of writes would each wait for the journal that the swapper fills.
  execFileSync('mount', ['-t', 'tmpfs', 'orb-test', at('race')])
  mkdirSync(at('race/real'))
  writeFileSync(at('race/real/secret'), 'of the computer')
  const outsideBefore = statSync(outside, { bigint: true }).mtimeNs
  // Links out of the root and one to a directory take turns at one name; the last place of the path does the same.
  const swapper = spawn(
    process.execPath,
    [
      '-e',
      `const { mkdirSync, renameSync, rmSync, symlinkSync, writeFileSync } = require('node:fs')
       const [race, outside] = process.argv.slice(1)
       const turns = [
         (name) => symlinkSync('../../outside', name),
         (name) => symlinkSync(outside, name),
         (name) => symlinkSync('real', name),
         (name) => symlinkSync('../../../../../../' + outside, name),
       ]
       for (let turn = 0; ; turn++) {
         turns[turn % turns.length](race + '/next')
         renameSync(race + '/next', race + '/swap')
         const last = race + '/real/final'
         symlinkSync(turn % 2 ? outside + '/final' : '../../../../../../' + outside + '/secret', last + '.next')
         renameSync(last + '.next', last)
         // Not before both names are links: where nothing is, a write makes a directory, which no link can replace.
         if (turn === 0) process.stdout.write('ready')
       }`,
      at('race'),
      outside,
    ],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  )
  const ended = new Promise((resolve) => swapper.once('exit', (_, signal) => resolve(signal)))
  await Promise.race([new Promise((resolve) => swapper.stdout.once('data', resolve)), ended])
  const outcomes = new Map<string, number>()
  const count = (outcome: string): unknown => outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1)
  try {
    // Each write waits for the journal that the swapper fills: on a busy machine 200 rounds would take minutes.
    const deadline = performance.now() + RACE_MS
    for (let round = 0; round < 200 && performance.now() < deadline; round++) {
      count(`wrote ${await codeOf(put('race/swap/written', 'x'))}`)
      count(`wrote ${await codeOf(put('race/real/final', 'x'))}`)
      count(`made ${await codeOf(put(`race/swap/new-${round}/written`, 'x'))}`)
      try {
        count(`read ${await content('race/swap/secret')}`)
      } catch (thrown) {
        if (!(thrown instanceof OrbError)) throw thrown
        count(`read ${thrown.code}`)
      }
    }
  } finally {
    swapper.kill('SIGKILL')
    await ended
    execFileSync('umount', [at('race')])
  }
  // It swapped to the end.
  expect(await ended).toBe('SIGKILL')
  expect([...outcomes.keys()].join()).not.toContain('server')
  expect(outcomes.get('wrote null')).toBeGreaterThan(0)
  expect(outcomes.get('read of the computer')).toBeGreaterThan(0)
  expect(readdirSync(outside)).toEqual(['secret'])
  expect(readFileSync(join(outside, 'secret'), 'utf8')).toBe('of the server')
  expect(statSync(outside, { bigint: true }).mtimeNs).toBe(outsideBefore)
})
