/**
 * Takes away by hand what one orb put on this machine: for an orb that was killed, and to learn what one that was told to
 * remove everything forgot. Touches nothing of other orbs.
 */
import { existsSync, readdirSync, readFileSync, readlinkSync, rmdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

const SETTLE_TIME_MS = 5_000
const POLL_INTERVAL_MS = 20

/** Roots of the cgroup hierarchies that orb uses, on v2 hosts and on hybrid ones. */
const CGROUP_ROOTS = ['', 'unified', 'memory', 'pids', 'cpu'].map((name) => join('/sys/fs/cgroup', name, 'orb'))

/** Names of the kernel objects of all computers that have a directory below `dataDir`. */
export const computersIn = (dataDir: string): string[] =>
  list(join(dataDir, 'computers')).map((id) => `orb-${id.slice(0, 8)}`)

/** What of these computers is on the machine, one line each. */
export function remains(dataDir: string, names: string[]): string[] {
  return [
    ...names.flatMap((name) => cgroupsOf(name).map((dir) => `cgroup ${dir}`)),
    ...names.filter((name) => existsSync(`/run/netns/${name}`)).map((name) => `network namespace ${name}`),
    ...names.filter((name) => existsSync(`/sys/class/net/${name}`)).map((name) => `link ${name}`),
    ...mountsBelow(dataDir).map((path) => `mount ${path}`),
    ...swapFilesBelow(dataDir).map((path) => `swap file ${path}`),
    ...processesOf(dataDir).map((pid) => `process ${pid}`),
  ]
}

export async function sweep(dataDir: string, names: string[]): Promise<void> {
  await until(() => {
    for (const pid of processesOf(dataDir)) kill(pid)
    for (const name of names) for (const dir of cgroupsOf(name)) killAllIn(dir)
    return names.every((name) => cgroupsOf(name).every((dir) => pidsIn(dir).length === 0))
  })
  for (const name of names) {
    for (const dir of cgroupsOf(name)) removeTree(dir)
    if (existsSync(`/sys/class/net/${name}`)) run('ip', 'link', 'delete', name)
    if (existsSync(`/run/netns/${name}`)) run('ip', 'netns', 'delete', name)
  }
  for (const path of mountsBelow(dataDir).reverse()) run('umount', '-l', path)
  for (const path of swapFilesBelow(dataDir)) run('swapoff', path)
}

/** The rules and the address that all computers of an orb share, as far as they are there. */
export function networkRemains(gateway: string): string[] {
  const table = tableOf(gateway)
  const has = (...command: string[]) => Bun.spawnSync(command, { stderr: 'ignore' }).exitCode === 0
  const addresses = Bun.spawnSync(['ip', '-o', 'address', 'show', 'dev', 'lo']).stdout.toString()
  return [
    ...(has('nft', 'list', 'table', 'inet', table) ? [`nftables table ${table}`] : []),
    ...(addresses.includes(` ${gateway}/32 `) ? [`address ${gateway}`] : []),
  ]
}

export function sweepNetwork(gateway: string): void {
  run('nft', 'delete', 'table', 'inet', tableOf(gateway))
  run('ip', 'address', 'delete', `${gateway}/32`, 'dev', 'lo')
  for (const root of CGROUP_ROOTS) if (existsSync(root)) removeIfEmpty(root)
}

function tableOf(gateway: string): string {
  const hex = gateway
    .split('.')
    .map((part) => Number(part).toString(16).padStart(2, '0'))
    .join('')
  return `orb_${hex}`
}

/** Resolves to whether `done` came true in time. */
export async function until(done: () => boolean | Promise<boolean>, timeoutMs = SETTLE_TIME_MS): Promise<boolean> {
  const deadline = performance.now() + timeoutMs
  for (;;) {
    if (await done()) return true
    if (performance.now() > deadline) return false
    await Bun.sleep(POLL_INTERVAL_MS)
  }
}

const cgroupsOf = (name: string): string[] =>
  CGROUP_ROOTS.map((root) => join(root, name)).filter((dir) => existsSync(dir))

/** Host pids of all processes of a computer. */
export const processesIn = (name: string): number[] => [...new Set(cgroupsOf(name).flatMap(pidsIn))]

/** Bytes of memory that a computer is charged for, its page cache included. */
export function memoryOf(name: string): number {
  const v1 = `/sys/fs/cgroup/memory/orb/${name}/memory.usage_in_bytes`
  const file = existsSync(v1) ? v1 : `/sys/fs/cgroup/orb/${name}/memory.current`
  return Number(readFileSync(file, 'utf8'))
}

function pidsIn(dir: string): number[] {
  const own = text(join(dir, 'cgroup.procs')).split('\n').filter(Boolean).map(Number)
  return [...own, ...list(dir).flatMap((child) => pidsIn(join(dir, child)))]
}

function killAllIn(dir: string): void {
  for (const leaf of list(dir)) {
    // A frozen process takes no signal.
    if (existsSync(join(dir, leaf, 'cgroup.freeze'))) writeFileSync(join(dir, leaf, 'cgroup.freeze'), '0')
  }
  for (const pid of pidsIn(dir)) kill(pid)
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // It is gone.
  }
}

function removeTree(dir: string): void {
  for (const child of list(dir)) if (existsSync(join(dir, child, 'cgroup.procs'))) removeTree(join(dir, child))
  removeIfEmpty(dir)
}

function removeIfEmpty(dir: string): void {
  try {
    rmdirSync(dir)
  } catch {
    // Other orbs have computers in it, or it is gone.
  }
}

const mountsBelow = (dataDir: string): string[] =>
  text('/proc/self/mountinfo')
    .split('\n')
    .map((line) => line.split(' ')[4] ?? '')
    .filter((path) => path.startsWith(`${dataDir}/`))

const swapFilesBelow = (dataDir: string): string[] =>
  text('/proc/swaps')
    .split('\n')
    .map((line) => line.split(/\s/)[0] ?? '')
    .filter((path) => path.startsWith(`${dataDir}/`))

/** Programs that orb unpacked into its data directory: criu and its page daemons. */
const processesOf = (dataDir: string): number[] =>
  list('/proc')
    .filter((pid) => /^\d+$/.test(pid) && programOf(Number(pid)).startsWith(`${dataDir}/`))
    .map(Number)

/** Whether it is criu itself, and not a process around it. One that has just ended is neither. */
export const isCriu = (pid: number): boolean => programOf(pid).endsWith('/ld.so')

/** Null: it has just ended. */
export function parentOf(pid: number): number | null {
  const parent = /^PPid:\t(\d+)$/m.exec(text(`/proc/${pid}/status`))?.[1]
  return parent === undefined ? null : Number(parent)
}

function programOf(pid: number): string {
  try {
    return readlinkSync(`/proc/${pid}/exe`)
  } catch {
    return ''
  }
}

function list(dir: string): string[] {
  try {
    return readdirSync(dir)
  } catch {
    return []
  }
}

function text(file: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch {
    return ''
  }
}

const run = (...command: string[]): void => void Bun.spawnSync(command, { stdout: 'ignore', stderr: 'ignore' })
