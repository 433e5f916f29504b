import { existsSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { type FileHandle, open, readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'
import { errnoCode } from './libc.ts'

/*
 * What an image consisted of when it was written: the size of each file, and once there was time for it a hash of each.
 * criu believes whatever it finds; an agent that was restored from a damaged image would go on with wrong memory.
 */

const MANIFEST = 'manifest.json'

const Manifest = z.record(z.string(), z.object({ size: z.number(), hash: z.string().nullable() }))
type Manifest = z.output<typeof Manifest>

/** The image is not what was written; the message names the file. */
export class ImageError extends Error {
  override name = 'ImageError'
}

/** criu's lists, and what orb wrote for a restore. Logs and results come and go. */
const isPart = (name: string): boolean => name.endsWith('.img') || name === 'orb.json' || name === 'files.json'

/** criu's list of open files as it was written, where the one in its place was changed for a restore. */
export const FILES_AS_DUMPED = 'files.img.dumped'

const pathOf = (dir: string, name: string): string => {
  const dumped = join(dir, FILES_AS_DUMPED)
  return name === 'files.img' && existsSync(dumped) ? dumped : join(dir, name)
}

/** Larger files are read only where there is time for it. */
const SMALL_BYTES = 256 * 1024
/** 1 ms of hashing at most without a pause. */
const PIECE_BYTES = 4 * 1024 * 1024

export const hasManifest = (dir: string): boolean => existsSync(join(dir, MANIFEST))

/** Writes down the sizes of a whole image. Returns the bytes that criu wrote. */
export async function noteSizes(dir: string): Promise<number> {
  const names = (await readdir(dir)).filter(isPart).sort()
  const sizes = names.map((name) => [name, { size: statSync(pathOf(dir, name)).size, hash: null }] as const)
  write(dir, Object.fromEntries(sizes))
  return sizes.reduce((sum, [name, { size }]) => sum + (name.endsWith('.img') ? size : 0), 0)
}

/** Adds the hashes, unless `aborted` comes first. An image that is removed meanwhile is no error. */
export async function noteHashes(dir: string, aborted: AbortSignal): Promise<void> {
  const manifest = readManifest(dir)
  if (manifest === null || Object.values(manifest).every(({ hash }) => hash !== null)) return
  try {
    for (const [name, entry] of Object.entries(manifest)) {
      if (entry.hash === null) entry.hash = await hashOf(pathOf(dir, name), aborted)
      if (aborted.aborted) return
    }
    write(dir, manifest)
  } catch (thrown) {
    if (errnoCode(thrown) !== 'ENOENT') throw thrown
  }
}

/**
 * Compares the image with its manifest, as far as there is one: presence and size of each file and the content of small
 * ones, and if `whole` of all. @throws ImageError
 */
export async function checkImage(dir: string, whole: boolean): Promise<void> {
  for (const [name, { size, hash }] of Object.entries(readManifest(dir) ?? {})) {
    const path = pathOf(dir, name)
    const found = statSync(path, { throwIfNoEntry: false })
    if (!found) throw new ImageError(`the checkpoint is damaged: ${name} is missing`)
    if (found.size !== size) {
      throw new ImageError(`the checkpoint is damaged: ${name} has ${found.size} bytes instead of ${size}`)
    }
    if (hash === null || (size > SMALL_BYTES && !whole)) continue
    const actual = size > SMALL_BYTES ? await hashOf(path) : chained([readFileSync(path)])
    if (actual !== hash) throw new ImageError(`the checkpoint is damaged: the content of ${name} has changed`)
  }
}

/** Null: there is none. @throws ImageError */
function readManifest(dir: string): Manifest | null {
  if (!hasManifest(dir)) return null
  try {
    return Manifest.parse(JSON.parse(readFileSync(join(dir, MANIFEST), 'utf8')))
  } catch (cause) {
    throw new ImageError(`the checkpoint is damaged: ${MANIFEST} cannot be read`, { cause })
  }
}

function write(dir: string, manifest: Manifest): void {
  writeFileSync(join(dir, `${MANIFEST}.part`), JSON.stringify(manifest))
  renameSync(join(dir, `${MANIFEST}.part`), join(dir, MANIFEST))
}

/** Each piece is the seed of the next: Bun has no streaming form of this hash, the fastest of those it has. */
const chained = (pieces: Uint8Array[], seed = 0n): string => next(pieces, seed).toString(16)
const next = (pieces: Uint8Array[], seed: bigint): bigint =>
  pieces.reduce((hash, piece) => Bun.hash.xxHash3(piece, hash), seed)

async function hashOf(path: string, aborted?: AbortSignal): Promise<string> {
  const small = statSync(path).size <= PIECE_BYTES
  if (small) return chained([await readFile(path)])
  const file = await open(path, 'r')
  return pieceByPiece(file, aborted).finally(() => file.close())
}

async function pieceByPiece(file: FileHandle, aborted?: AbortSignal): Promise<string> {
  const buffer = new Uint8Array(PIECE_BYTES)
  let hash = 0n
  for (;;) {
    let filled = 0
    while (filled < buffer.length) {
      const { bytesRead } = await file.read(buffer, filled, buffer.length - filled)
      if (bytesRead === 0) break
      filled += bytesRead
    }
    if (filled > 0) hash = next([buffer.subarray(0, filled)], hash)
    if (filled < buffer.length || aborted?.aborted) return hash.toString(16)
  }
}
