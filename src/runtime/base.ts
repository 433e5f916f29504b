import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { chmod, lstat, mkdir, readdir, readFile, rename, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { run } from './command.ts'
import { layerDir, splitBase } from './layers.ts'

/** What a computer's root stands on. */
export interface Base {
  /** Its directory's name below `images/`, kept with each computer made from it. */
  name: string
  dir: string
  /** True for `host`: /usr is the server's, below a layer of the computer's own. */
  hostUsr: boolean
  /** Directory of the layer between it and the computer's own, or null. */
  layer: string | null
}

/** Directories below the computer's own layer of its root, or of its /usr where that is the server's; the upmost first. */
export function lowersOf(base: Base, part: 'root' | 'usr'): string[] {
  const lowest = part === 'root' ? base.dir : '/usr'
  return base.layer === null ? [lowest] : [join(base.layer, part), lowest]
}

/**
 * What of the server's /etc a computer may see: what programs of /usr cannot do without, nothing that tells of the
 * server, its users or its keys.
 */
const ETC_FROM_HOST = [
  'adduser.conf',
  'alternatives',
  'apt/apt.conf.d',
  'apt/keyrings',
  'apt/preferences.d',
  'apt/sources.list',
  'apt/sources.list.d',
  'apt/trusted.gpg.d',
  'bash.bashrc',
  'bash_completion',
  'ca-certificates',
  'ca-certificates.conf',
  'chromium.d',
  'debconf.conf',
  'debian_version',
  'default/useradd',
  'deluser.conf',
  'dpkg',
  'fonts',
  'gai.conf',
  'inputrc',
  'java-17-openjdk',
  'ld.so.cache',
  'ld.so.conf',
  'ld.so.conf.d',
  'localtime',
  'login.defs',
  'magic',
  'mime.types',
  'nanorc',
  'nsswitch.conf',
  'os-release',
  'pam.conf',
  'pam.d',
  'perl',
  'pki/ca-trust',
  'pki/tls/certs',
  'profile',
  'profile.d',
  'protocols',
  'python3',
  'python3.11',
  'python3.12',
  'python3.13',
  'security/access.conf',
  'security/faillock.conf',
  'security/group.conf',
  'security/limits.conf',
  'security/limits.d',
  'security/namespace.conf',
  'security/pam_env.conf',
  'security/sepermit.conf',
  'security/time.conf',
  'services',
  'shells',
  'skel',
  'ssl/certs',
  'ssl/openssl.cnf',
  'terminfo',
  'timezone',
  'vim',
  'xattr.conf',
]

/** Users that packages and programs take for granted; numbers below 1000 are Debian's and the same everywhere. */
const PASSWD = `root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
bin:x:2:2:bin:/bin:/usr/sbin/nologin
sys:x:3:3:sys:/dev:/usr/sbin/nologin
man:x:6:12:man:/var/cache/man:/usr/sbin/nologin
mail:x:8:8:mail:/var/mail:/usr/sbin/nologin
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
_apt:x:42:65534::/nonexistent:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
`

const GROUP = `root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
adm:x:4:
tty:x:5:
disk:x:6:
mail:x:8:
man:x:12:
sudo:x:27:
www-data:x:33:
shadow:x:42:
utmp:x:43:
video:x:44:
staff:x:50:
users:x:100:
nogroup:x:65534:
`

const SUDOERS = 'Defaults env_reset\nroot ALL=(ALL:ALL) ALL\n%sudo ALL=(ALL:ALL) ALL\n'

const SHADOW_DAY = 19000

/** Directories of every computer (Orb Cloud contract §10), with what a Unix root has. */
const DIRECTORIES: [path: string, mode: number][] = [
  ['.orb', 0o755],
  ['agent', 0o755],
  ['agent/.orb', 0o755],
  ['agent/cache', 0o755],
  ['agent/code', 0o755],
  ['agent/data', 0o755],
  ['agent/packages', 0o755],
  ['agent/packages/bin', 0o755],
  ['boot', 0o755],
  ['dev', 0o755],
  ['etc', 0o755],
  ['home', 0o755],
  ['media', 0o755],
  ['mnt', 0o755],
  ['opt', 0o755],
  ['proc', 0o555],
  ['root', 0o700],
  ['run', 0o755],
  ['run/lock', 0o1777],
  ['srv', 0o755],
  ['sys', 0o555],
  ['tmp', 0o1777],
  ['usr', 0o755],
  ['var', 0o755],
  ['var/backups', 0o755],
  ['var/cache', 0o755],
  ['var/cache/apt', 0o755],
  ['var/cache/apt/archives', 0o755],
  ['var/cache/apt/archives/partial', 0o700],
  ['var/cache/debconf', 0o755],
  ['var/lib', 0o755],
  ['var/lib/apt', 0o755],
  ['var/lib/apt/lists', 0o755],
  ['var/lib/apt/lists/partial', 0o700],
  ['var/lib/dpkg', 0o755],
  ['var/lib/dpkg/alternatives', 0o755],
  ['var/lib/dpkg/info', 0o755],
  ['var/lib/dpkg/parts', 0o755],
  ['var/lib/dpkg/triggers', 0o755],
  ['var/lib/dpkg/updates', 0o755],
  ['var/local', 0o2775],
  ['var/log', 0o755],
  ['var/log/apt', 0o755],
  ['var/log/orb', 0o755],
  ['var/mail', 0o2775],
  ['var/spool', 0o755],
  ['var/tmp', 0o1777],
]

/** The links of a merged-usr system. */
const USR_LINKS = ['bin', 'sbin', 'lib', 'lib32', 'lib64', 'libx32']

/** The package database, so that apt-get and dpkg know what /usr holds. */
const DPKG_FROM_HOST = ['status', 'diversions', 'statoverride', 'alternatives', 'info', 'triggers']

const FINGERPRINT_LENGTH = 12

/**
 * The base named by `ORB_BASE`: `host`, a directory (taken as it is), or a tar file (unpacked once).
 * Made on first use, found again by a fingerprint of what it was made from: computers keep the base that they began with.
 * @throws Error with the reason when it cannot be made
 */
export async function prepareBase(setting: string, images: string): Promise<Base> {
  if (setting === 'host') return prepareHostBase(images)
  const info = await stat(setting).catch(() => null)
  if (info?.isDirectory()) return { name: setting, dir: setting, hostUsr: false, layer: null }
  if (!info?.isFile()) throw new Error(`base ${setting} is neither "host" nor a directory nor a tar file`)
  const name = `tar-${fingerprint([`${setting} ${info.size} ${info.mtimeMs}`])}`
  const dir = join(images, name)
  await makeOnce(dir, (temp) => run(['tar', '-xf', setting, '-C', temp, '--numeric-owner', '--xattrs']))
  return { name, dir, hostUsr: false, layer: null }
}

/** The base that a computer was made from, by its stored name. */
export function baseNamed(name: string, images: string): Base {
  const { base, layer } = splitBase(name)
  return {
    name,
    dir: base.startsWith('/') ? base : join(images, base),
    hostUsr: base.startsWith('host-'),
    layer: layer === null ? null : layerDir(images, layer),
  }
}

async function prepareHostBase(images: string): Promise<Base> {
  for (const name of ['bin', 'sbin', 'lib']) {
    if (!(await lstat(`/${name}`)).isSymbolicLink())
      throw new Error(`base host needs a merged /usr, but /${name} is a directory`)
  }
  const seen: string[] = []
  for (const name of ETC_FROM_HOST) {
    const info = await stat(join('/etc', name)).catch(() => null)
    if (info) seen.push(`${name} ${info.size} ${info.mtimeMs}`)
  }
  const name = `host-${fingerprint([...seen, PASSWD, GROUP, DIRECTORIES.join()])}`
  const dir = join(images, name)
  await makeOnce(dir, fillHostBase)
  return { name, dir, hostUsr: true, layer: null }
}

const fingerprint = (parts: string[]): string =>
  createHash('sha256').update(parts.join('\n')).digest('hex').slice(0, FINGERPRINT_LENGTH)

async function makeOnce(dir: string, fill: (temp: string) => Promise<unknown>): Promise<void> {
  if (existsSync(dir)) return
  const temp = `${dir}.${process.pid}.part`
  await rm(temp, { recursive: true, force: true })
  await mkdir(temp, { recursive: true, mode: 0o755 })
  await fill(temp)
  await rename(temp, dir)
}

async function fillHostBase(root: string): Promise<void> {
  for (const [path, mode] of DIRECTORIES) {
    await mkdir(join(root, path))
    await chmod(join(root, path), mode)
  }
  for (const name of USR_LINKS) {
    if (existsSync(join('/usr', name))) await symlink(`usr/${name}`, join(root, name))
  }
  await copy('/etc', ETC_FROM_HOST, join(root, 'etc'))
  if (existsSync('/etc/ssl/certs')) await resolveOutsideLinks(join(root, 'etc/ssl/certs'), '/etc/ssl/certs')

  const accounts = PASSWD.trimEnd()
    .split('\n')
    .map((line) => line.slice(0, line.indexOf(':')))
  const groups = GROUP.trimEnd()
    .split('\n')
    .map((line) => line.slice(0, line.indexOf(':')))
  await put(root, 'etc/passwd', PASSWD)
  await put(root, 'etc/group', GROUP)
  await put(root, 'etc/shadow', accounts.map((name) => `${name}:*:${SHADOW_DAY}:0:99999:7:::\n`).join(''), 0o640)
  await put(root, 'etc/gshadow', groups.map((name) => `${name}:*::\n`).join(''), 0o640)
  await put(root, 'etc/fstab', '')
  await put(root, 'etc/environment', '')
  await put(root, 'etc/hostname', 'orb\n')
  await put(root, 'etc/mtab', '')
  await put(root, 'etc/host.conf', 'multi on\n')
  await put(root, 'etc/sudoers', SUDOERS, 0o440)
  await removeCredentials(join(root, 'etc/apt'))
  await copy('/var/lib/dpkg', DPKG_FROM_HOST, join(root, 'var/lib/dpkg'))
  await put(root, 'var/lib/dpkg/lock', '')
  await copy('/etc/skel', ['.bashrc', '.profile'], join(root, 'root'))
}

const put = (root: string, path: string, text: string, mode = 0o644): Promise<void> =>
  writeFile(join(root, path), text, { mode })

/** Copies what there is of these, links as links, in one process: they are thousands of small files. */
async function copy(from: string, names: string[], to: string): Promise<void> {
  const present = names.filter((name) => existsSync(join(from, name)))
  if (present.length === 0) return
  const options = ['-R', '-P', '--parents', '--preserve=mode,links', '--reflink=auto']
  await run(['env', '-C', from, 'cp', ...options, '--', ...present, to])
}

/** Files of apt's configuration that hold a password in a URL stay the server's. */
async function removeCredentials(dir: string): Promise<void> {
  for (const entry of await readdir(dir, { recursive: true, withFileTypes: true }).catch(() => [])) {
    if (!entry.isFile()) continue
    const file = join(entry.parentPath, entry.name)
    if (/:\/\/[^/\s]*@/.test(await readFile(file, 'latin1'))) await rm(file)
  }
}

/** Certificates installed by hand are links to places that a computer does not see: it gets the files. */
async function resolveOutsideLinks(dir: string, original: string): Promise<void> {
  for (const name of await readdir(dir)) {
    const info = await lstat(join(dir, name))
    if (!info.isSymbolicLink()) continue
    const content = await readFile(join(original, name)).catch(() => null)
    if (content === null) continue
    await rm(join(dir, name))
    await writeFile(join(dir, name), content, { mode: 0o644 })
  }
}

/** Device nodes of every computer: name, major, minor (Linux allocated devices list). */
const DEVICES: [name: string, major: number, minor: number][] = [
  ['null', 1, 3],
  ['zero', 1, 5],
  ['full', 1, 7],
  ['random', 1, 8],
  ['urandom', 1, 9],
  ['tty', 5, 0],
]

const DEVICE_LINKS: [name: string, target: string][] = [
  ['fd', '/proc/self/fd'],
  ['stdin', '/proc/self/fd/0'],
  ['stdout', '/proc/self/fd/1'],
  ['stderr', '/proc/self/fd/2'],
  ['ptmx', 'pts/ptmx'],
]

/** The one /dev that all computers share, bound read-only into each. Returns its path. */
export async function prepareDevices(images: string): Promise<string> {
  const dir = join(images, 'dev')
  await makeOnce(dir, async (temp) => {
    for (const [name, major, minor] of DEVICES) {
      await run(['mknod', '-m', '666', join(temp, name), 'c', String(major), String(minor)])
    }
    for (const [name, target] of DEVICE_LINKS) await symlink(target, join(temp, name))
    for (const name of ['pts', 'shm', 'mqueue']) await mkdir(join(temp, name))
  })
  return dir
}
