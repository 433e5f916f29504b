import { readdirSync, readFileSync, readlinkSync } from 'node:fs'

export interface CriuProcess {
  /** On the host. */
  pid: number
  /** Directory of the image. */
  dir: string
  operation: string
}

/**
 * What works on images below a data directory: criu of any version unpacked there, and the orb-init around it, which is
 * there before criu is and writes down its result after it.
 */
export function runningCriu(dataDir: string): CriuProcess[] {
  return readdirSync('/proc').flatMap((name) => {
    if (!/^\d+$/.test(name)) return []
    const exe = read(() => readlinkSync(`/proc/${name}/exe`))
    if (!exe.startsWith(`${dataDir}/runtime/`) || !/\/(ld\.so|orb-init)$/.test(exe)) return []
    const argv = read(() => readFileSync(`/proc/${name}/cmdline`, 'utf8')).split('\0')
    const criu = argv.findIndex((word) => word.endsWith('/criu/criu'))
    const dir = argv[argv.indexOf('-D', criu) + 1]
    const operation = argv[criu + 1]
    return criu > 0 && dir && operation ? [{ pid: Number(name), dir, operation }] : []
  })
}

/** Processes end while they are looked at. */
function read(take: () => string): string {
  try {
    return take()
  } catch {
    return ''
  }
}
