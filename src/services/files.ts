import { writePath } from '../runtime/file-write.ts'
import { readPath } from '../runtime/files.ts'
import type { Runtime } from '../runtime/runtime.ts'
import type { FindComputer } from './lookup.ts'
import type { Services } from './types.ts'

/** Orb Cloud contract §14.1. */
const MAX_FILE_BYTES = 209_715_200

/** Files of a computer, read and written on the host side: a sleeping agent sleeps on. */
export function createFiles(runtime: Runtime, findComputer: FindComputer): Services['files'] {
  return {
    async read(who, id, path) {
      const computer = findComputer(who, id)
      await runtime.up(computer)
      return readPath(runtime.paths(computer).rootfs, path)
    },
    async write(who, id, path, body, contentLength) {
      const computer = findComputer(who, id)
      await runtime.up(computer)
      const { rootfs } = runtime.paths(computer)
      return writePath(rootfs, path, body, { contentLength, maxBytes: MAX_FILE_BYTES })
    },
  }
}
