import { closeSync, openSync } from 'node:fs'
import { HOST_ENVIRONMENT } from './command.ts'

/**
 * A mount namespace with the server's mounts as they were when it was made, but for those of computers and others that
 * criu has no need of. It lasts as long as this object is open.
 */
export class HostView {
  private constructor(private readonly fd: number) {}

  /**
   * @param devices the /dev that all computers share: read-only there
   * @param keep what is mounted on the way to these paths, or below them, is there
   * @throws Error with what orb-init said
   */
  static async make(init: string, devices: string, keep: string[]): Promise<HostView> {
    const child = Bun.spawn([init, 'view', '--dev', devices, ...keep.flatMap((path) => ['--keep', path])], {
      stdin: 'pipe',
      stdout: 'pipe',
      stderr: 'pipe',
      env: HOST_ENVIRONMENT,
    })
    try {
      const { value } = await child.stdout.getReader().read()
      if (value === undefined) throw new Error((await new Response(child.stderr).text()).trim())
      return new HostView(openSync(`/proc/${child.pid}/ns/mnt`, 'r'))
    } finally {
      await child.stdin.end()
      await child.exited
    }
  }

  /** A file that leads to it. */
  get path(): string {
    return `/proc/${process.pid}/fd/${this.fd}`
  }

  close(): void {
    closeSync(this.fd)
  }
}
