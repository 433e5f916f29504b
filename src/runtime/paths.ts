import { join } from 'node:path'

/** Where things are below the data directory. */
export interface DataPaths {
  root: string
  computers: string
  checkpoints: string
  images: string
  /** Bodies of LLM calls that are open, and answers that wait for their agent. */
  spool: string
  /** What is valid until the next boot: criu's probe of the kernel, the compiled seccomp filter. */
  run: string
  /** The swap file, where the settings want one. */
  swap: string
}

export const dataPaths = (root: string): DataPaths => ({
  root,
  computers: join(root, 'computers'),
  checkpoints: join(root, 'checkpoints'),
  images: join(root, 'images'),
  spool: join(root, 'spool'),
  run: join(root, 'run'),
  swap: join(root, 'orb.swap'),
})

export interface ComputerPaths {
  dir: string
  /** The disk image, and where it is mounted. */
  disk: string
  mount: string
  /** The root as the computer sees it, mounted on the host. */
  rootfs: string
  /** orb's own lines in the computer's log. */
  log: string
  checkpoints: string
}

export function computerPaths(data: DataPaths, id: string): ComputerPaths {
  const dir = join(data.computers, id)
  return {
    dir,
    disk: join(dir, 'disk.img'),
    mount: join(dir, 'disk'),
    rootfs: join(dir, 'rootfs'),
    log: join(dir, 'orb.log'),
    checkpoints: join(data.checkpoints, id),
  }
}

/** Name of every kernel object of a computer: netns, host end of its veth, cgroup. */
export const objectName = (shortId: string): string => `orb-${shortId}`
