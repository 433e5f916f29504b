/**
 * The seccomp filter of everything that runs in a computer: a classic BPF program, assembled here.
 * Allowed by default; denied is what reaches the kernel beyond the computer (mounts, modules, namespaces, keyrings,
 * tracing of the host, raw time and boot control) and what criu cannot dump or restore (io_uring, protection keys).
 */

const EPERM = 1
const ENOSPC = 28
const ENOSYS = 38

const RET_ALLOW = 0x7fff0000
const RET_ERRNO = 0x00050000
const RET_KILL_PROCESS = 0x80000000

/** Offsets in struct seccomp_data. */
const OFFSET_NR = 0
const OFFSET_ARCH = 4
const OFFSET_ARG0_LOW = 16
const OFFSET_ARG1_LOW = 24

const LOAD_WORD = 0x20
const JUMP_EQUAL = 0x15
const JUMP_AT_LEAST = 0x35
const JUMP_ANY_BIT = 0x45
const RETURN = 0x06

/** CLONE_NEWTIME | NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET */
const NEW_NAMESPACES = 0x7e020080
/** ioctl that puts bytes into a terminal's input as if typed. */
const TIOCSTI = 0x5412
/** On x86-64 the x32 ABI reaches the same calls under other numbers. */
const X32_BIT = 0x40000000

interface Architecture {
  audit: number
  denied: Record<string, number>
  clone: number
  clone3: number
  unshare: number
  ioctl: number
  socket: number
  pkeyAlloc: number
}

const IO_URING = [425, 426, 427]

const X64: Architecture = {
  audit: 0xc000003e,
  clone: 56,
  clone3: 435,
  unshare: 272,
  ioctl: 16,
  socket: 41,
  pkeyAlloc: 330,
  denied: {
    mount: 165,
    umount2: 166,
    pivot_root: 155,
    swapon: 167,
    swapoff: 168,
    reboot: 169,
    setns: 308,
    init_module: 175,
    finit_module: 313,
    delete_module: 176,
    kexec_load: 246,
    kexec_file_load: 320,
    bpf: 321,
    perf_event_open: 298,
    add_key: 248,
    request_key: 249,
    keyctl: 250,
    acct: 163,
    quotactl: 179,
    settimeofday: 164,
    clock_settime: 227,
    clock_adjtime: 305,
    adjtimex: 159,
    iopl: 172,
    ioperm: 173,
    open_by_handle_at: 304,
    name_to_handle_at: 303,
    lookup_dcookie: 212,
    move_pages: 279,
    mbind: 237,
    set_mempolicy: 238,
    get_mempolicy: 239,
    migrate_pages: 256,
    syslog: 103,
    userfaultfd: 323,
    vhangup: 153,
    uselib: 134,
    ustat: 136,
    sysfs: 139,
    _sysctl: 156,
    nfsservctl: 180,
    fanotify_init: 300,
    open_tree: 428,
    move_mount: 429,
    fsopen: 430,
    fsconfig: 431,
    fsmount: 432,
    fspick: 433,
    mount_setattr: 442,
    quotactl_fd: 443,
    create_module: 174,
    get_kernel_syms: 177,
    query_module: 178,
  },
}

const ARM64: Architecture = {
  audit: 0xc00000b7,
  clone: 220,
  clone3: 435,
  unshare: 97,
  ioctl: 29,
  socket: 198,
  pkeyAlloc: 289,
  denied: {
    mount: 40,
    umount2: 39,
    pivot_root: 41,
    swapon: 224,
    swapoff: 225,
    reboot: 142,
    setns: 268,
    init_module: 105,
    finit_module: 273,
    delete_module: 106,
    kexec_load: 104,
    kexec_file_load: 294,
    bpf: 280,
    perf_event_open: 241,
    add_key: 217,
    request_key: 218,
    keyctl: 219,
    acct: 89,
    quotactl: 60,
    settimeofday: 170,
    clock_settime: 112,
    clock_adjtime: 266,
    adjtimex: 171,
    open_by_handle_at: 265,
    name_to_handle_at: 264,
    lookup_dcookie: 18,
    move_pages: 239,
    mbind: 235,
    set_mempolicy: 237,
    get_mempolicy: 236,
    migrate_pages: 238,
    syslog: 116,
    userfaultfd: 282,
    vhangup: 58,
    nfsservctl: 42,
    fanotify_init: 262,
    open_tree: 428,
    move_mount: 429,
    fsopen: 430,
    fsconfig: 431,
    fsmount: 432,
    fspick: 433,
    mount_setattr: 442,
    quotactl_fd: 443,
  },
}

const ARCHITECTURES: Partial<Record<NodeJS.Architecture, Architecture>> = { x64: X64, arm64: ARM64 }

/** Address families that speak to the kernel's own subsystems or to the host past the network namespace. */
const AF_ALG = 38
const AF_VSOCK = 40

interface Instruction {
  code: number
  yes: number
  no: number
  value: number
}

/**
 * The program as `struct sock_filter[]`, 8 bytes each, in the machine's byte order.
 * @throws Error on an architecture that orb does not know
 */
export function seccompFilter(architecture: NodeJS.Architecture = process.arch): Uint8Array {
  const arch = ARCHITECTURES[architecture]
  if (!arch) throw new Error(`no seccomp filter for ${architecture}`)
  const program: Instruction[] = []
  const put = (code: number, value: number, yes = 0, no = 0) => program.push({ code, yes, no, value })
  const refuse = (errno: number) => put(RETURN, RET_ERRNO | errno)
  /** `number` → errno, everything else goes on. */
  const denyCall = (number: number, errno: number) => {
    put(JUMP_EQUAL, number, 0, 1)
    refuse(errno)
  }
  /** The call `number`, when `test` on the low word of an argument holds → errno; leaves the call number loaded. */
  const denyArgument = (number: number, offset: number, test: number, value: number, errno: number) => {
    put(JUMP_EQUAL, number, 0, 4)
    put(LOAD_WORD, offset)
    put(test, value, 0, 1)
    refuse(errno)
    put(LOAD_WORD, OFFSET_NR)
  }

  put(LOAD_WORD, OFFSET_ARCH)
  put(JUMP_EQUAL, arch.audit, 1, 0)
  put(RETURN, RET_KILL_PROCESS)
  put(LOAD_WORD, OFFSET_NR)
  if (architecture === 'x64') {
    put(JUMP_AT_LEAST, X32_BIT, 0, 1)
    refuse(ENOSYS)
  }
  for (const number of IO_URING) denyCall(number, ENOSYS)
  // Its flags lie behind a pointer, where no filter can look: libc falls back to clone.
  denyCall(arch.clone3, ENOSYS)
  // criu restores no memory protection keys: V8, which guards its code with one, would die after a wake. To programs this
  // is a processor without them.
  denyCall(arch.pkeyAlloc, ENOSPC)
  for (const number of Object.values(arch.denied)) denyCall(number, EPERM)
  denyArgument(arch.clone, OFFSET_ARG0_LOW, JUMP_ANY_BIT, NEW_NAMESPACES, EPERM)
  denyArgument(arch.unshare, OFFSET_ARG0_LOW, JUMP_ANY_BIT, NEW_NAMESPACES, EPERM)
  denyArgument(arch.ioctl, OFFSET_ARG1_LOW, JUMP_EQUAL, TIOCSTI, EPERM)
  denyArgument(arch.socket, OFFSET_ARG0_LOW, JUMP_EQUAL, AF_ALG, EPERM)
  denyArgument(arch.socket, OFFSET_ARG0_LOW, JUMP_EQUAL, AF_VSOCK, EPERM)
  put(RETURN, RET_ALLOW)

  const bytes = new DataView(new ArrayBuffer(program.length * 8))
  program.forEach(({ code, yes, no, value }, index) => {
    bytes.setUint16(index * 8, code, true)
    bytes.setUint8(index * 8 + 2, yes)
    bytes.setUint8(index * 8 + 3, no)
    bytes.setUint32(index * 8 + 4, value >>> 0, true)
  })
  return new Uint8Array(bytes.buffer)
}
