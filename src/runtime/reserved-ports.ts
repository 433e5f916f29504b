import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { errnoCode } from './libc.ts'
import { inNetns } from './netns.ts'

/** Ports that the kernel gives nobody who asks for any, ip-sysctl; each network namespace has a list of its own. */
const RESERVED = '/proc/sys/net/ipv4/ip_local_reserved_ports'

/**
 * Replaces the list of a network namespace. The thread is there for a moment only: what the file means depends on who
 * opens it. A namespace that is gone is no error.
 * @param own descriptor of orb's own namespace
 */
export function reservePorts(netnsFile: string, own: number, ports: number[]): void {
  let fd: number
  try {
    fd = openSync(netnsFile, 'r')
  } catch (thrown) {
    if (errnoCode(thrown) === 'ENOENT') return
    throw thrown
  }
  try {
    inNetns({ fd, own }, () => writeFileSync(RESERVED, `${ports.join(',')}\n`))
  } finally {
    closeSync(fd)
  }
}

/** Local ports of all TCP and UDP sockets in the network namespace of a process. */
export function portsInUse(pid: number): Set<number> {
  const lines = ['tcp', 'tcp6', 'udp', 'udp6'].flatMap((name) => tableOf(`/proc/${pid}/net/${name}`))
  return new Set(lines.map((line) => Number.parseInt(/^\s*\d+: [0-9A-F]+:([0-9A-F]{4}) /.exec(line)?.[1] ?? '0', 16)))
}

/** Without IPv6 there are no such tables. */
function tableOf(file: string): string[] {
  try {
    return readFileSync(file, 'utf8').split('\n').slice(1).filter(Boolean)
  } catch (thrown) {
    if (errnoCode(thrown) === 'ENOENT') return []
    throw thrown
  }
}
