import { existsSync } from 'node:fs'
import { mkdir, readdir, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { run } from './command.ts'
import { errnoCode } from './libc.ts'

/*
 * A layer: what a build has written in one computer, once, below the roots of others that stand on it. It lies in
 * `images/layers/<id>`, never changes, and belongs to the computers whose base names it.
 */

/** Of a computer's disk: the upper directories of its root and of its /usr. */
const PARTS = ['root', 'usr']

/**
 * Copies directories from $1 to $2, with all attributes: those of the overlay say what was deleted or moved. Programs in
 * the computer may exchange directories for links meanwhile: no link is followed on either side.
 */
const COPY = `
set -e
mount --bind "$1" "$1"
mount -o remount,bind,ro,nosymfollow "$1"
mount --bind "$2" "$2"
mount -o remount,bind,nosymfollow "$2"
from=$1 to=$2
shift 2
cd "$from"
exec cp -a --reflink=auto --sparse=auto -- "$@" "$to"
`

const SEPARATOR = '+'
const ON_LAYER = /^(.*)\+(layer-[0-9a-z]+)$/s

const layersDir = (images: string): string => join(images, 'layers')
export const layerDir = (images: string, layer: string): string => join(layersDir(images), layer)

/** A name that no other layer has. */
export const newLayerName = (): string => `layer-${crypto.randomUUID().replaceAll('-', '')}`

/** The base's name of a computer that stands on a layer above `base`. */
export const onLayer = (base: string, layer: string): string => `${base}${SEPARATOR}${layer}`

/** What a base's name says: the base itself, and the layer above it or null. */
export function splitBase(name: string): { base: string; layer: string | null } {
  const [, base, layer] = ON_LAYER.exec(name) ?? []
  return base !== undefined && layer !== undefined ? { base, layer } : { base: name, layer: null }
}

/**
 * Copies what lies on a computer's disk (mounted at `mount`) into a layer, which is there, and on stable storage, when this
 * returns, or not at all. @param signal gives it up
 * @throws CommandError, also when there is no room
 */
export async function makeLayer(images: string, layer: string, mount: string, signal: AbortSignal): Promise<void> {
  const dir = layerDir(images, layer)
  const part = `${dir}.part`
  try {
    await mkdir(part, { recursive: true, mode: 0o755 })
    // It must not outlive an orb that is killed: it holds the computer's disk.
    const copy = ['setpriv', '--pdeathsig', 'KILL', 'unshare', '--mount', 'sh', '-c', COPY, 'sh', mount, part, ...PARTS]
    await run(copy, undefined, signal)
    // Many computers will stand on it: a power cut must not leave them empty files.
    await run(['sync', '-f', part], undefined, signal)
    await rename(part, dir)
  } catch (thrown) {
    await rm(part, { recursive: true, force: true })
    throw thrown
  }
}

/** @throws Error when the layer of a base is not there */
export function checkLayer({ layer }: { layer: string | null }): void {
  if (layer !== null && !existsSync(layer)) throw new Error('the layer that the computer stands on is gone')
}

/** A missing one is no error. */
export async function removeLayer(images: string, layer: string): Promise<void> {
  await rm(layerDir(images, layer), { recursive: true, force: true })
}

/** Removes layers, and half made ones, that are not in use. Returns how many. @param inUse asked after a look at what is there */
export async function removeUnusedLayers(images: string, inUse: () => ReadonlySet<string>): Promise<number> {
  const names = await readdir(layersDir(images)).catch((thrown) => {
    if (errnoCode(thrown) === 'ENOENT') return []
    throw thrown
  })
  const used = inUse()
  const unused = names.filter((name) => !used.has(name.replace(/\.part$/, '')))
  for (const name of unused) await removeLayer(images, name)
  return unused.length
}
