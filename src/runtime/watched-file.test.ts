import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'bun:test'
import { execFileSync } from 'node:child_process'
import {
  mkdirSync,
  mkdtempSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { until } from '../../test/support/sweep.ts'
import { type FileLook, lookAtFile } from './watched-file.ts'

const MAX_BYTES = 1000
const FILE = 'agent/.orb/cron.json'
const base = mkdtempSync(join(tmpdir(), 'orb-watched-'))
const root = join(base, 'rootfs')
const at = (path: string): string => join(root, path)

beforeAll(() => {
  if (process.getuid?.() !== 0) throw new Error('these tests mount a file system: run them as root')
  mkdirSync(root)
  execFileSync('mount', ['-t', 'tmpfs', 'orb-test', root])
})
afterAll(() => {
  execFileSync('umount', [root])
  rmSync(base, { recursive: true })
})
beforeEach(() => {
  rmSync(at('agent'), { recursive: true, force: true })
  mkdirSync(at('agent/.orb'), { recursive: true })
})

const look = (last: string | null = null): FileLook => lookAtFile(root, FILE, last, MAX_BYTES)
const textOf = (found: FileLook): string => (found.kind === 'read' ? Buffer.from(found.bytes).toString() : found.kind)
const stampOf = (found: FileLook): string | null => ('stamp' in found ? found.stamp : null)
const settledStamp = async (): Promise<string> => {
  await until(() => stampOf(look()) !== null)
  return stampOf(look()) ?? 'never settled'
}

test('a file is read once it is there, and again after each change', async () => {
  expect(look()).toEqual({ kind: 'none' })
  writeFileSync(at(FILE), 'one')
  expect(textOf(look())).toBe('one')
  // What has just changed may change again within the same tick of the clock.
  expect(stampOf(look())).toBeNull()
  const stamp = await settledStamp()
  expect(look(stamp)).toEqual({ kind: 'same' })
  writeFileSync(at(FILE), 'two')
  expect(textOf(look(stamp))).toBe('two')
  const second = await settledStamp()
  // A change that hides behind an old time.
  writeFileSync(at(FILE), 'six')
  utimesSync(at(FILE), 1, 1)
  expect(textOf(look(second))).toBe('six')
  writeFileSync(at('agent/new'), 'new')
  renameSync(at('agent/new'), at(FILE))
  expect(textOf(look(second))).toBe('new')
  rmSync(at(FILE))
  expect(look(second)).toEqual({ kind: 'none' })
})

describe('a path', () => {
  test('that leads out is resolved inside', () => {
    writeFileSync(join(base, 'secret'), 'of the server')
    symlinkSync(join(base, 'secret'), at(FILE))
    expect(look()).toEqual({ kind: 'none' })
    rmSync(at(FILE))
    symlinkSync('../../../../../../../../etc/passwd', at(FILE))
    expect(look()).toEqual({ kind: 'none' })
    mkdirSync(at('etc'))
    writeFileSync(at('etc/passwd'), 'of the computer')
    expect(textOf(look())).toBe('of the computer')
  })

  test('through /proc is refused', () => {
    symlinkSync('/proc/self/root/etc/passwd', at(FILE))
    mkdirSync(at('proc'))
    execFileSync('mount', ['-t', 'proc', 'proc', at('proc')])
    try {
      expect(look()).toMatchObject({ kind: 'refused', reason: 'cannot be read (ELOOP)' })
    } finally {
      execFileSync('umount', [at('proc')])
    }
  })

  test('that ends nowhere is no file', () => {
    rmSync(at('agent/.orb'), { recursive: true })
    writeFileSync(at('agent/.orb'), 'a file')
    expect(look()).toEqual({ kind: 'none' })
  })
})

test.each([
  ['a directory', () => mkdirSync(at(FILE))],
  ['a fifo, which would never end', () => execFileSync('mkfifo', [at(FILE)])],
  ['a device', () => execFileSync('mknod', [at(FILE), 'c', '1', '5'])],
])('%s is refused', (_, make) => {
  make()
  expect(look()).toMatchObject({ kind: 'refused', reason: 'is not a regular file' })
})

test('a file may be as long as allowed and no longer', () => {
  writeFileSync(at(FILE), 'x'.repeat(MAX_BYTES))
  expect(textOf(look())).toHaveLength(MAX_BYTES)
  truncateSync(at(FILE), MAX_BYTES + 1)
  expect(look()).toMatchObject({ kind: 'refused', reason: 'is longer than 1000 bytes' })
})

test('of a root that is not mounted, or not there, nothing is said', () => {
  mkdirSync(join(base, 'away/rootfs/agent/.orb'), { recursive: true })
  writeFileSync(join(base, 'away/rootfs', FILE), 'beneath the mount')
  expect(lookAtFile(join(base, 'away/rootfs'), FILE, null, MAX_BYTES)).toEqual({ kind: 'away' })
  expect(lookAtFile(join(base, 'missing/rootfs'), FILE, null, MAX_BYTES)).toEqual({ kind: 'away' })
})
