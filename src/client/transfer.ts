import { chmodSync, existsSync, mkdirSync, renameSync, rmSync, statSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { Directory, Executed } from './answers.ts'
import { type Api, computerPath, filePath } from './api.ts'
import { ApiFailure, CommandFailure } from './failure.ts'
import type { LocalFile } from './tree.ts'

/** Files on their way at once: they share connections and do not drown the server. */
const PARALLEL = 8
/** Of one shell command; the contract has room for 128 KiB (§20). */
const COMMAND_CHARACTERS = 64 * 1024
const PERMISSIONS = 0o777

export type TransferWatch = (done: number, total: number, path: string) => void

/** Runs `each` for all items, several at a time; the first failure ends it. */
async function inParallel<T>(items: T[], each: (item: T) => Promise<void>): Promise<void> {
  const queue = items.values()
  const work = async () => {
    for (const item of queue) await each(item)
  }
  await Promise.all(Array.from({ length: Math.min(PARALLEL, items.length) }, work))
}

const under = (folder: string, path: string): string => `${folder.replace(/\/+$/, '')}/${path}`

/** Puts files below a folder of a computer, those that are executable executable. */
export async function upload(
  api: Api,
  id: string,
  files: LocalFile[],
  folder: string,
  watch: TransferWatch = () => undefined,
): Promise<void> {
  let done = 0
  await inParallel(files, async ({ path, source }) => {
    await putFile(api, id, under(folder, path), Bun.file(source))
    watch(++done, files.length, path)
  })
  await makeExecutable(
    api,
    id,
    files.filter(({ executable }) => executable).map(({ path }) => under(folder, path)),
  )
}

export async function putFile(api: Api, id: string, path: string, body: BodyInit): Promise<void> {
  try {
    const response = await api.send('PUT', filePath(id, path), {
      body,
      headers: { 'content-type': 'application/octet-stream' },
    })
    await response.body?.cancel()
  } catch (thrown) {
    if (thrown instanceof ApiFailure) throw new ApiFailure(thrown.status, thrown.code, `${path}: ${thrown.message}`)
    throw thrown
  }
}

/** Files are written without leave to be executed: the API knows no mode. */
export async function makeExecutable(api: Api, id: string, paths: string[]): Promise<void> {
  let command = ''
  const run = async () => {
    if (command === '') return
    const done = await api.ask(Executed, 'POST', computerPath(id, 'exec'), { command: `chmod +x --${command}` })
    if (done.exit_code !== 0) throw new CommandFailure(`files could not be made executable: ${done.stderr.trim()}`)
    command = ''
  }
  for (const path of paths) {
    if (command.length + path.length > COMMAND_CHARACTERS) await run()
    command += ` ${quoted(path)}`
  }
  await run()
}

/** A word of a shell's command line. */
export const quoted = (word: string): string =>
  /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`

export interface RemoteFile {
  path: string
  mode: number | null
  size: number
}

export interface RemoteTree {
  files: RemoteFile[]
  folders: string[]
  /** Links and what is no file: links that a computer made must not lead anywhere on this machine. */
  skipped: string[]
}

/** The listing of a directory, or the answer that holds a file. */
export async function openRemote(api: Api, id: string, path: string) {
  const response = await api.send('GET', filePath(id, path))
  const isFile = response.headers.get('content-type')?.startsWith('application/octet-stream') ?? false
  return isFile
    ? ({ kind: 'file', response } as const)
    : ({ kind: 'folder', listing: await api.read(Directory, response) } as const)
}

/** Everything below a folder of a computer, `listing` being the folder's own. */
export async function listRemote(
  api: Api,
  id: string,
  folder: string,
  listing: (typeof Directory)['_zod']['output'],
): Promise<RemoteTree> {
  const tree: RemoteTree = { files: [], folders: [], skipped: [] }
  const waiting = [{ below: '', entries: listing }]
  for (let next = waiting.pop(); next; next = waiting.pop()) {
    if (next.entries.truncated)
      throw new CommandFailure(`${under(folder, next.below)} has too many entries to be listed`)
    for (const { name, type, size, mode } of next.entries.files) {
      if (!isName(name)) throw new CommandFailure(`the server names a file ${JSON.stringify(name)}`)
      const path = next.below + name
      if (type === 'file') tree.files.push({ path, size, mode: mode ? Number.parseInt(mode, 8) & PERMISSIONS : null })
      else if (type === 'directory') {
        tree.folders.push(path)
        const entries = await api.ask(Directory, 'GET', filePath(id, under(folder, path)))
        waiting.push({ below: `${path}/`, entries })
      } else tree.skipped.push(path)
    }
  }
  return tree
}

const isName = (name: string): boolean => name !== '' && name !== '.' && name !== '..' && !/[/\0]/.test(name)

export async function download(
  api: Api,
  id: string,
  folder: string,
  tree: RemoteTree,
  target: string,
  watch: TransferWatch = () => undefined,
): Promise<void> {
  for (const path of ['', ...tree.folders]) mkdirSync(join(target, path), { recursive: true })
  let done = 0
  await inParallel(tree.files, async ({ path, mode }) => {
    const response = await api.send('GET', filePath(id, under(folder, path)))
    await save(response, join(target, path), mode)
    watch(++done, tree.files.length, path)
  })
}

/** Writes an answer's bytes to a file, which is there whole or not at all. `mode` null: as a new file has it. */
export async function save(response: Response, path: string, mode: number | null): Promise<void> {
  const part = join(dirname(path), `.${basename(path)}.orb-${process.pid}`)
  try {
    rmSync(part, { force: true })
    const size = await drain(response, part)
    const wanted = response.headers.get('content-length')
    if (mode !== null) chmodSync(part, mode & ~process.umask())
    if (wanted !== null && Number(wanted) !== size)
      throw new CommandFailure(`${path}: only ${size} of ${wanted} bytes came`)
    renameSync(part, path)
  } finally {
    rmSync(part, { force: true })
  }
}

/** Bytes that were written. */
async function drain(response: Response, path: string): Promise<number> {
  const sink = Bun.file(path).writer()
  let size = 0
  try {
    for await (const chunk of response.body ?? []) {
      size += chunk.length
      sink.write(chunk)
      await sink.flush()
    }
  } finally {
    await sink.end()
  }
  return size
}

/** Where a file of this name goes: into `target`, if that is a folder. */
export const intoFolder = (target: string, name: string): string =>
  target.endsWith('/') || (existsSync(target) && statSync(target).isDirectory()) ? join(target, name) : target
