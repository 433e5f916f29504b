import { describe, expect, test } from 'bun:test'
import { existsSync, readFileSync } from 'node:fs'
import { seccompFilter } from './seccomp.ts'

type Arch = 'x64' | 'arm64'
const ARCHES: Arch[] = ['x64', 'arm64']

/** linux/audit.h */
const AUDIT = { x64: 0xc000003e, arm64: 0xc00000b7, i386: 0x40000003, arm: 0x40000028 }
const EPERM = 0x50001
const ENOSPC = 0x5001c
const ENOSYS = 0x50026
const ALLOW = 0x7fff0000
const KILL = 0x80000000
const X32_BIT = 0x40000000
/** Beyond every number that a kernel of today has. */
const LAST_NUMBER = 600

interface Call {
  nr: number
  audit?: number
  args?: bigint[]
}

/** What the kernel would do with a call: runs the classic BPF program over struct seccomp_data (linux/filter.h). */
function verdict(arch: Arch, call: Call): number {
  const code = new DataView(seccompFilter(arch).buffer)
  const data = new DataView(new ArrayBuffer(64))
  data.setUint32(0, call.nr, true)
  data.setUint32(4, call.audit ?? AUDIT[arch], true)
  call.args?.forEach((arg, index) => {
    data.setBigUint64(16 + 8 * index, arg, true)
  })
  let loaded = 0
  for (let at = 0; at < code.byteLength / 8; at++) {
    const [yes, no, value] = [code.getUint8(at * 8 + 2), code.getUint8(at * 8 + 3), code.getUint32(at * 8 + 4, true)]
    const operation = code.getUint16(at * 8, true)
    if (operation === 0x20) loaded = data.getUint32(value, true)
    else if (operation === 0x15) at += loaded === value ? yes : no
    else if (operation === 0x35) at += loaded >= value ? yes : no
    else if (operation === 0x45) at += (loaded & value) !== 0 ? yes : no
    else if (operation === 0x06) return value
    else throw new Error(`instruction ${at} has the unknown code ${operation}`)
  }
  throw new Error('the program runs off its end')
}

/** Numbers by name, as the kernel's own headers have them. */
function numbersIn(header: string): Map<string, number> {
  if (!existsSync(header)) throw new Error(`this test needs the kernel's headers (linux-libc-dev): no ${header}`)
  const defined = readFileSync(header, 'utf8').matchAll(/^#define __NR(?:3264)?_(\w+)\s+(\d+)$/gm)
  return new Map([...defined].map(([, name = '', number]) => [name, Number(number)]))
}

const X64_HEADERS = ['/usr/include/x86_64-linux-gnu/asm/unistd_64.h', '/usr/include/asm/unistd_64.h']
/** The generic table is arm64's. Its x86 sister is there on x86 alone. */
const HEADERS: [Arch, string][] = [
  ['arm64', '/usr/include/asm-generic/unistd.h'],
  ...X64_HEADERS.filter((file) => existsSync(file))
    .slice(0, 1)
    .map((file): [Arch, string] => ['x64', file]),
]

/** Refused whatever the arguments are, where the architecture has it. */
const DENIED = `mount umount2 pivot_root swapon swapoff reboot setns init_module finit_module delete_module kexec_load
  kexec_file_load bpf perf_event_open add_key request_key keyctl acct quotactl settimeofday clock_settime clock_adjtime
  adjtimex iopl ioperm open_by_handle_at name_to_handle_at lookup_dcookie move_pages mbind set_mempolicy get_mempolicy
  migrate_pages syslog userfaultfd vhangup uselib ustat sysfs _sysctl nfsservctl fanotify_init open_tree move_mount
  fsopen fsconfig fsmount fspick mount_setattr quotactl_fd create_module get_kernel_syms query_module`.split(/\s+/)
/** A program must take these for missing, so that it falls back to something else. */
const MISSING = ['clone3', 'io_uring_setup', 'io_uring_enter', 'io_uring_register']

test('on x86-64 the table of x86-64 is checked too', () => {
  expect(HEADERS.map(([arch]) => arch)).toEqual(process.arch === 'x64' ? ['arm64', 'x64'] : ['arm64'])
})

describe.each(HEADERS)('%s, by the numbers of %s', (arch, header) => {
  const numbers = numbersIn(header)
  const named = (result: number): string[] =>
    [...Array(LAST_NUMBER).keys()]
      .filter((nr) => verdict(arch, { nr }) === result)
      .map((nr) => [...numbers].find(([, number]) => number === nr)?.[0] ?? `number ${nr}`)
      .sort()

  test('refused is exactly what is meant', () => {
    expect(named(EPERM)).toEqual(DENIED.filter((name) => numbers.has(name)).sort())
  })

  test('missing is exactly what is meant', () => {
    expect(named(ENOSYS)).toEqual(MISSING.toSorted())
  })

  test('no memory protection key is to be had', () => {
    expect(named(ENOSPC)).toEqual(['pkey_alloc'])
  })

  test('arguments are looked at in the right calls', () => {
    const nr = (name: string) => numbers.get(name) ?? Number.NaN
    expect(verdict(arch, { nr: nr('clone'), args: [0x10000000n] })).toBe(EPERM)
    expect(verdict(arch, { nr: nr('unshare'), args: [0x10000000n] })).toBe(EPERM)
    expect(verdict(arch, { nr: nr('ioctl'), args: [0n, 0x5412n] })).toBe(EPERM)
    expect(verdict(arch, { nr: nr('socket'), args: [38n] })).toBe(EPERM)
  })
})

const CLONE = { x64: 56, arm64: 220 }
const UNSHARE = { x64: 272, arm64: 97 }
const IOCTL = { x64: 16, arm64: 29 }
const SOCKET = { x64: 41, arm64: 198 }
/** A value whose upper half the kernel does not look at in these arguments. */
const UPPER_HALF = 0xdeadbeef_00000000n

describe.each(ARCHES)('%s', (arch) => {
  test.each([
    ['time', 0x80n],
    ['mount', 0x20000n],
    ['cgroup', 0x02000000n],
    ['uts', 0x04000000n],
    ['ipc', 0x08000000n],
    ['user', 0x10000000n],
    ['pid', 0x20000000n],
    ['network', 0x40000000n],
  ])('no new %s namespace', (_, flag) => {
    expect(verdict(arch, { nr: UNSHARE[arch], args: [flag] })).toBe(EPERM)
    expect(verdict(arch, { nr: CLONE[arch], args: [flag | 17n] })).toBe(EPERM)
    expect(verdict(arch, { nr: CLONE[arch], args: [flag | UPPER_HALF] })).toBe(EPERM)
  })

  test.each([
    ['a fork', CLONE, [0x01200011n]],
    ['a thread', CLONE, [0x003d0f00n]],
    ['vfork', CLONE, [0x4111n]],
    ['unshare of descriptors and working directory', UNSHARE, [0x600n]],
    ['the size of a terminal', IOCTL, [1n, 0x5413n]],
    ['an ioctl on a descriptor that is TIOCSTI by chance', IOCTL, [0x5412n, 0x5401n]],
    ['a Unix socket', SOCKET, [1n]],
    ['an IPv4 socket', SOCKET, [2n, 38n]],
    ['an IPv6 socket', SOCKET, [10n]],
    ['a netlink socket', SOCKET, [16n]],
  ])('%s is allowed', (_, number, args) => {
    expect(verdict(arch, { nr: number[arch], args })).toBe(ALLOW)
  })

  test.each([
    ['typing into a terminal', IOCTL, [0n, 0x5412n]],
    ['typing into a terminal, upper half set', IOCTL, [0n, 0x5412n | UPPER_HALF]],
    ['AF_ALG', SOCKET, [38n]],
    ['AF_VSOCK', SOCKET, [40n]],
    ['AF_VSOCK, upper half set', SOCKET, [40n | UPPER_HALF]],
  ])('%s is refused', (_, number, args) => {
    expect(verdict(arch, { nr: number[arch], args })).toBe(EPERM)
  })

  test('a call of another architecture ends the process', () => {
    const others = Object.values(AUDIT).filter((audit) => audit !== AUDIT[arch])
    for (const audit of others) for (const nr of [0, 1, 11, 165]) expect(verdict(arch, { nr, audit })).toBe(KILL)
  })
})

test('the x32 names of allowed calls are missing', () => {
  for (const nr of [0, 1, 59, 165, 425, 512, 547]) expect(verdict('x64', { nr: X32_BIT | nr })).toBe(ENOSYS)
  expect(verdict('x64', { nr: 0xffffffff })).toBe(ENOSYS)
})

test('an architecture that orb does not know gets no filter instead of a wrong one', () => {
  expect(() => seccompFilter('riscv64')).toThrow('no seccomp filter for riscv64')
})
