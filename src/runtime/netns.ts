import { log } from '../log.ts'
import { sys } from './libc.ts'

const SYS_SETNS = process.arch === 'arm64' ? 268 : 308
const CLONE_NEWNET = 0x40000000
/** How often the way back is tried: there is no reason known for which it could fail. */
const ATTEMPTS_BACK = 3

/** A network namespace to go to, and orb's own to come back to, both as open descriptors. */
export interface Netns {
  fd: number
  own: number
}

/**
 * Runs `work`, which must not be async, with this thread in another network namespace. A thread that cannot come back
 * takes the process with it: whatever it did from then on, it would do in a tenant's network. @throws Errno
 */
export function inNetns<T>({ fd, own }: Netns, work: () => T): T {
  sys(SYS_SETNS, fd, CLONE_NEWNET)
  try {
    return work()
  } finally {
    comeBack(own)
  }
}

function comeBack(own: number): void {
  let reason: unknown
  for (let attempt = 0; attempt < ATTEMPTS_BACK; attempt++) {
    try {
      sys(SYS_SETNS, own, CLONE_NEWNET)
      return
    } catch (thrown) {
      reason = thrown
    }
  }
  log('error', 'orb cannot return to its own network and ends', { error: reason })
  process.kill(process.pid, 'SIGKILL')
}
