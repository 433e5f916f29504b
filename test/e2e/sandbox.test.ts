import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { networkInterfaces } from 'node:os'
import type { Computer } from '../support/computer.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

/** What has no route fails within this (Orb Cloud contract §4, `network.outbound`). */
const REFUSAL_S = 5
const RUNTIME_MB = 128
const MEMORY_MULTIPLIER = 3
const MAX_PROCESSES = 4096
const MB = 1024 * 1024
const COMMAND_NOT_FOUND = 127

let orb: Orb
let computer: Computer
let neighbour: Computer

beforeAll(async () => {
  orb = await startOrb()
  computer = await orb.computer({ runtime_mb: RUNTIME_MB, disk_mb: 128 })
  neighbour = await orb.computer()
  await neighbour.deployAgent()
})
afterAll(() => orb?.stop())

/** Runs Python in the computer. */
const python = async (source: string) => {
  await computer.put('root/attempt.py', source)
  return computer.exec('exec python3 /root/attempt.py')
}

/** A system call by its number (of x86-64), made from inside: prints the error's name, or `done`. */
const systemCall = (number: number, ...args: (number | string)[]) => `
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
result = libc.syscall(${[number, ...args].map((arg) => (typeof arg === 'number' ? `ctypes.c_long(${arg})` : `ctypes.c_char_p(b"${arg}")`)).join(', ')})
print(errno.errorcode[ctypes.get_errno()] if result == -1 else 'done')
`

describe('of the server a computer sees', () => {
  test('nothing of its homes, variable data and keys', async () => {
    const secret = `/root/.orb-test-${crypto.randomUUID()}`
    writeFileSync(secret, 'secret of the server')
    try {
      expect(await computer.sh(`ls -A /home; cat ${secret} 2>&1 || true`)).toBe(
        `cat: ${secret}: No such file or directory\n`,
      )
    } finally {
      rmSync(secret)
    }
    expect(await computer.sh(`ls -d ${orb.dataDir} /work /var/lib/orb 2>/dev/null | wc -l`)).toBe('0\n')
    expect(await computer.sh('ls /etc/ssl/private /etc/ssh /etc/shadow- /etc/orb /root/.ssh 2>/dev/null | wc -l')).toBe(
      '0\n',
    )
    expect(await computer.sh('cat /etc/machine-id 2>/dev/null | wc -c')).toBe('0\n')
    expect(await computer.sh('find /proc/1/root/ -maxdepth 1 -name work | wc -l')).toBe('0\n')
  })

  test('a name of its own and its own processes only', async () => {
    expect(await computer.sh('hostname; cat /etc/hostname; uname -n')).toBe(`${computer.name}\n`.repeat(3))
    const programs = await computer.sh('ps axo comm --no-headers | sort')
    expect(programs.trim().split('\n')).toEqual(['bash', 'orb-computer', 'ps', 'sort'])
    const hostname = readFileSync('/etc/hostname', 'utf8').trim()
    await computer.exec('hostname pwned')
    expect(readFileSync('/etc/hostname', 'utf8').trim()).toBe(hostname)
  })

  test('no environment of orb, also of its own pid 1', async () => {
    const environment = await computer.sh('cat /proc/[0-9]*/environ 2>/dev/null | tr "\\0" "\\n" | sort -u')
    for (const name of ['ORB_DATA_DIR', 'ORB_SUBNET', 'ORB_ALLOW_PRIVATE', 'ORB_LISTEN'])
      expect(environment).not.toContain(name)
  })

  test('no file descriptor of the server', async () => {
    const links = await computer.sh('ls -l /proc/1/fd /proc/self/fd 2>/dev/null | grep -o "[-]> .*" | sort -u')
    expect(links).not.toContain(orb.dataDir)
    expect(links).not.toMatch(/orb\.db|master\.key/)
  })

  test('no whole devices', async () => {
    const devices = await computer.sh('find /dev \\( -type b -o -type c \\) -printf "%f\\n" | sort')
    expect(devices.trim().split('\n')).toEqual(['full', 'null', 'ptmx', 'random', 'tty', 'urandom', 'zero'])
    expect(await computer.sh('echo fine > /dev/null; head -c 4 /dev/zero | wc -c')).toBe('4\n')
  })
})

describe('root in a computer', () => {
  test.each([
    ['mount', 'mount -t tmpfs none /mnt'],
    ['bind', 'mount --bind /etc /mnt'],
    ['remount', 'mount -o remount,rw /proc/sys'],
    ['unmount', 'umount -l /proc'],
    ['make a user namespace', 'unshare --user true'],
    ['make a mount namespace', 'unshare --mount true'],
    ['make a network namespace', 'unshare --net true'],
    ['enter the namespaces of its pid 1', 'nsenter -t 1 -m -n true'],
    ['set a kernel parameter', 'echo 1 > /proc/sys/kernel/sysrq'],
    ['set a network parameter', 'echo 1 > /proc/sys/net/ipv4/ip_forward'],
    ['set the core pattern', 'echo "|/root/x" > /proc/sys/kernel/core_pattern'],
    ['reboot by sysrq', 'echo b > /proc/sysrq-trigger'],
    ['read kernel memory', 'head -c 1 /proc/kcore | grep -q .'],
    ['make a disk device and read it', 'mknod /root/sda b 8 0 && head -c 1 /root/sda'],
    ['make a loop device and read it', 'mknod /root/loop b 7 0 && head -c 1 /root/loop'],
    ['make a memory device and read it', 'mknod /root/mem c 1 1 && head -c 1 /root/mem'],
    ['read the kernel log', 'dmesg'],
    ['set the clock', 'date -s 2001-01-01'],
    ['see cgroups', 'ls /sys/fs/cgroup/*/orb'],
    ['make a cgroup', 'mkdir /sys/fs/cgroup/mine'],
    ['change its network', 'ip address add 10.0.0.9/8 dev eth0 || ip link set eth0 down'],
    ['change firewall rules', 'nft add table inet mine'],
    ['leave its root', "python3 -c \"import os; os.chroot('/proc/1/root/..'); os.stat('/work')\""],
  ])('cannot %s', async (_, command) => {
    const { exit_code, stderr } = await computer.exec(command)
    // 127: the program is not there, which would show nothing.
    expect([exit_code === 0, exit_code === COMMAND_NOT_FOUND, stderr]).toEqual([false, false, expect.any(String)])
  })

  test.each([
    ['io_uring_setup', systemCall(425, 8, 0), 'ENOSYS'],
    ['bpf', systemCall(321, 0, 0, 0), 'EPERM'],
    ['keyctl', systemCall(250, 0, 0), 'EPERM'],
    ['add_key', systemCall(248, 'user', 'x', 'y', 1, -3), 'EPERM'],
    ['kexec_load', systemCall(246, 0, 0, 0, 0), 'EPERM'],
    ['init_module', systemCall(175, 0, 0, ''), 'EPERM'],
    ['reboot', systemCall(169, 0, 0, 0), 'EPERM'],
    ['open_by_handle_at', systemCall(304, 0, 0, 0), 'EPERM'],
    ['perf_event_open', systemCall(298, 0, 0, -1, -1, 0), 'EPERM'],
    ['setns', systemCall(308, 0, 0), 'EPERM'],
    ['pivot_root', systemCall(155, '/', '/'), 'EPERM'],
    ['swapon', systemCall(167, '/x', 0), 'EPERM'],
    ['clone of a user namespace', systemCall(56, 0x10000011, 0, 0, 0, 0), 'EPERM'],
    ['clone3', systemCall(435, 0, 0), 'ENOSYS'],
  ])('gets from the system call %s the answer that programs expect', async (_, source, expected) => {
    const { stdout, stderr } = await python(source)
    expect([stdout.trim(), stderr]).toEqual([expected, ''])
  })

  test('has the capabilities of a container and no more', async () => {
    const status = await computer.sh('grep -E "^Cap(Eff|Bnd)" /proc/self/status')
    const sets = [...status.matchAll(/\t([0-9a-f]+)/g)].map(([, hex]) => BigInt(`0x${hex}`))
    expect(sets).toHaveLength(2)
    // capabilities(7): module, rawio, ptrace, pacct, admin, boot, nice, resource, time, net_admin, mac_admin, bpf, …
    const forbidden = [12, 16, 17, 19, 20, 21, 22, 23, 24, 25, 32, 33, 34, 35, 36, 38, 39, 40]
    for (const set of sets) expect(forbidden.filter((bit) => (set >> BigInt(bit)) & 1n)).toEqual([])
  })

  test('may make users, give files away, and become somebody else', async () => {
    await computer.sh('useradd -m worker && touch /home/worker/file && chown worker:worker /home/worker/file')
    expect(await computer.sh('su worker -c "id -un; touch /home/worker/own; touch /root/x 2>&1 || true"')).toStartWith(
      'worker\n',
    )
    expect(await computer.sh('stat -c %U /home/worker/own /home/worker/file')).toBe('worker\nworker\n')
  })

  test('may write anywhere, and it stays', async () => {
    await computer.sh('for dir in /opt /etc /usr/local/bin /home /srv /var/lib; do echo mine > $dir/mine; done')
    expect(await computer.get('usr/local/bin/mine')).toBe('mine\n')
    expect(existsSync('/usr/local/bin/mine')).toBe(false)
    expect(existsSync('/opt/mine')).toBe(false)
    expect((await neighbour.call('GET', '/files/opt/mine')).status).toBe(404)
  })
})

describe('the network of a computer', () => {
  /** Whether a TCP connection comes about, and how long that took to tell. */
  async function connects(host: string, port: number): Promise<{ open: boolean; seconds: number }> {
    const { stdout, stderr } = await python(`
import socket, time
start = time.monotonic()
try:
    socket.create_connection(("${host}", ${port}), timeout=20).close()
    print("open", time.monotonic() - start)
except OSError as error:
    print("closed", time.monotonic() - start, error)
`)
    expect(stderr).toBe('')
    const [state, seconds] = stdout.split(' ')
    return { open: state === 'open', seconds: Number(seconds) }
  }

  test('reaches the LLM proxy and the API on its gateway', async () => {
    expect(await connects(orb.gateway, 10_000)).toMatchObject({ open: true })
    expect(await computer.sh('curl -s -o /dev/null -w "%{http_code}" "$ORB_API_URL/health"')).toBe('200')
    expect(await computer.sh('curl -s -o /dev/null -w "%{http_code}" "$ORB_API_URL/v1/computers"')).toBe('401')
  })

  test('has a loopback of its own', async () => {
    expect(await connects('127.0.0.1', Number(new URL(orb.url).port))).toMatchObject({ open: false })
    expect(
      await computer.sh('cat /sys/class/net/lo/operstate >/dev/null; ls /sys/class/net 2>/dev/null || true'),
    ).not.toContain('orb-')
  })

  test('reaches no other port of the server, by any of its addresses', async () => {
    const server = Bun.listen({ hostname: '0.0.0.0', port: 0, socket: { data() {} } })
    try {
      const addresses = Object.values(networkInterfaces())
        .flatMap((list) => list ?? [])
        .filter(({ family, internal }) => family === 'IPv4' && !internal)
        .map(({ address }) => address)
      for (const address of [orb.gateway, ...addresses]) {
        const { open, seconds } = await connects(address, server.port)
        expect([address, open, seconds < REFUSAL_S]).toEqual([address, false, true])
      }
    } finally {
      server.stop(true)
    }
  })

  test.each([
    '10.0.0.1',
    '172.16.0.1',
    '192.168.0.1',
    '100.64.0.1',
    '169.254.169.254',
    '0.0.0.0',
    'fd00:ec2::254',
    '::1',
  ])('reaches nothing at %s', async (address) => {
    const { open, seconds } = await connects(address, 80)
    expect([open, seconds < REFUSAL_S]).toEqual([false, true])
  })

  test('does not reach other computers', async () => {
    const address = (await neighbour.sh('hostname -I')).trim().split(' ')[0] ?? ''
    expect(address).toStartWith(orb.gateway.replace(/\.1$/, '.'))
    // Its agent listens on loopback alone: this port would be open to whoever gets there.
    await neighbour.sh(
      '(python3 -m http.server 8765 --bind 0.0.0.0 >/dev/null 2>&1 & disown); for i in $(seq 100); do curl -sf localhost:8765 >/dev/null && exit 0; sleep 0.1; done; exit 1',
    )
    const { open, seconds } = await connects(address, 8765)
    expect([open, seconds < REFUSAL_S]).toEqual([false, true])
  })

  test('cannot speak in the name of another computer', async () => {
    const { stdout } = await python(`
import socket
try:
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    print("raw")
except OSError as error:
    print("refused", error)
try:
    plain = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    plain.bind(("${orb.gateway.replace(/\.1$/, '.200')}", 0))
    print("bound")
except OSError as error:
    print("refused", error)
`)
    expect(stdout).not.toContain('bound')
  })
})

describe('the limits of a computer', () => {
  test('disk: what is beyond is refused inside and on upload, and the server does not run full', async () => {
    const small = await orb.computer({ disk_mb: 64 })
    const { exit_code, stderr } = await small.exec('head -c 100M /dev/zero > /agent/data/big')
    expect(exit_code).not.toBe(0)
    expect(stderr).toContain('No space left on device')
    const refused = await small.call('PUT', '/files/agent/data/more', new Uint8Array(20 * MB))
    expect([refused.status, refused.json['error']]).toEqual([507, 'disk_full'])
    expect((await small.call('GET', '/files/agent/data/more')).status).toBe(404)
    await small.sh('rm /agent/data/big')
    await small.put('agent/data/more', new Uint8Array(20 * MB))
    expect((await small.sh('stat -c %s /agent/data/more')).trim()).toBe(String(20 * MB))
  })

  test('processes: a fork bomb stops at the limit and harms nobody', async () => {
    // Large, so that its memory is not what stops the bomb.
    const bombed = await orb.computer({ runtime_mb: 1024 })
    await bombed.put(
      'root/bomb.py',
      `
import os, signal
made = 0
try:
    while made < ${MAX_PROCESSES + 100}:
        if os.fork() == 0:
            signal.pause()
        made += 1
except OSError as error:
    print("stopped", made)
`,
    )
    const { stdout } = await bombed.exec('exec python3 /root/bomb.py')
    const [word, made] = stdout.split(' ')
    expect(word).toBe('stopped')
    expect(Number(made)).toBeLessThan(MAX_PROCESSES)
    expect((await neighbour.state()).count).toBeGreaterThan(0)
    await bombed.call('POST', '/restart')
    expect(bombed.processes()).toHaveLength(1)
    expect(await bombed.sh('echo fine')).toBe('fine\n')
  })

  test('memory: a command beyond the limit is killed', async () => {
    const limit = RUNTIME_MB * MEMORY_MULTIPLIER
    const within = await python(`data = b"x" * (${Math.floor(limit / 2)} << 20); print(len(data) >> 20)`)
    expect(within.stdout.trim()).toBe(String(Math.floor(limit / 2)))
    const beyond = await python(`data = b"x" * (${limit + 50} << 20); print(len(data))`)
    expect(beyond).toMatchObject({ exit_code: 137, stdout: '' })
  })

  test('the temporary directory is on disk, shared memory is half the memory', async () => {
    expect(await computer.sh('stat -f -c %T /tmp')).not.toContain('tmpfs')
    expect((await computer.sh('df -BM --output=fstype,size /dev/shm | tail -1')).trim()).toMatch(
      new RegExp(`^tmpfs +${RUNTIME_MB / 2}M$`),
    )
  })
})

test('a computer that is deleted leaves nothing behind', async () => {
  const gone = await orb.computer()
  await gone.deployAgent()
  await gone.call('POST', '/agents/demote')
  expect((await gone.call('DELETE', '')).status).toBe(200)
  expect((await gone.call('GET', '')).status).toBe(404)
  expect((await gone.call('DELETE', '')).status).toBe(404)
  expect(readdirSync(`${orb.dataDir}/computers`)).not.toContain(gone.id)
  expect(existsSync(`${orb.dataDir}/checkpoints/${gone.id}`)).toBe(false)
  expect(existsSync(`/sys/class/net/${gone.name}`)).toBe(false)
  expect(existsSync(`/run/netns/${gone.name}`)).toBe(false)
})
