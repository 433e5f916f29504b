import { CFunction, dlopen, FFIType, ptr, toArrayBuffer } from 'bun:ffi'
import { constants } from 'node:os'

/** A number, a pointer as a number, or memory to be read or filled by the kernel. */
export type SysArg = number | bigint | Uint8Array | BigUint64Array

/** A failed system call. `code` is the symbolic name, such as `ENOENT`. */
export class Errno extends Error {
  readonly code: string

  constructor(
    readonly errno: number,
    call: string,
  ) {
    const code = NAMES.get(errno) ?? `E${errno}`
    super(`${call}: ${code}`)
    this.name = 'Errno'
    this.code = code
  }
}

/** The symbolic code of a thrown `Errno` or of an error of node:fs, else null. */
export const errnoCode = (thrown: unknown): string | null =>
  thrown instanceof Error && 'code' in thrown && typeof thrown.code === 'string' ? thrown.code : null

// Two names that share a number with a more common one.
const SYNONYMS = new Set(['EWOULDBLOCK', 'ENOTSUP'])
const NAMES = new Map(
  Object.entries(constants.errno).flatMap(([name, number]) => (SYNONYMS.has(name) ? [] : [[number, name] as const])),
)

/**
 * Machine code of `long f(long number, long a1, …, long a6)`: the bare system call, the kernel's answer unchanged. libc's
 * `syscall()` reports failures through `errno`, which the JavaScript engine may overwrite before a second foreign call could
 * read it; here result and error arrive in one piece.
 */
const TRAMPOLINE: Record<string, number[]> = {
  // mov rax,rdi; mov rdi,rsi; mov rsi,rdx; mov rdx,rcx; mov r10,r8; mov r8,r9; mov r9,[rsp+8]; syscall; ret
  x64: [
    0x48, 0x89, 0xf8, 0x48, 0x89, 0xf7, 0x48, 0x89, 0xd6, 0x48, 0x89, 0xca, 0x4d, 0x89, 0xc2, 0x4d, 0x89, 0xc8, 0x4c,
    0x8b, 0x4c, 0x24, 0x08, 0x0f, 0x05, 0xc3,
  ],
  // mov x8,x0; mov x0,x1; mov x1,x2; mov x2,x3; mov x3,x4; mov x4,x5; mov x5,x6; svc #0; ret
  arm64: [
    0xe8, 0x03, 0x00, 0xaa, 0xe0, 0x03, 0x01, 0xaa, 0xe1, 0x03, 0x02, 0xaa, 0xe2, 0x03, 0x03, 0xaa, 0xe3, 0x03, 0x04,
    0xaa, 0xe4, 0x03, 0x05, 0xaa, 0xe5, 0x03, 0x06, 0xaa, 0x01, 0x00, 0x00, 0xd4, 0xc0, 0x03, 0x5f, 0xd6,
  ],
}

const PAGE_BYTES = 4096
const PROT_READ_WRITE = 3
const PROT_READ_EXEC = 5
const MAP_PRIVATE_ANONYMOUS = 0x22

const loadTrampoline = (): CallableFunction => {
  const code = TRAMPOLINE[process.arch]
  if (!code) throw new Error(`no system calls for ${process.arch}`)
  const libc = dlopen('libc.so.6', {
    mmap: { args: ['ptr', 'u64', 'i32', 'i32', 'i32', 'i64'], returns: 'ptr' },
    mprotect: { args: ['ptr', 'u64', 'i32'], returns: 'i32' },
  })
  const page = libc.symbols.mmap(null, PAGE_BYTES, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0)
  // MAP_FAILED is (void *)-1, the highest address.
  if (page === null || page < 0 || page > Number.MAX_SAFE_INTEGER) throw new Error('cannot map a page for system calls')
  new Uint8Array(toArrayBuffer(page, 0, PAGE_BYTES)).set(code)
  if (libc.symbols.mprotect(page, PAGE_BYTES, PROT_READ_EXEC) !== 0) throw new Error('cannot make a page executable')
  return CFunction({ ptr: page, args: ['i64', 'i64', 'i64', 'i64', 'i64', 'i64', 'i64'], returns: FFIType.i64_fast })
}

const trampoline = loadTrampoline()
// Memory lent to the kernel must survive a garbage collection between taking its address and the call's end.
const lent: { args: SysArg[] } = { args: [] }
const MAX_ERRNO = 4095

/**
 * The bare system call `number` of this architecture with up to six arguments; blocks the thread. Returns the kernel's
 * answer, throws `Errno`. `call` names it in the error.
 */
export function sys(number: number, ...args: SysArg[]): number {
  return named(`syscall ${number}`, number, args)
}

const named = (call: string, number: number, args: SysArg[]): number => {
  lent.args = args
  const raw = args.map((arg) => (typeof arg === 'object' ? (arg.byteLength === 0 ? 0 : ptr(arg)) : arg))
  const result = Number(
    trampoline(number, raw[0] ?? 0, raw[1] ?? 0, raw[2] ?? 0, raw[3] ?? 0, raw[4] ?? 0, raw[5] ?? 0),
  )
  lent.args = []
  if (result < 0 && result >= -MAX_ERRNO) throw new Errno(-result, call)
  return result
}

/** NUL-terminated bytes of a path. A string with a NUL inside would silently be cut short: it throws EINVAL. */
export function cString(text: string | Uint8Array): Uint8Array {
  const bytes = typeof text === 'string' ? Buffer.from(text) : text
  if (bytes.includes(0)) throw new Errno(constants.errno.EINVAL, 'cString')
  return Buffer.concat([bytes, Buffer.alloc(1)])
}

/** Numbers of the system calls used here: the kernel's arch/x86/entry/syscalls/syscall_64.tbl and asm-generic/unistd.h. */
const NR =
  process.arch === 'arm64'
    ? {
        getdents64: 61,
        linkat: 37,
        mkdirat: 34,
        openat2: 437,
        readlinkat: 78,
        renameat2: 276,
        statx: 291,
        unlinkat: 35,
      }
    : {
        getdents64: 217,
        linkat: 265,
        mkdirat: 258,
        openat2: 437,
        readlinkat: 267,
        renameat2: 316,
        statx: 332,
        unlinkat: 263,
      }

/** Flags of open(2) that node:fs does not name. The same on x64 and arm64. */
export const O_PATH = 0o10000000
export const O_CLOEXEC = 0o2000000

const RESOLVE_NO_MAGICLINKS = 0x02
const RESOLVE_IN_ROOT = 0x10
const MAX_RESOLVE_TRIES = 1000
const OPEN_HOW_BYTES = 24

/**
 * Opens `path` as a process whose root directory is `rootFd` would: absolute symlinks and `..` stay beneath it, links of
 * /proc are refused. Returns a descriptor (close-on-exec), throws `Errno`.
 */
export function openInRoot(rootFd: number, path: string | Uint8Array, flags: number, mode = 0): number {
  const how = new BigUint64Array([
    BigInt(flags | O_CLOEXEC),
    BigInt(mode),
    BigInt(RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS),
  ])
  const name = cString(path)
  for (let tries = 1; ; tries++) {
    try {
      return named('openat2', NR.openat2, [rootFd, name, how, OPEN_HOW_BYTES])
    } catch (thrown) {
      // The kernel answers EAGAIN when a rename anywhere coincided with a `..`: it could not prove that the path stays inside.
      if (errnoCode(thrown) !== 'EAGAIN' || tries === MAX_RESOLVE_TRIES) throw thrown
    }
  }
}

/** Makes the directory `name` in `dirFd`; `mode` is subject to the umask. Throws `Errno`. */
export function mkdirat(dirFd: number, name: string | Uint8Array, mode: number): void {
  named('mkdirat', NR.mkdirat, [dirFd, cString(name), mode])
}

/** Renames within or between directories, over an existing file; follows no symlink. Throws `Errno`. */
export function renameat(fromDirFd: number, from: string | Uint8Array, toDirFd: number, to: string | Uint8Array): void {
  named('renameat2', NR.renameat2, [fromDirFd, cString(from), toDirFd, cString(to), 0])
}

/** Gives the file behind `fd`, which may be an O_PATH one, the name `name` in `dirFd`. Throws `Errno`. */
export function linkFd(fd: number, dirFd: number, name: string): void {
  named('linkat', NR.linkat, [fd, cString(''), dirFd, cString(name), AT_EMPTY_PATH])
}

/** Removes the directory `name` of `dirFd`, if it is empty. Throws `Errno`. */
export function rmdirat(dirFd: number, name: string): void {
  named('unlinkat', NR.unlinkat, [dirFd, cString(name), AT_REMOVEDIR])
}

/** Removes the file `name` of `dirFd`; follows no symlink. Throws `Errno`. */
export function unlinkat(dirFd: number, name: string | Uint8Array): void {
  named('unlinkat', NR.unlinkat, [dirFd, cString(name), 0])
}

const PATH_MAX_BYTES = 4096

/** The target of the symlink `name` of `dirFd`, as it is stored. Throws `Errno`. */
export function readlinkat(dirFd: number, name: string | Uint8Array): Uint8Array {
  const target = new Uint8Array(PATH_MAX_BYTES)
  return target.slice(0, named('readlinkat', NR.readlinkat, [dirFd, cString(name), target, target.length]))
}

export interface Stat {
  kind: 'file' | 'directory' | 'symlink' | 'other'
  /** Permission bits, with setuid, setgid and sticky: 0 to 0o7777. */
  mode: number
  uid: number
  gid: number
  ino: bigint
  /** Bytes. */
  size: number
  mtimeMs: number
  /** When content or attributes last changed, which nobody inside can set. Nanoseconds since the epoch. */
  ctimeNs: bigint
}

const AT_SYMLINK_NOFOLLOW = 0x100
const AT_EMPTY_PATH = 0x1000
const AT_REMOVEDIR = 0x200
const STATX_BASIC_STATS = 0x7ff
const STATX_BYTES = 256
const NS_PER_S = 1_000_000_000n
const KIND_MASK = 0o170000
const PERMISSION_MASK = 0o7777
const KINDS = new Map<number, Stat['kind']>([
  [0o100000, 'file'],
  [0o040000, 'directory'],
  [0o120000, 'symlink'],
])

/** What `name` in `dirFd` is, a symlink not followed; an empty name asks for `dirFd` itself. Throws `Errno`. */
export function statat(dirFd: number, name: string | Uint8Array): Stat {
  const bytes = new Uint8Array(STATX_BYTES)
  named('statx', NR.statx, [dirFd, cString(name), AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH, STATX_BASIC_STATS, bytes])
  // struct statx of linux/stat.h; both architectures are little-endian.
  const view = new DataView(bytes.buffer)
  const mode = view.getUint16(28, true)
  return {
    kind: KINDS.get(mode & KIND_MASK) ?? 'other',
    mode: mode & PERMISSION_MASK,
    uid: view.getUint32(20, true),
    gid: view.getUint32(24, true),
    ino: view.getBigUint64(32, true),
    size: Number(view.getBigUint64(40, true)),
    mtimeMs: Number(view.getBigInt64(112, true)) * 1000 + Math.floor(view.getUint32(120, true) / 1e6),
    ctimeNs: view.getBigInt64(96, true) * NS_PER_S + BigInt(view.getUint32(104, true)),
  }
}

/**
 * The next names of a directory opened for reading, as bytes (a name need not be UTF-8), without `.` and `..`; null at the
 * end. `buffer` is scratch space of at least 4 KiB. Throws `Errno`.
 */
export function readNames(dirFd: number, buffer: Uint8Array): Uint8Array[] | null {
  const filled = named('getdents64', NR.getdents64, [dirFd, buffer, buffer.length])
  if (filled === 0) return null
  const view = new DataView(buffer.buffer, buffer.byteOffset, filled)
  const names: Uint8Array[] = []
  // struct linux_dirent64: inode and offset of 8 bytes each, record length of 2, type of 1, then the name.
  for (let at = 0; at < filled; at += view.getUint16(at + 16, true)) {
    const name = buffer.slice(at + 19, buffer.indexOf(0, at + 19))
    const dots = name[0] === DOT && (name.length === 1 || (name.length === 2 && name[1] === DOT))
    if (!dots) names.push(name)
  }
  return names
}

const DOT = 0x2e
