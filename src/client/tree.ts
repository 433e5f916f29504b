import { existsSync, lstatSync, readdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import ignore, { type Ignore } from 'ignore'

/** What no computer has a use for, and what should not leave this machine; `!name` in an .orbignore takes it back in. */
const USUALLY_LEFT_OUT = [
  '.git',
  '.hg',
  '.svn',
  '.DS_Store',
  '.env',
  '.env.*',
  '!.env.example',
  'node_modules',
  '__pycache__',
  '*.pyc',
  '.venv',
  'venv',
]
/** In their order: what stands in a later one wins. */
const IGNORE_FILES = ['.gitignore', '.orbignore']
const ANY_EXECUTE = 0o111

export interface LocalFile {
  /** Below the folder, with slashes. */
  path: string
  source: string
  size: number
  executable: boolean
}

export interface Tree {
  files: LocalFile[]
  /** What is neither file nor folder, or a link to a folder or to nothing. */
  skipped: string[]
}

/**
 * The files below a folder, sorted. Links to files count as the files.
 * @param all Whether what .gitignore, .orbignore and the usual list leave out is taken in
 */
export function listTree(folder: string, all = false): Tree {
  const tree: Tree = { files: [], skipped: [] }
  walk(folder, '', all ? [] : [{ base: '', rules: rulesOf(USUALLY_LEFT_OUT) }], all, tree)
  return tree
}

interface Scope {
  /** Folder that the rules are relative to, with a slash at its end; '' is the top. */
  base: string
  rules: Ignore
}

const rulesOf = (rules: string | readonly string[]): Ignore => ignore({ ignorecase: false }).add(rules)

function walk(folder: string, below: string, outer: Scope[], all: boolean, tree: Tree): void {
  const here = join(folder, below)
  const scopes = all ? outer : [...outer, ...scopesOf(here, below)]
  for (const name of readdirSync(here).sort()) {
    const path = below + name
    const source = join(folder, path)
    const link = lstatSync(source)
    const isFolder = link.isDirectory()
    if (isLeftOut(scopes, path, isFolder)) continue
    if (isFolder) {
      walk(folder, `${path}/`, scopes, all, tree)
      continue
    }
    const { isFile, size, mode } = fileAt(source)
    if (isFile) tree.files.push({ path, source, size, executable: (mode & ANY_EXECUTE) !== 0 })
    else tree.skipped.push(path)
  }
}

function fileAt(path: string) {
  const stat = statSync(path, { throwIfNoEntry: false })
  return { isFile: stat?.isFile() ?? false, size: stat?.size ?? 0, mode: stat?.mode ?? 0 }
}

const scopesOf = (here: string, base: string): Scope[] =>
  IGNORE_FILES.map((name) => join(here, name))
    .filter((file) => existsSync(file) && statSync(file).isFile())
    .map((file) => ({ base, rules: rulesOf(readFileSync(file, 'utf8')) }))

/** The innermost rule that says anything decides, as git has it. */
function isLeftOut(scopes: Scope[], path: string, isFolder: boolean): boolean {
  for (const { base, rules } of scopes.toReversed()) {
    const { ignored, unignored } = rules.test(`${path.slice(base.length)}${isFolder ? '/' : ''}`)
    if (ignored || unignored) return ignored
  }
  return false
}
