import { statSync } from 'node:fs'
import { basename } from 'node:path'
import { Directory } from '../answers.ts'
import { type Api, filePath } from '../api.ts'
import { pickAction, readArguments } from '../arguments.ts'
import { COMMON_HELP, type Command } from '../command.ts'
import { ApiFailure, CommandFailure } from '../failure.ts'
import { answer, note, plural, sizeText, table } from '../output.ts'
import { Progress } from '../progress.ts'
import { connect, findComputer } from '../session.ts'
import { download, intoFolder, listRemote, makeExecutable, openRemote, putFile, save, upload } from '../transfer.ts'
import { listTree } from '../tree.ts'

const STREAM = '-'
const ANY_EXECUTE = 0o111

export const files: Command = {
  name: 'files',
  summary: 'list, fetch and put files of a computer',
  help: `orb files ls COMPUTER [PATH]            list a directory                [/]
orb files pull COMPUTER PATH [LOCAL]    fetch a file or a directory     [its name, here]
orb files push COMPUTER LOCAL PATH      put a file or a folder there

A folder's content becomes the content of the other one; a file goes into a folder that is there, or where the
target ends with /. - as LOCAL is standard output or standard input. Links to files are pushed as files, other links are left out,
and pull leaves out all links. Files work beside an agent that sleeps, without waking it.

${COMMON_HELP}`,
  async run(argv) {
    const [action, rest] = pickAction(argv, ['ls', 'pull', 'push'], null)
    if (action === 'ls') return list(rest)
    return action === 'pull' ? pull(rest) : push(rest)
  },
}

async function list(argv: string[]): Promise<number> {
  const { values, positionals } = readArguments(argv, ['COMPUTER', 'PATH?'], {})
  const api = connect(values)
  const { id } = await findComputer(api, positionals[0] ?? '')
  const path = positionals[1] ?? '/'
  const found = await openRemote(api, id, path)
  if (found.kind === 'file') {
    await found.response.body?.cancel()
    throw new CommandFailure(`${path} is a file; orb files pull fetches it`)
  }
  const { listing } = found
  answer(values.json, listing, () =>
    table(
      ['MODE', 'SIZE', 'CHANGED', 'NAME'],
      listing.files.map(({ name, type, size, mode, mtime }) => [
        mode,
        type === 'file' ? sizeText(size) : type,
        mtime,
        type === 'directory' ? `${name}/` : name,
      ]),
      'empty',
    ),
  )
  if (listing.truncated) note('orb: there are more than the server lists')
  return 0
}

async function pull(argv: string[]): Promise<number> {
  const { values, positionals } = readArguments(argv, ['COMPUTER', 'PATH', 'LOCAL?'], {})
  const [wanted = '', path = '', local] = positionals
  const api = connect(values)
  const { id } = await findComputer(api, wanted)
  const found = await openRemote(api, id, path)
  if (found.kind === 'file') {
    if (local === STREAM) {
      for await (const chunk of found.response.body ?? []) await Bun.write(Bun.stdout, chunk)
      return 0
    }
    const target = intoFolder(local ?? '.', basename(path))
    await save(found.response, target, null)
    answer(values.json, { path: target, files: 1 }, () => target)
    return 0
  }
  if (local === STREAM) throw new CommandFailure(`${path} is a directory`)
  const target = local ?? (basename(path) || '.')
  const tree = await listRemote(api, id, path, found.listing)
  await withProgress((watch) => download(api, id, path, tree, target, watch))
  tellSkipped(tree.skipped)
  answer(
    values.json,
    { path: target, files: tree.files.length, skipped: tree.skipped },
    () => `${plural(tree.files.length, 'file')} in ${target}`,
  )
  return 0
}

async function push(argv: string[]): Promise<number> {
  const { values, positionals } = readArguments(argv, ['COMPUTER', 'LOCAL', 'PATH'], {})
  const [wanted = '', local = '', path = ''] = positionals
  const api = connect(values)
  const { id } = await findComputer(api, wanted)
  const stat = local === STREAM ? null : statSync(local, { throwIfNoEntry: false })
  if (stat === undefined) throw new CommandFailure(`there is no ${local}`)
  if (stat?.isDirectory()) {
    const tree = listTree(local, true)
    await withProgress((watch) => upload(api, id, tree.files, path, watch))
    tellSkipped(tree.skipped)
    answer(
      values.json,
      { path, files: tree.files.length, skipped: tree.skipped },
      () => `${plural(tree.files.length, 'file')} in ${path}`,
    )
    return 0
  }
  const target = stat ? await remoteTarget(api, id, path, basename(local)) : path
  await putFile(api, id, target, stat ? Bun.file(local) : Bun.stdin.stream())
  if (stat && (stat.mode & ANY_EXECUTE) !== 0) await makeExecutable(api, id, [`/${target.replace(/^\/+/, '')}`])
  answer(values.json, { path: target, files: 1 }, () => target)
  return 0
}

/** Into a directory that is there, or that is meant to be one. */
async function remoteTarget(api: Api, id: string, path: string, name: string): Promise<string> {
  if (path.endsWith('/')) return `${path}${name}`
  try {
    // A file answers a range of itself, a directory its list.
    const response = await api.send('GET', filePath(id, path), { headers: { range: 'bytes=0-0' }, alsoFine: [416] })
    const isFolder = response.ok && Directory.safeParse(await response.json().catch(() => null)).success
    return isFolder ? `${path}/${name}` : path
  } catch (thrown) {
    if (thrown instanceof ApiFailure && thrown.status === 404) return path
    throw thrown
  }
}

async function withProgress(
  run: (watch: (done: number, total: number, path: string) => void) => Promise<void>,
): Promise<void> {
  const progress = new Progress()
  try {
    await run((done, total) => progress.doing(`${done} of ${plural(total, 'file')}`))
  } finally {
    progress.stop()
  }
}

function tellSkipped(paths: string[]): void {
  for (const path of paths) note(`orb: ${path} is left out: it is a link, or no file`)
}
