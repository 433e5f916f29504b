import { afterAll, beforeAll, describe, expect, test } from 'bun:test'
import {
  closeSync,
  constants,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import {
  cString,
  Errno,
  errnoCode,
  mkdirat,
  O_PATH,
  openInRoot,
  readlinkat,
  readNames,
  renameat,
  statat,
  sys,
  unlinkat,
} from './libc.ts'

const dir = mkdtempSync(join(tmpdir(), 'orb-libc-'))
let root = -1
beforeAll(() => {
  mkdirSync(join(dir, 'etc/sub'), { recursive: true })
  writeFileSync(join(dir, 'etc/hostname'), 'inside')
  symlinkSync('/etc/hostname', join(dir, 'absolute'))
  symlinkSync('../../../../etc/hostname', join(dir, 'etc/sub/climbing'))
  symlinkSync('/proc/self/root/etc/hostname', join(dir, 'magic'))
  symlinkSync('loop', join(dir, 'loop'))
  root = openSync(dir, constants.O_RDONLY | constants.O_DIRECTORY)
})
afterAll(() => {
  closeSync(root)
  rmSync(dir, { recursive: true })
})

const codeOf = (call: () => unknown): string | null => {
  try {
    call()
  } catch (thrown) {
    expect(thrown).toBeInstanceOf(Errno)
    return errnoCode(thrown)
  }
  return null
}

const GETPID = process.arch === 'arm64' ? 172 : 39
const CLOSE = process.arch === 'arm64' ? 57 : 3
const MMAP = process.arch === 'arm64' ? 222 : 9
const MUNMAP = process.arch === 'arm64' ? 215 : 11

describe('sys', () => {
  test('returns what the kernel returns, addresses beyond 32 bits too', () => {
    expect(sys(GETPID)).toBe(process.pid)
    const address = sys(MMAP, 0, 4096, 3, 0x22, -1, 0)
    expect(address).toBeGreaterThan(2 ** 32)
    expect(sys(MUNMAP, address, 4096)).toBe(0)
  })

  test('passes all six arguments', () => {
    expect(codeOf(() => sys(MMAP, 0, 4096, 3, 0x22, -1, 1))).toBe('EINVAL')
  })

  test('every failure carries its own code, whatever the engine does meanwhile', () => {
    const wrong: (string | null)[] = []
    for (let round = 0; round < 20_000; round++) {
      const expected = round % 2 ? 'EBADF' : 'ENOENT'
      const code = codeOf(() =>
        round % 2 ? sys(CLOSE, 999_999) : openInRoot(root, `nothing-${round}`, constants.O_RDONLY),
      )
      if (code !== expected) wrong.push(code)
      if (round % 1000 === 0) Bun.gc(true)
    }
    expect(wrong).toEqual([])
  })

  test('an unknown call is ENOSYS', () => expect(codeOf(() => sys(100_000))).toBe('ENOSYS'))
})

describe('openInRoot', () => {
  test.each([['etc/hostname'], ['/etc/hostname'], ['absolute'], ['etc/sub/climbing'], ['../../etc/hostname']])(
    '%s is the file beneath the root',
    (path) => {
      const fd = openInRoot(root, path, constants.O_RDONLY)
      expect(readFileSync(fd, 'utf8')).toBe('inside')
      closeSync(fd)
    },
  )

  test.each([
    ['etc/nothing', 'ENOENT'],
    ['etc/hostname/below', 'ENOTDIR'],
    ['loop', 'ELOOP'],
    ['x'.repeat(300), 'ENAMETOOLONG'],
    ['etc/host\0name', 'EINVAL'],
  ])('%p throws %s', (path, code) => expect(codeOf(() => openInRoot(root, path, constants.O_RDONLY))).toBe(code))

  test('links of /proc lead nowhere', () => {
    const host = openSync('/', constants.O_RDONLY | constants.O_DIRECTORY)
    expect(codeOf(() => openInRoot(host, 'proc/self/root/etc', constants.O_RDONLY))).toBe('ELOOP')
    closeSync(host)
  })

  test('the descriptor is not inherited by children', () => {
    const fd = openInRoot(root, 'etc/hostname', O_PATH)
    expect(
      Number.parseInt(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8').match(/flags:\s+(\d+)/)?.[1] ?? '', 8) &
        0o2000000,
    ).not.toBe(0)
    closeSync(fd)
  })
})

test('directories, names and links are handled relative to a descriptor', () => {
  mkdirat(root, 'made', 0o755)
  expect(codeOf(() => mkdirat(root, 'made', 0o755))).toBe('EEXIST')
  writeFileSync(join(dir, 'a'), 'twelve bytes', { mode: 0o640 })
  writeFileSync(join(dir, 'b'), 'old')
  renameat(root, 'a', root, 'b')
  expect(readFileSync(join(dir, 'b'), 'utf8')).toBe('twelve bytes')
  expect(statat(root, 'b')).toMatchObject({
    kind: 'file',
    mode: 0o640,
    size: 12,
    uid: process.getuid?.(),
    gid: process.getgid?.(),
  })
  expect(Math.abs(statat(root, 'b').mtimeMs - Date.now())).toBeLessThan(60_000)
  expect(statat(root, 'absolute').kind).toBe('symlink')
  expect(statat(root, '').kind).toBe('directory')
  expect(Buffer.from(readlinkat(root, 'absolute')).toString()).toBe('/etc/hostname')
  expect(codeOf(() => renameat(root, 'b', root, 'made'))).toBe('EISDIR')
  unlinkat(root, 'b')
  expect(codeOf(() => statat(root, 'b'))).toBe('ENOENT')
})

test('names are listed as bytes, without the dots, through as many calls as it takes', () => {
  mkdirSync(join(dir, 'many'))
  for (let index = 0; index < 500; index++) writeFileSync(join(dir, 'many', `file-${index}`), '')
  writeFileSync(Buffer.concat([Buffer.from(`${join(dir, 'many')}/`), Buffer.from([0xff, 0xfe])]), '')
  const fd = openInRoot(root, 'many', constants.O_RDONLY | constants.O_DIRECTORY)
  const names: string[] = []
  const buffer = new Uint8Array(4096)
  for (let found = readNames(fd, buffer); found; found = readNames(fd, buffer)) {
    names.push(...found.map((name) => Buffer.from(name).toString('latin1')))
  }
  closeSync(fd)
  expect(names.length).toBe(501)
  expect(new Set(names).size).toBe(501)
  expect(names).toContain('\xff\xfe')
  expect(names).not.toContain('.')
})

test('cString refuses a NUL and ends with one', () => {
  expect(cString('ab')).toEqual(new Uint8Array(Buffer.from('ab\0')))
  expect(codeOf(() => cString('a\0b'))).toBe('EINVAL')
})
