import {
  closeSync,
  constants,
  copyFileSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { copyFile, rm } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { z } from 'zod'
import { log } from '../log.ts'
import { type Base, lowersOf } from './base.ts'
import { type Fix, fixOpenFiles, type NamedFile, readOpenFiles } from './criu-files.ts'
import { FILES_AS_DUMPED, ImageError } from './image-manifest.ts'
import { errnoCode, linkFd, mkdirat, O_PATH, openInRoot, rmdirat, type Stat, statat } from './libc.ts'
import type { ComputerPaths } from './paths.ts'

/*
 * The files that a sleeping agent holds open. A running process keeps a file that is replaced or deleted; so that one
 * on disk does too, each gets a second name on the computer's disk, outside of what the computer sees. A restore that
 * finds a file changed gives criu that name instead of the old one. Files of the base cannot be kept like this: they
 * are known by size and time.
 */

const NOTES = 'files.json'

const Entry = z.object({
  id: z.number(),
  path: z.string(),
  mode: z.number(),
  size: z.number().nullable(),
  /** Size and time (ms) of a file of the base; null: a directory, or a file of the computer's own, whose second name is its id. */
  base: z.object({ size: z.number(), mtimeMs: z.number() }).nullable(),
})
type Entry = z.output<typeof Entry>
const Notes = z.object({ files: z.array(Entry), watched: z.array(z.string()), ports: z.array(z.number()) })

/** Where the files of a computer lie. */
export interface Layers {
  paths: ComputerPaths
  base: Base
}

const TYPE_MASK = 0o170000
const DIRECTORY = 0o040000
/** Files of which there is one to hold; devices are shared, sockets are made anew. */
const HELD_TYPES = [0o100000, 0o010000]

/** Mounts of the agent's own, which come back with it. */
const OWN_MOUNTS = ['/dev', '/proc']

const LOOK = O_PATH | constants.O_NOFOLLOW
const LOOK_FOLLOWING = O_PATH

const heldRoot = (paths: ComputerPaths): string => join(paths.mount, 'held')
const heldDir = (paths: ComputerPaths, image: string): string => join(heldRoot(paths), image)

/** In the computer's root while criu needs it. */
const LENT_PREFIX = '.orb-held-'

/** Notes what a whole image has open, and keeps its files. The agent must be gone from memory. */
export function holdOpenFiles(layers: Layers, dir: string, image: string): void {
  const { files, watched, ports } = readOpenFiles(listsOf(dir))
  const held = heldDir(layers.paths, image)
  rmSync(held, { recursive: true, force: true })
  mkdirSync(held, { recursive: true, mode: 0o700 })
  const heldFd = openSync(held, constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    const entries = files
      .filter(({ path }) => path !== '/' && !OWN_MOUNTS.some((mount) => path === mount || path.startsWith(`${mount}/`)))
      .flatMap((file) => entryOf(layers, file, heldFd) ?? [])
    writeFileSync(
      join(dir, `${NOTES}.part`),
      JSON.stringify({ files: entries, watched, ports } satisfies z.input<typeof Notes>),
    )
    renameSync(join(dir, `${NOTES}.part`), join(dir, NOTES))
  } finally {
    closeSync(heldFd)
  }
}

function entryOf(layers: Layers, { id, path, mode, size }: NamedFile, heldFd: number): Entry | null {
  const type = mode & TYPE_MASK
  if (type === DIRECTORY) return { id, path, mode, size, base: null }
  if (!HELD_TYPES.includes(type)) return null
  const layer = layerOf(layers, path)
  const own = look(layer.upper, layer.path, (fd) => linkFd(fd, heldFd, String(id)))
  if (own) return { id, path, mode, size, base: null }
  const lower = lookBelow(layer)?.stat
  return lower ? { id, path, mode, size, base: { size: lower.size, mtimeMs: lower.mtimeMs } } : null
}

/** Undoes what `prepareOpenFiles` did to the computer's root, as far as it is still there. Never throws: the agent runs by then. */
export type TidyUp = () => void

/**
 * Sees to it that criu finds every file that the agent has open, or has it told another name.
 * @throws ImageError naming the file that cannot be had any more
 */
export async function prepareOpenFiles(layers: Layers, dir: string, image: string): Promise<TidyUp> {
  const notes = readNotes(dir)
  if (notes === null) return () => undefined
  const { paths } = layers
  const made: string[] = []
  const lent: string[] = []
  const root = openSync(paths.rootfs, constants.O_RDONLY | constants.O_DIRECTORY)
  const tidyUp = () => {
    for (const name of lent) unlessReplaced(paths, name, () => rmSync(join(paths.rootfs, name), { force: true }))
    for (const path of made.reverse()) unlessReplaced(paths, path, () => removeDirectory(paths.rootfs, path))
  }
  try {
    // Before directories are made again: those are gone as soon as the agent runs.
    const gone = notes.watched.filter((path) => look(root, path, undefined, LOOK_FOLLOWING) === null)
    const fixes = new Map<number, Fix>()
    for (const entry of notes.files) {
      const fix = await fixFor(layers, entry, image, root, made)
      if (!fix) continue
      fixes.set(entry.id, fix)
      if (fix.path !== undefined) lent.push(fix.path)
    }
    rewrite(dir, fixes, new Set(gone))
    return tidyUp
  } catch (thrown) {
    tidyUp()
    throw thrown
  } finally {
    closeSync(root)
  }
}

async function fixFor(layers: Layers, entry: Entry, image: string, root: number, made: string[]): Promise<Fix | null> {
  const { path, mode, base } = entry
  if ((mode & TYPE_MASK) === DIRECTORY) {
    const there = look(root, path)
    if (there?.kind !== 'directory') made.push(...makeDirectories(layers.paths.rootfs, path))
    return there && sameMode(there, mode) ? null : {}
  }
  if (base) return fixForBase(layers, entry, base, image, root)
  return fixForOwn(layers, entry, image)
}

function fixForOwn({ paths, base }: Layers, entry: Entry, image: string): Fix | null {
  const layer = layerOf({ paths, base }, entry.path)
  const now = look(layer.upper, layer.path)
  const held = look(heldDir(paths, image), String(entry.id))
  if (held === null) throw new ImageError(`the checkpoint is damaged: ${entry.path} was not kept`)
  if (now !== null && now.ino === held.ino) return agrees(held, entry) ? null : {}
  const name = lentName(image, entry.id)
  const upper = openSync(join(paths.mount, 'root'), constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    rmSync(join(paths.mount, 'root', name), { force: true })
    look(heldDir(paths, image), String(entry.id), (fd) => linkFd(fd, upper, name))
  } finally {
    closeSync(upper)
  }
  return { path: `/${name}` }
}

/** A program or library that a command replaced in the computer is still there below; one that the server lost is not. */
async function fixForBase(
  layers: Layers,
  entry: Entry,
  base: NonNullable<Entry['base']>,
  image: string,
  root: number,
): Promise<Fix | null> {
  const same = (stat: Stat | null) => stat !== null && stat.size === base.size && stat.mtimeMs === base.mtimeMs
  const now = look(root, entry.path)
  if (same(now)) return now && agrees(now, entry) ? null : {}
  const layer = layerOf(layers, entry.path)
  const lower = openBelow(layer)
  try {
    if (lower === null || !same(lower.stat)) {
      throw new ImageError(
        `${entry.path}, which the agent uses, has changed on the server since it went to sleep: ` +
          'bring back the version that was there, or start the agent anew',
      )
    }
    const name = lentName(image, entry.id)
    await lend(lower.fd, join(layers.paths.rootfs, name))
    return { path: `/${name}` }
  } finally {
    if (lower) closeSync(lower.fd)
  }
}

/** Copies an open file, without keeping orb's thread meanwhile. */
async function lend(fd: number, copy: string): Promise<void> {
  rmSync(copy, { force: true })
  try {
    await copyFile(`/proc/self/fd/${fd}`, copy, constants.COPYFILE_EXCL)
  } catch (thrown) {
    rmSync(copy, { force: true })
    throw thrown
  }
}

const lentName = (image: string, id: number): string => `${LENT_PREFIX}${image}-${id}`

const sameMode = (stat: Stat, mode: number): boolean => stat.mode === (mode & ~TYPE_MASK)

/** What criu compares. */
const agrees = (stat: Stat, { size, mode }: Entry): boolean =>
  (size === null || stat.size === size) && sameMode(stat, mode)

/** Takes the second names of an image away, and what a restore that a crash interrupted left in the root. */
export async function releaseOpenFiles(paths: ComputerPaths, image: string): Promise<void> {
  await rm(heldDir(paths, image), { recursive: true, force: true })
}

/** As `releaseOpenFiles`, of all images but one, after a start of orb. The computer must be mounted. */
export async function releaseOtherFiles(paths: ComputerPaths, keep: string | null): Promise<void> {
  for (const image of readdirIfThere(heldRoot(paths))) if (image !== keep) await releaseOpenFiles(paths, image)
  for (const name of readdirIfThere(paths.rootfs)) {
    if (!name.startsWith(LENT_PREFIX)) continue
    unlessReplaced(paths, name, () => rmSync(join(paths.rootfs, name), { force: true }))
  }
}

/** Commands in the computer may put anything there meanwhile, which is theirs then, and no reason to give up an agent. */
function unlessReplaced(paths: ComputerPaths, path: string, remove: () => void): void {
  try {
    remove()
  } catch (error) {
    log('warn', 'something in a computer’s root stays', { root: paths.rootfs, path, error })
  }
}

/** criu's list is always made from the one that it wrote: files may have changed again since the last try. */
function rewrite(dir: string, fixes: Map<number, Fix>, unwatched: Set<string>): void {
  const [inPlace, dumped] = [join(dir, 'files.img'), join(dir, FILES_AS_DUMPED)]
  if (fixes.size === 0 && unwatched.size === 0) {
    if (existsSync(dumped)) renameSync(dumped, inPlace)
    return
  }
  if (!existsSync(dumped)) {
    copyFileSync(inPlace, `${dumped}.part`)
    renameSync(`${dumped}.part`, dumped)
  }
  writeFileSync(`${inPlace}.part`, fixOpenFiles(readFileSync(dumped), fixes, unwatched))
  renameSync(`${inPlace}.part`, inPlace)
}

function listsOf(dir: string) {
  const remaps = join(dir, 'remap-fpath.img')
  return {
    files: readFileSync(join(dir, 'files.img')),
    remaps: existsSync(remaps) ? readFileSync(remaps) : null,
  }
}

function readNotes(dir: string): z.output<typeof Notes> | null {
  if (!existsSync(join(dir, NOTES))) return null
  try {
    return Notes.parse(JSON.parse(readFileSync(join(dir, NOTES), 'utf8')))
  } catch (error) {
    log('warn', 'the notes of open files cannot be read', { dir, error })
    return null
  }
}

/** Local ports of an image's sockets. */
export const portsOf = (dir: string): number[] => readNotes(dir)?.ports ?? []

interface Place {
  /** Directory of the computer's disk. */
  upper: string
  /** Directories of what it stands on, the upmost first. */
  lowers: string[]
  /** Path in any of them. */
  path: string
}

/** The directories that a path of the computer lies in, and its path there. */
function layerOf({ paths, base }: Layers, path: string): Place {
  if (base.hostUsr && path.startsWith('/usr/')) {
    return { upper: join(paths.mount, 'usr'), lowers: lowersOf(base, 'usr'), path: path.slice('/usr/'.length) }
  }
  return { upper: join(paths.mount, 'root'), lowers: lowersOf(base, 'root'), path: path.slice(1) }
}

/**
 * The regular file that is seen where the disk has none, and the directory that has it. Nothing else counts: a layer is
 * what a tenant has written, and a directory that was moved there is not the one of that name below.
 */
function lookBelow({ lowers, path }: Place): { stat: Stat; dir: string } | null {
  for (const dir of lowers) {
    const stat = look(dir, path)
    if (stat) return stat.kind === 'file' ? { stat, dir } : null
  }
  return null
}

/** Opens what `lookBelow` finds, for reading; no link of a layer leads out of it. The caller closes it. */
function openBelow(place: Place): { stat: Stat; fd: number } | null {
  const dir = lookBelow(place)?.dir
  if (dir === undefined) return null
  const root = openSync(dir, constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    const fd = openInRoot(root, place.path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
    const stat = statat(fd, '')
    if (stat.kind === 'file') return { stat, fd }
    closeSync(fd)
    return null
  } finally {
    closeSync(root)
  }
}

/** What lies at `path` below a directory, or null; no link leads out of it. */
function look(below: string | number, path: string, use?: (fd: number) => void, flags = LOOK): Stat | null {
  const root = typeof below === 'number' ? below : openSync(below, constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    const fd = openInRoot(root, path, flags)
    try {
      use?.(fd)
      return statat(fd, '')
    } finally {
      closeSync(fd)
    }
  } catch (thrown) {
    if (['ENOENT', 'ENOTDIR', 'ELOOP', 'EACCES'].includes(errnoCode(thrown) ?? '')) return null
    throw thrown
  } finally {
    if (typeof below === 'string') closeSync(root)
  }
}

/** Returns those that were missing, outermost first. @throws ImageError */
function makeDirectories(rootfs: string, path: string): string[] {
  const made: string[] = []
  const names = path.split('/').filter(Boolean)
  for (let length = 1; length <= names.length; length++) {
    const place = `/${names.slice(0, length).join('/')}`
    try {
      inParent(rootfs, place, (fd, name) => mkdirat(fd, name, 0o755))
      made.push(place)
    } catch (thrown) {
      if (errnoCode(thrown) === 'EEXIST') continue
      throw new ImageError(`${path}, a directory that the agent is in, is gone and something else is in its place`)
    }
  }
  return made
}

/** One that somebody has put something into meanwhile stays. */
function removeDirectory(rootfs: string, path: string): void {
  try {
    inParent(rootfs, path, rmdirat)
  } catch (thrown) {
    if (!['ENOENT', 'ENOTDIR', 'ENOTEMPTY'].includes(errnoCode(thrown) ?? '')) throw thrown
  }
}

function inParent(rootfs: string, path: string, use: (parentFd: number, name: string) => void): void {
  const root = openSync(rootfs, constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    const parent = openInRoot(root, dirname(path), constants.O_RDONLY | constants.O_DIRECTORY)
    try {
      use(parent, basename(path))
    } finally {
      closeSync(parent)
    }
  } finally {
    closeSync(root)
  }
}

function readdirIfThere(dir: string): string[] {
  try {
    return readdirSync(dir)
  } catch (thrown) {
    if (errnoCode(thrown) === 'ENOENT') return []
    throw thrown
  }
}
