import { readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs'
import { readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { log } from '../log.ts'
import type { Cgroups } from './cgroup.ts'
import { run } from './command.ts'
import { killProcess } from './criu.ts'
import { runningCriu } from './criu-processes.ts'
import { isDiskKept, mountPoints, removeDisk } from './disk.ts'
import { errnoCode } from './libc.ts'
import type { Network } from './network.ts'
import { computerPaths, type DataPaths } from './paths.ts'

/*
 * What is left on the machine of computers that the database does not know (any more). Other orbs may run here: a thing
 * counts as this one's only by what cannot be theirs, a path below the data directory, a program unpacked there, or an
 * address of this orb's subnet.
 */

export interface StrayHost {
  data: DataPaths
  /** Directory of the programs that this orb runs. */
  programs: string
  cgroups: Cgroups
  network: Network
  /** Ends everything in a computer and takes its kernel objects away. */
  down(id: string, shortId: string): Promise<void>
}

/** Asked after a look at what is there: whatever has been made since then has had its row before. */
export type Known = () => Set<string>

export type Swept = Record<
  'computers' | 'directories' | 'loopDevices' | 'processes' | 'runtimes' | 'spoolFiles',
  number
>

const SHORT_ID_LENGTH = 8
const NAME = /^orb-([0-9a-f]{8})$/

/**
 * Removes what belongs to no known computer (ids), but for the disks and images of those that nobody deleted: the database
 * may be an older one. Something that cannot be removed is logged and left for the next time.
 */
export async function removeStrays(host: StrayHost, known: Known): Promise<Swept> {
  const swept: Swept = { computers: 0, directories: 0, loopDevices: 0, processes: 0, runtimes: 0, spoolFiles: 0 }
  const look = {
    directories: await inTurn(() => directoriesOf(host.data)),
    loops: await inTurn(() => loopDevices(host.data)),
    criu: await inTurn(() => runningCriu(host.data.root)),
    links: await inTurn(() => linksOf(host)),
    started: await inTurn(() => startedBy(host)),
    mounts: [...(await mountPoints())].flatMap((place) => computerOf(host.data.computers, place) ?? []),
  }
  const ids = known()
  const shortIds = new Set([...ids].map((id) => id.slice(0, SHORT_ID_LENGTH)))
  const attempt = async (what: string, work: () => Promise<unknown> | unknown, count: keyof Swept) => {
    try {
      await work()
      swept[count]++
    } catch (error) {
      log('warn', 'a leftover cannot be removed', { leftover: what, error })
    }
  }

  for (const { pid, dir } of look.criu) {
    const id = computerOf(host.data.checkpoints, dir)
    if (id !== null && !ids.has(id)) await attempt(`criu ${pid}`, () => killProcess(pid), 'processes')
  }
  const inKernel = new Map([...look.links, ...look.started].map((shortId) => [shortId, shortId]))
  for (const id of [...look.mounts, ...look.directories]) {
    if (!ids.has(id) && (look.mounts.includes(id) || inKernel.has(id.slice(0, SHORT_ID_LENGTH))))
      inKernel.set(id.slice(0, SHORT_ID_LENGTH), id)
  }
  for (const [shortId, id] of inKernel) {
    if (shortIds.has(shortId)) continue
    await attempt(`computer ${shortId}`, () => takeDown(host, id, shortId), 'computers')
  }
  for (const { device, id } of look.loops) {
    // Most went with their mount.
    if (!ids.has(id) && loopDevices(host.data).some((loop) => loop.device === device))
      await attempt(device, () => run(['losetup', '-d', device]), 'loopDevices')
  }
  for (const id of look.directories) {
    if (ids.has(id)) continue
    if (isDiskKept(computerPaths(host.data, id)))
      log('warn', 'a computer that the database does not know is kept', { id })
    else await attempt(id, () => removeDisk(computerPaths(host.data, id)), 'directories')
  }
  for (const name of await spoolFiles(host.data)) {
    await attempt(name, () => rmSync(join(host.data.spool, name), { force: true }), 'spoolFiles')
  }
  for (const dir of await inTurn(() => unusedRuntimes(host)))
    await attempt(dir, () => rm(dir, { recursive: true }), 'runtimes')
  return swept
}

/** Whether there are disks of computers that are not known (ids) and were not deleted: an older database may be in place. */
export const keepsUnknown = (data: DataPaths, known: Known): boolean => {
  const there = directoriesOf(data)
  const ids = known()
  return there.some((id) => !ids.has(id) && isDiskKept(computerPaths(data, id)))
}

/** With a thousand computers each look takes tens of ms: between two of them others have their turn. */
const inTurn = <T>(look: () => T): Promise<T> => Bun.sleep(0).then(look)

async function takeDown(host: StrayHost, id: string, shortId: string): Promise<void> {
  await host.down(id, shortId)
  const { dir } = computerPaths(host.data, id)
  const places = [...(await mountPoints())].filter((place) => place.startsWith(`${dir}/`))
  for (const place of places.sort().reverse()) await run(['umount', place])
}

/** Short ids of computers that have a link with an address of this orb. */
const linksOf = ({ network }: StrayHost): string[] =>
  list('/sys/class/net')
    .filter((name) => NAME.test(name) && network.owns(name))
    .flatMap(shortIdsIn)

/** Of those that have a pid 1 that runs this orb's program. */
const startedBy = ({ data, cgroups }: StrayHost): string[] =>
  cgroups
    .computers()
    .filter((name) => NAME.test(name) && cgroups.processes(name, 'init').some((pid) => isOurs(data, pid)))
    .flatMap(shortIdsIn)

const shortIdsIn = (name: string): string[] => NAME.exec(name)?.slice(1) ?? []

const isOurs = (data: DataPaths, pid: number): boolean => programOf(pid).startsWith(`${data.root}/runtime/`)

/** Ids that have a directory. */
const directoriesOf = (data: DataPaths): string[] => [...new Set([...list(data.computers), ...list(data.checkpoints)])]

/** The computer that a path below `parent` belongs to. */
function computerOf(parent: string, path: string): string | null {
  return path.startsWith(`${parent}/`) ? (path.slice(parent.length + 1).split('/')[0] ?? null) : null
}

function loopDevices(data: DataPaths): { device: string; id: string }[] {
  return list('/sys/block').flatMap((name) => {
    const file = name.startsWith('loop') ? read(`/sys/block/${name}/loop/backing_file`).trim() : ''
    const id = computerOf(data.computers, file)
    return id === null ? [] : [{ device: `/dev/${name}`, id }]
  })
}

/** A spool file has its name for a moment only: those of another process are of one that was killed in it. */
async function spoolFiles(data: DataPaths): Promise<string[]> {
  const names = await readdir(data.spool).catch(() => [])
  return names.filter((name) => /^hold-\d+-\d+$/.test(name) && !name.startsWith(`hold-${process.pid}-`))
}

/** Programs of other versions of orb that nobody runs any more: computers keep the pid 1 that they were started with. */
function unusedRuntimes({ data, programs }: StrayHost): string[] {
  const parent = join(data.root, 'runtime')
  const running = list('/proc').flatMap((pid) => (/^\d+$/.test(pid) ? [programOf(Number(pid))] : []))
  return list(parent)
    .map((name) => join(parent, name))
    .filter((dir) => dir !== programs && !running.some((program) => program.startsWith(`${dir}/`)))
}

function programOf(pid: number): string {
  try {
    return readlinkSync(`/proc/${pid}/exe`)
  } catch {
    return ''
  }
}

function list(dir: string): string[] {
  try {
    return readdirSync(dir)
  } catch (thrown) {
    if (errnoCode(thrown) === 'ENOENT') return []
    throw thrown
  }
}

function read(file: string): string {
  try {
    return readFileSync(file, 'utf8')
  } catch (thrown) {
    if (['ENOENT', 'ENXIO', 'ENODEV'].includes(errnoCode(thrown) ?? '')) return ''
    throw thrown
  }
}
