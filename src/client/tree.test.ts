import { afterEach, beforeEach, expect, test } from 'bun:test'
import { chmod, mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { listTree } from './tree.ts'

let folder: string

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'orb-test-'))
})
afterEach(() => rm(folder, { recursive: true, force: true }))

async function make(files: Record<string, string>): Promise<void> {
  for (const [path, content] of Object.entries(files)) {
    await mkdir(dirname(join(folder, path)), { recursive: true })
    await writeFile(join(folder, path), content)
  }
}

const paths = (all = false) => listTree(folder, all).files.map(({ path }) => path)

test('leaves out what no computer needs, and .env', async () => {
  await make({
    'a.js': '',
    '.git/HEAD': '',
    'node_modules/x/i.js': '',
    'sub/node_modules/y.js': '',
    '.env': 'KEY=1',
    'sub/b.js': '',
  })
  expect(paths()).toEqual(['a.js', 'sub/b.js'])
  expect(paths(true)).toContain('.git/HEAD')
})

test('goes by .gitignore and .orbignore of every folder, the innermost first', async () => {
  await make({
    '.gitignore': '*.log\n/build\n',
    'a.log': '',
    'build/x': '',
    'sub/.gitignore': '!keep.log\n',
    'sub/keep.log': '',
    'sub/other.log': '',
    'sub/build/x': '',
    '.orbignore': '!.env\n',
    '.env': '',
  })
  expect(paths()).toEqual(['.env', '.gitignore', '.orbignore', 'sub/.gitignore', 'sub/build/x', 'sub/keep.log'])
})

test('tells what is executable, follows links to files and no others', async () => {
  await make({ 'run.sh': 'x', 'sub/f': '' })
  await chmod(join(folder, 'run.sh'), 0o755)
  await symlink('run.sh', join(folder, 'link'))
  await symlink('sub', join(folder, 'linked'))
  await symlink('nowhere', join(folder, 'dead'))
  const { files, skipped } = listTree(folder)
  expect(files.map(({ path, size, executable }) => [path, size, executable])).toEqual([
    ['link', 1, true],
    ['run.sh', 1, true],
    ['sub/f', 0, false],
  ])
  expect(skipped).toEqual(['dead', 'linked'])
})
