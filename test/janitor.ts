/**
 * Finds what a run of the tests left behind on this machine.
 *
 *   bun test/janitor.ts record FILE   writes down what is there now
 *   bun test/janitor.ts check FILE    names each thing that was not there then; exit code 1 if there is one
 *
 * Needs root: without it other users' processes and the nftables rules cannot be seen.
 */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'

/** Processes that were told to end and unmounts that wait for them get this long. */
const SETTLE_TIME_MS = 5_000
const POLL_INTERVAL_MS = 200

const EXECUTABLE = join(import.meta.dir, '../dist/orb')
const MAIN_SOURCE = join(import.meta.dir, '../src/main.ts')

const LoopbackAddresses = z.array(
  z.object({
    addr_info: z.array(z.object({ local: z.string().optional(), label: z.string().optional() })).default([]),
  }),
)

/** Everything of orb's that this machine holds, one line each, such as `link orb-1a2b3c`. */
export function inventory(): Set<string> {
  return new Set([
    ...named('/run/netns', /^orb-/).map((name) => `network namespace ${name}`),
    ...named('/sys/class/net', /^orb-/).map((name) => `link ${name}`),
    ...labelledAddresses(),
    ...loopDevices(),
    ...swapFiles(),
    ...mounts(),
    ...nftTables(),
    ...cgroups(),
    ...processes(),
    ...named(tmpdir(), /^orb-/).map((name) => `temporary directory ${join(tmpdir(), name)}`),
  ])
}

const named = (dir: string, pattern: RegExp): string[] => list(dir).filter((name) => pattern.test(name))

function labelledAddresses(): string[] {
  const links = LoopbackAddresses.parse(JSON.parse(run('ip', '-j', 'address', 'show', 'dev', 'lo')))
  return links
    .flatMap((link) => link.addr_info)
    .filter((address) => address.label?.startsWith('lo:orb'))
    .map((address) => `address ${address.local} labelled ${address.label}`)
}

function loopDevices(): string[] {
  return named('/sys/block', /^loop/).flatMap((name) => {
    const file = read(`/sys/block/${name}/loop/backing_file`)?.trim()
    return file?.includes('/computers/') ? [`loop device /dev/${name} of ${file}`] : []
  })
}

const swapFiles = (): string[] =>
  (read('/proc/swaps') ?? '')
    .split('\n')
    .map((line) => line.split(/\s/)[0] ?? '')
    .filter((path) => path.endsWith('/orb.swap'))
    .map((path) => `swap file ${path}`)

function mounts(): string[] {
  return (read('/proc/self/mountinfo') ?? '')
    .split('\n')
    .map((line) => line.split(' ')[4] ?? '')
    .filter((path) => /\/computers\/|\/rootfs(\/|$)|\/netns\/orb-/.test(path))
    .map((path) => `mount ${path}`)
}

function nftTables(): string[] {
  return run('nft', 'list', 'tables')
    .split('\n')
    .filter((line) => /^table \w+ orb/.test(line))
    .map((line) => `nftables ${line}`)
}

const cgroups = (): string[] =>
  run('find', '/sys/fs/cgroup', '-type', 'd', '-name', 'orb*')
    .split('\n')
    .filter((path) => path !== '')
    .map((path) => `cgroup ${path}`)

function processes(): string[] {
  return named('/proc', /^\d+$/).flatMap((pid) => {
    const executable = link(`/proc/${pid}/exe`)?.replace(/ \(deleted\)$/, '')
    if (executable === undefined) return []
    const command = read(`/proc/${pid}/cmdline`)?.split('\0') ?? []
    if (!isOurs(executable) && !command.includes(MAIN_SOURCE)) return []
    // The start time tells a process from a later one with the same number (proc_pid_stat(5), field 22).
    const started = read(`/proc/${pid}/stat`)
      ?.replace(/^.*\) /s, '')
      .split(' ')[19]
    return started === undefined
      ? []
      : [`process ${pid} (started at tick ${started}): ${command.join(' ') || executable}`]
  })
}

const isOurs = (executable: string): boolean =>
  executable === EXECUTABLE || /\/runtime\/[0-9a-f]{16}\//.test(executable) || executable.endsWith('/orb-init')

/**
 * What vanishes while we look is not there: absent directories, files and links are no error. Nor is a process that
 * even root may not look into, such as the one that started this machine: none of ours is like that.
 */
function unlessGone<T>(look: () => T): T | undefined {
  try {
    return look()
  } catch (error) {
    if (
      error instanceof Error &&
      'code' in error &&
      ['ENOENT', 'ESRCH', 'ENOTDIR', 'EACCES'].includes(String(error.code))
    )
      return
    throw error
  }
}

const list = (dir: string): string[] => unlessGone(() => readdirSync(dir)) ?? []
const read = (path: string): string | undefined => unlessGone(() => readFileSync(path, 'utf8'))
const link = (path: string): string | undefined => unlessGone(() => readlinkSync(path))

function run(...command: string[]): string {
  const { exitCode, stdout, stderr } = Bun.spawnSync(command)
  // A cgroup may vanish between find's reading of a directory and its descent.
  if (exitCode !== 0 && !/No such file or directory/.test(stderr.toString())) {
    throw new Error(`${command.join(' ')}: ${stderr.toString().trim()}`)
  }
  return stdout.toString()
}

async function straysSince(before: Set<string>): Promise<string[]> {
  const deadline = Date.now() + SETTLE_TIME_MS
  for (;;) {
    const strays = [...inventory()].filter((thing) => !before.has(thing))
    if (strays.length === 0 || Date.now() > deadline) return strays
    await Bun.sleep(POLL_INTERVAL_MS)
  }
}

async function main(): Promise<number> {
  const [verb, file] = process.argv.slice(2)
  if (!file || (verb !== 'record' && verb !== 'check')) {
    console.error('usage: bun test/janitor.ts record|check FILE')
    return 2
  }
  if (process.getuid?.() !== 0) {
    console.error('the janitor needs root')
    return 2
  }
  if (verb === 'record') {
    await Bun.write(file, JSON.stringify([...inventory()]))
    return 0
  }
  const before = new Set(z.array(z.string()).parse(await Bun.file(file).json()))
  const strays = await straysSince(before)
  for (const stray of strays) console.error(`left behind: ${stray}`)
  return strays.length === 0 ? 0 : 1
}

if (import.meta.main) process.exit(await main())
