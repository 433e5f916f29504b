import { readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

/** Changes with each boot of the machine, proc_sys_kernel(5). */
const BOOT_ID = '/proc/sys/kernel/random/boot_id'

/**
 * What a data directory knows of the boot that its computers came up in. Its notes lie in its run directory; a missing
 * or older one says that nothing of its computers is in the kernel.
 */
export class BootNotes {
  private readonly recoveredFile: string
  private readonly subnetFile: string
  private readonly criuFile: string

  constructor(runDir: string) {
    this.recoveredFile = join(runDir, 'boot_id')
    this.subnetFile = join(runDir, 'subnet')
    this.criuFile = join(runDir, 'criu_works')
  }

  /** Whether the processes that the database tells of were lost with an earlier boot, or taken down. */
  async processesLost(): Promise<boolean> {
    return (await read(this.recoveredFile)) !== (await bootId())
  }

  /** Every agent is accounted for: from here on one without processes has ended by itself. */
  async recovered(): Promise<void> {
    await writeFile(this.recoveredFile, await bootId())
  }

  /** To be called before any rule or address of the subnet is made. */
  async networkUp(subnet: string): Promise<void> {
    await writeFile(this.subnetFile, `${await bootId()} ${subnet}`)
  }

  /** The subnet that this boot's rules and gateway are of, such as `10.42.0.0/16`; null when there are none. */
  async subnet(): Promise<string | null> {
    const [boot, subnet] = (await read(this.subnetFile)).split(' ')
    return boot === (await bootId()) && subnet ? subnet : null
  }

  /** Whether this version of criu was asked in this boot and can work on the kernel: that asking takes 50 ms. */
  async criuWorks(version: string): Promise<boolean> {
    return (await read(this.criuFile)) === `${await bootId()} ${version}`
  }

  async noteCriu(version: string): Promise<void> {
    await writeFile(this.criuFile, `${await bootId()} ${version}`)
  }

  async allDown(): Promise<void> {
    await rm(this.recoveredFile, { force: true })
    await rm(this.subnetFile, { force: true })
  }
}

const bootId = async (): Promise<string> => (await readFile(BOOT_ID, 'utf8')).trim()

const read = async (file: string): Promise<string> => (await readFile(file, 'utf8').catch(() => '')).trim()
