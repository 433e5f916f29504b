/** What a process takes of the machine, from /proc. */
import { readFileSync } from 'node:fs'

/** USER_HZ, which Linux fixes for all programs. */
const TICKS_PER_S = 100

/** Its own memory in KB: RssAnon, without the pages of files that any process may map. */
export function memoryKb(pid: number): number {
  const kb = /^RssAnon:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
  if (kb === undefined) throw new Error(`process ${pid} has no memory`)
  return Number(kb)
}

/** CPU time so far, in seconds. */
export function cpuSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
  // The name, in brackets, may hold anything; utime and stime are fields 14 and 15.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_S
}
