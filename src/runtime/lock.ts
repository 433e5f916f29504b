import { closeSync, openSync } from 'node:fs'
import { errnoCode, sys } from './libc.ts'

const SYS_FLOCK = process.arch === 'arm64' ? 32 : 73
const LOCK_EXCLUSIVE_NOW = 2 | 4

/** Locks a file for as long as this process lives, or until the returned function is called. Null: somebody else holds it. */
export function lockFile(path: string): (() => void) | null {
  const fd = openSync(path, 'w', 0o600)
  try {
    sys(SYS_FLOCK, fd, LOCK_EXCLUSIVE_NOW)
  } catch (thrown) {
    closeSync(fd)
    if (errnoCode(thrown) === 'EAGAIN') return null
    throw thrown
  }
  return () => closeSync(fd)
}
