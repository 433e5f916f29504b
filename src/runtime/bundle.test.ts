import { afterAll, expect, test } from 'bun:test'
import {
  chmodSync,
  closeSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { unpackBundle } from './bundle.ts'

const scratch = mkdtempSync(join(tmpdir(), 'orb-bundle-test-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

let count = 0
const freshDataDir = (): string => join(scratch, `data-${count++}`)

/** inode of every file below `dir`: a file that was written again has another. */
function inodes(dir: string): Record<string, number> {
  const paths = readdirSync(dir, { recursive: true, encoding: 'utf8' }).sort()
  return Object.fromEntries(paths.map((path) => [path, lstatSync(join(dir, path)).ino]))
}

function flipByte(path: string): void {
  const bytes = new Uint8Array(readFileSync(path))
  bytes[bytes.length >> 1]! ^= 1
  writeFileSync(path, bytes)
}

test('the carried criu runs with its own loader and libraries, and is 4.2 or later', async () => {
  const files = await unpackBundle(freshDataDir())
  const run = Bun.spawnSync([files.loader, '--library-path', files.libraryPath, files.criu, '--version'])
  expect(run.stdout.toString()).toContain(`Version: ${files.criuVersion}`)
  expect(run.exitCode).toBe(0)
  expect(Bun.semver.order(`${files.criuVersion}.0`.split('.').slice(0, 3).join('.'), '4.2.0')).toBeGreaterThanOrEqual(0)
})

test('criu loads no library of the host', async () => {
  const files = await unpackBundle(freshDataDir())
  const run = Bun.spawnSync([files.loader, '--library-path', files.libraryPath, '--list', files.criu])
  const loaded = run.stdout.toString().match(/=> (\S+)/g) ?? []
  expect(loaded.length).toBeGreaterThan(5)
  for (const line of loaded) expect(line).toStartWith(`=> ${files.dir}/`)
})

test('licence texts travel with the programs', async () => {
  const { dir } = await unpackBundle(freshDataDir())
  expect(await Bun.file(join(dir, 'criu/COPYING')).text()).toContain('GNU GENERAL PUBLIC LICENSE')
  expect(await Bun.file(join(dir, 'criu/COPYING.libraries')).text()).toContain('===== libc6 =====')
})

test('a second start writes nothing', async () => {
  const dataDir = freshDataDir()
  const first = await unpackBundle(dataDir)
  const before = inodes(dataDir)
  expect(await unpackBundle(dataDir)).toEqual(first)
  expect(inodes(dataDir)).toEqual(before)
})

const damages: [string, (path: string) => void][] = [
  ['a flipped byte', flipByte],
  ['a truncated file', (path) => writeFileSync(path, '')],
  ['a missing file', (path) => rmSync(path)],
  ['a file that lost its mode', (path) => chmodSync(path, 0o4777)],
  [
    'a symlink in place of the file',
    (path) => {
      rmSync(path)
      symlinkSync('/bin/true', path)
    },
  ],
]

for (const [name, damage] of damages) {
  test(`${name} is replaced, and that file alone`, async () => {
    const dataDir = freshDataDir()
    const files = await unpackBundle(dataDir)
    const target = join(files.libraryPath, 'libc.so.6')
    const wanted = { sha256: await digest(target), mode: lstatSync(target).mode }
    const before = inodes(files.dir)
    damage(target)

    await unpackBundle(dataDir)

    expect({ sha256: await digest(target), mode: lstatSync(target).mode }).toEqual(wanted)
    const after = inodes(files.dir)
    expect({ ...after, 'criu/lib/libc.so.6': 0 }).toEqual({ ...before, 'criu/lib/libc.so.6': 0 })
  })
}

test('a file that a program still runs from is replaced by another, not written over', async () => {
  const dataDir = freshDataDir()
  const files = await unpackBundle(dataDir)
  flipByte(files.loader)
  const damaged = await digest(files.loader)
  const held = openSync(files.loader, 'r')

  await unpackBundle(dataDir)

  expect(await digest(files.loader)).not.toBe(damaged)
  expect(new Bun.CryptoHasher('sha256').update(readFileSync(held)).digest('hex')).toBe(damaged)
  closeSync(held)
})

test('starts at the same time agree and leave no half-written file', async () => {
  const dataDir = freshDataDir()
  const results = await Promise.all(Array.from({ length: 6 }, () => unpackBundle(dataDir)))
  for (const result of results) expect(result).toEqual(results[0]!)
  const reference = await unpackBundle(freshDataDir())
  expect(Object.keys(inodes(results[0]!.dir))).toEqual(Object.keys(inodes(reference.dir)))
})

test('the directory of another version is left alone', async () => {
  const dataDir = freshDataDir()
  const other = join(dataDir, 'runtime/0123456789abcdef')
  mkdirSync(other, { recursive: true })
  writeFileSync(join(other, 'orb-init'), 'old')
  await unpackBundle(dataDir)
  expect(await Bun.file(join(other, 'orb-init')).text()).toBe('old')
})

test('a data directory that cannot be written is an error that names the path', async () => {
  const dataDir = freshDataDir()
  writeFileSync(dataDir, 'a file, no directory')
  await expect(unpackBundle(dataDir)).rejects.toThrow(dataDir)
})

async function digest(path: string): Promise<string> {
  return new Bun.CryptoHasher('sha256').update(await Bun.file(path).bytes()).digest('hex')
}
