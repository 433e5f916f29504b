import { randomUUID } from 'node:crypto'
import { chmod, lstat, mkdir, rename, rm } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import manifestText from '../../build/runtime.manifest' with { type: 'text' }
import archivePath from '../../build/runtime.tar.zst' with { type: 'file' }

/** Where the programs that the executable carries lie, as absolute paths. */
export type RuntimeFiles = {
  dir: string
  /** The dynamic loader: criu is run as `loader --library-path libraryPath criu …`. */
  loader: string
  libraryPath: string
  criu: string
  /** pid 1 of a computer and of an agent's tree. */
  init: string
  /** Such as `4.2.1`. */
  criuVersion: string
}

type Entry = { path: string; mode: number; sha256: string }

const ID_LENGTH = 16
const PERMISSION_BITS = 0o7777

/**
 * Puts CRIU with its libraries and the init into `dataDir/runtime/<content hash>/` and returns where they are. Every
 * file is checked against its SHA-256 at each call; only what is missing or damaged is written, each file in one
 * rename, so that starts at the same time and programs that run from there are not disturbed. Directories of other
 * versions are left alone: a sleeping agent's processes may still run from them. Throws where the disk refuses.
 */
export async function unpackBundle(dataDir: string): Promise<RuntimeFiles> {
  const entries = parseManifest(manifestText)
  const dir = join(resolve(dataDir), 'runtime', sha256(manifestText).slice(0, ID_LENGTH))
  const damaged: Entry[] = []
  for (const entry of entries) {
    if (!(await isIntact(join(dir, entry.path), entry))) damaged.push(entry)
  }
  if (damaged.length > 0) await writeFiles(dir, damaged)

  return {
    dir,
    loader: join(dir, 'criu/ld.so'),
    libraryPath: join(dir, 'criu/lib'),
    criu: join(dir, 'criu/criu'),
    init: join(dir, 'orb-init'),
    criuVersion: await readCriuVersion(join(dir, 'criu/VERSION')),
  }
}

/** Lines of `<sha256> <octal mode> <path>`, as scripts/build writes them. */
function parseManifest(text: string): Entry[] {
  return text
    .trimEnd()
    .split('\n')
    .map((line) => {
      const [, hash, mode, path] = /^([0-9a-f]{64}) ([0-7]{3,4}) ([\w./+-]+)$/.exec(line) ?? []
      if (!hash || !mode || !path) throw new Error(`the runtime manifest in this executable is malformed: ${line}`)
      return { path, mode: Number.parseInt(mode, 8), sha256: hash }
    })
}

async function isIntact(path: string, entry: Entry): Promise<boolean> {
  const info = await lstat(path).catch(() => undefined)
  if (!info?.isFile() || (info.mode & PERMISSION_BITS) !== entry.mode) return false
  // A file that the disk cannot give back is damaged as well.
  const content = await Bun.file(path)
    .bytes()
    .catch(() => undefined)
  return content !== undefined && sha256(content) === entry.sha256
}

async function writeFiles(dir: string, entries: Entry[]): Promise<void> {
  const archive = new Bun.Archive(await Bun.zstdDecompress(await Bun.file(archivePath).bytes()))
  const files = await archive.files()
  for (const entry of entries) {
    const content = await files.get(entry.path)?.bytes()
    if (content === undefined || sha256(content) !== entry.sha256) {
      throw new Error(`this executable is damaged: ${entry.path} in its runtime archive is not what was built`)
    }
    await replaceFile(join(dir, entry.path), content, entry.mode)
  }
}

async function replaceFile(path: string, content: Uint8Array, mode: number): Promise<void> {
  const fresh = `${path}.${randomUUID()}`
  await mkdir(dirname(path), { recursive: true })
  try {
    await Bun.write(fresh, content)
    await chmod(fresh, mode)
    await rename(fresh, path)
  } catch (error) {
    await rm(fresh, { force: true })
    throw error
  }
}

async function readCriuVersion(path: string): Promise<string> {
  const version = /^CRIU (\d[\w.]*)$/m.exec(await Bun.file(path).text())?.[1]
  if (!version) throw new Error(`${path} does not name CRIU's version`)
  return version
}

const sha256 = (content: Uint8Array | string): string => new Bun.CryptoHasher('sha256').update(content).digest('hex')
