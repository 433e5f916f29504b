import { readFileSync } from 'node:fs'
import { errnoCode } from './libc.ts'

/** Packets and bytes of a network link so far, both directions together; bytes with their Ethernet headers. */
export interface Traffic {
  packets: number
  bytes: number
}

/** Of a link of orb's own network namespace; all 0 when it is not there. @param last what was read before: saves half of it */
export function trafficOf(link: string, last: Traffic | null): Traffic {
  const both = (unit: string) =>
    ['rx', 'tx'].reduce((sum, way) => sum + Number(textOf(`/sys/class/net/${link}/statistics/${way}_${unit}`)), 0)
  const bytes = both('bytes')
  return last?.bytes === bytes ? last : { packets: both('packets'), bytes }
}

/** Numbers of the system calls: arch/x86/entry/syscalls/syscall_64.tbl and asm-generic/unistd.h. */
const NR =
  process.arch === 'arm64'
    ? { nanosleep: 101, clockNanosleep: 115, restart: 128 }
    : { nanosleep: 35, clockNanosleep: 230, restart: 219 }

const TIMED_SLEEPS = [NR.nanosleep, NR.clockNanosleep].map(String)
/** Kernel functions in which threads wait for something. Kernels of before 5.16 cannot tell and say 0. */
const PASSIVE_WAIT = /poll|futex/

/** Whether a thread sleeps by `nanosleep` or `clock_nanosleep`. @param tid on the host; one that is gone does not */
export function isInTimedSleep(tid: number): boolean {
  const call = textOf(`/proc/${tid}/syscall`).split(' ', 1)[0] ?? ''
  if (TIMED_SLEEPS.includes(call)) return true
  // A wait with a timeout that a freeze interrupted goes on under this number, whatever it was before.
  return call === String(NR.restart) && !PASSIVE_WAIT.test(textOf(`/proc/${tid}/wchan`))
}

/** The empty text for what is gone, or goes while it is read. */
function textOf(file: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch (thrown) {
    if (['ENOENT', 'ESRCH', 'EINVAL'].includes(errnoCode(thrown) ?? '')) return ''
    throw thrown
  }
}
