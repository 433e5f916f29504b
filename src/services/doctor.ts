import { accessSync, constants, existsSync, readFileSync, statfsSync, statSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { release, tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import type { Settings } from '../config.ts'
import { messageOf } from '../errors.ts'
import { unpackBundle } from '../runtime/bundle.ts'
import { Cgroups } from '../runtime/cgroup.ts'
import { checkCriu } from '../runtime/criu-check.ts'
import { firewallProblems } from '../runtime/firewall.ts'
import { dataPaths } from '../runtime/paths.ts'
import { swapFileProblem } from '../runtime/swap.ts'
import { VERSION } from '../version.ts'

type Level = 'ok' | 'note' | 'missing'

interface Finding {
  level: Level
  name: string
  text: string
}

const MIN_KERNEL: [major: number, minor: number] = [5, 15]
const LOW_DISK_GB = 10
const GB = 1024 ** 3

const SYSTEM_PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
/** Host programs that computers are made with, and the Debian package that holds each. */
const PROGRAMS: [program: string, debianPackage: string][] = [
  ['ip', 'iproute2'],
  ['nft', 'nftables'],
  ['git', 'git'],
  ['tar', 'tar'],
  ['mount', 'mount'],
  ['umount', 'mount'],
  ['mkfs.ext4', 'e2fsprogs'],
  ['mkswap', 'util-linux'],
  ['swapon', 'mount'],
  ['unshare', 'util-linux'],
  ['setpriv', 'util-linux'],
  ['mknod', 'coreutils'],
]

/**
 * Prints one line per requirement of this host and says how to mend what is missing. Returns the exit code: 1 if
 * something that orb cannot do without is missing.
 */
export async function runDoctor(settings: Settings): Promise<number> {
  console.log(`orb ${VERSION} on Linux ${release()}`)
  const findings = [
    checkRoot(),
    checkKernel(),
    checkCgroups(),
    ...PROGRAMS.map(checkProgram),
    checkFileSystem('overlay'),
    checkFileSystem('ext4'),
    checkPath('loop devices', '/dev/loop-control', 'modprobe loop'),
    checkPath('user page faults', '/proc/sys/vm/unprivileged_userfaultfd', 'use a kernel with CONFIG_USERFAULTFD'),
    checkBase(settings),
    await checkCheckpoints(),
    await checkFirewall(settings),
    checkDisk(settings.dataDir),
    checkSwap(settings),
    {
      level: 'note',
      name: 'isolation',
      text: 'computers are namespaces, not virtual machines: they share this kernel',
    } satisfies Finding,
  ]
  for (const { level, name, text } of findings) console.log(`${level.padEnd(8)}${name}: ${text}`)
  const missing = findings.filter((finding) => finding.level === 'missing').length
  console.log(missing === 0 ? 'everything that orb needs is there' : `${missing} missing`)
  return missing === 0 ? 0 : 1
}

function checkRoot(): Finding {
  if (process.getuid?.() === 0) return { level: 'ok', name: 'root', text: 'yes' }
  return { level: 'missing', name: 'root', text: 'orb makes namespaces and mounts: run it as root' }
}

function checkKernel(): Finding {
  const [major = 0, minor = 0] = release().split('.').map(Number)
  const enough = major > MIN_KERNEL[0] || (major === MIN_KERNEL[0] && minor >= MIN_KERNEL[1])
  if (enough) return { level: 'ok', name: 'kernel', text: release() }
  return { level: 'missing', name: 'kernel', text: `${release()}; ${MIN_KERNEL.join('.')} or newer is needed` }
}

function checkCgroups(): Finding {
  try {
    return { level: 'ok', name: 'cgroups', text: Cgroups.detect().kind }
  } catch (thrown) {
    return {
      level: 'missing',
      name: 'cgroups',
      text: `${messageOf(thrown)}; boot with systemd.unified_cgroup_hierarchy=1 or mount cgroup2`,
    }
  }
}

function checkProgram([program, debianPackage]: [string, string]): Finding {
  const path = Bun.which(program, { PATH: SYSTEM_PATH })
  if (path) return { level: 'ok', name: program, text: path }
  return { level: 'missing', name: program, text: `not found; apt-get install ${debianPackage}` }
}

/** The kernel loads the module of a file system by itself when one is mounted. */
function checkFileSystem(type: string): Finding {
  const name = `${type} file system`
  if (new RegExp(`\\b${type}$`, 'm').test(readFileSync('/proc/filesystems', 'utf8'))) {
    return { level: 'ok', name, text: 'yes' }
  }
  const modprobe = Bun.which('modprobe', { PATH: SYSTEM_PATH })
  if (modprobe && Bun.spawnSync([modprobe, '--dry-run', '--quiet', type]).exitCode === 0) {
    return { level: 'ok', name, text: 'as a module' }
  }
  return { level: 'missing', name, text: 'neither in this kernel nor among its modules' }
}

function checkPath(name: string, path: string, fix: string): Finding {
  return existsSync(path) ? { level: 'ok', name, text: 'yes' } : { level: 'missing', name, text: `no ${path}; ${fix}` }
}

function checkBase({ base }: Settings): Finding {
  const name = 'base'
  if (base !== 'host') {
    if (statSync(base, { throwIfNoEntry: false })) return { level: 'ok', name, text: base }
    return { level: 'missing', name, text: `${base} does not exist; set ORB_BASE` }
  }
  const tools = ['node', 'npm', 'python3', 'pip', 'gcc', 'make'].filter((tool) => !Bun.which(tool))
  if (tools.length === 0) return { level: 'ok', name, text: "the server's /usr" }
  return {
    level: 'note',
    name,
    text: `the server's /usr, without ${tools.join(', ')}: agents that want them need them installed here`,
  }
}

async function checkCheckpoints(): Promise<Finding> {
  const name = 'checkpoints'
  if (process.getuid?.() !== 0) return { level: 'note', name, text: 'can be checked by root only' }
  const dir = await mkdtemp(join(tmpdir(), 'orb-doctor-'))
  try {
    const files = await unpackBundle(dir)
    const problem = await checkCriu(files)
    if (problem === null) return { level: 'ok', name, text: `CRIU ${files.criuVersion} works on this kernel` }
    return { level: 'missing', name, text: `CRIU ${files.criuVersion} says: ${problem}; agents will be frozen only` }
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
}

async function checkFirewall({ subnet }: Settings): Promise<Finding> {
  const name = 'firewall'
  try {
    const problems = await firewallProblems(subnet.text)
    if (problems.length === 0) return { level: 'ok', name, text: `nothing of the server's stands in the way` }
    return { level: 'note', name, text: `${problems.join('; ')}, unless it lets ${subnet.text} pass; see the README` }
  } catch (thrown) {
    return { level: 'note', name, text: `could not be looked at: ${messageOf(thrown)}` }
  }
}

function checkDisk(dataDir: string): Finding {
  const name = 'free disk'
  const place = existingPart(dataDir)
  try {
    accessSync(place, constants.W_OK)
  } catch {
    return { level: 'missing', name, text: `${place} cannot be written` }
  }
  const { bavail, bsize } = statfsSync(place)
  const gb = Math.floor((bavail * bsize) / GB)
  return gb >= LOW_DISK_GB
    ? { level: 'ok', name, text: `${gb} GB at ${place}` }
    : { level: 'note', name, text: `only ${gb} GB at ${place}: disks and checkpoints of agents lie there` }
}

function checkSwap({ dataDir, swapBytes }: Settings): Finding {
  const name = 'swap'
  if (swapBytes > 0) {
    const place = existingPart(dataDir)
    const problem = swapFileProblem(place)
    if (problem) return { level: 'missing', name, text: `${problem}: set ORB_SWAP_GB to 0, or use swap of the host` }
    const { bavail, bsize } = statfsSync(place)
    const file = dataPaths(dataDir).swap
    if (existsSync(file) || bavail * bsize > swapBytes) return { level: 'ok', name, text: `ORB_SWAP_GB: ${file}` }
    return { level: 'missing', name, text: `${place} has no room for the file that ORB_SWAP_GB wants` }
  }
  const lines = readFileSync('/proc/swaps', 'utf8').trim().split('\n').length - 1
  return lines > 0
    ? { level: 'ok', name, text: 'yes' }
    : {
        level: 'note',
        name,
        text: 'none: agents sleep in checkpoints alone; ORB_SWAP_GB makes a swap file for short waits',
      }
}

/** The directory, or the one above it in which it would be made. */
function existingPart(dir: string): string {
  let place = dir
  while (!existsSync(place)) place = dirname(place)
  return place
}
