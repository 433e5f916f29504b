import { afterAll, describe, expect, test } from 'bun:test'
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { OrbError } from '../../errors.ts'
import { type OrbConfig, parseInline } from '../orb-toml.ts'
import { agentStart, checkExecutable } from './start.ts'

const ENV = { PATH: '/usr/bin', SECRET: 's' }
const BUILD_DIR = '/agent/code/app'

const made: string[] = []
afterAll(() => {
  for (const dir of made) rmSync(dir, { recursive: true })
})

/** A root directory with files: path → mode. A mode of null makes a directory. */
function rootWith(files: Record<string, number | null>): string {
  const root = mkdtempSync(join(tmpdir(), 'orb-start-'))
  made.push(root)
  mkdirSync(join(root, 'agent/code'), { recursive: true })
  for (const [path, mode] of Object.entries(files)) {
    mkdirSync(mode === null ? join(root, path) : dirname(join(root, path)), { recursive: true })
    if (mode === null) continue
    writeFileSync(join(root, path), '#!/bin/sh\n')
    chmodSync(join(root, path), mode)
  }
  return root
}

interface Agent {
  lang?: OrbConfig['agent']['lang']
  entry: string
  args?: string[]
  build?: boolean
}

function config({ lang = 'node', entry, args = [], build = false }: Agent): OrbConfig {
  const sent = {
    agent: { name: 'a', lang, entry, args },
    ...(build ? { build: { steps: ['true'], working_dir: BUILD_DIR } } : {}),
  }
  return parseInline(sent, () => false).config
}

describe('Orb Cloud contract §4, Start', () => {
  const table: [string, Agent, Record<string, number | null>, { argv: string[]; cwd: string }][] = [
    [
      'node with its arguments, from /agent/code',
      { entry: 'a.js', args: ['--x', 'b c', ''] },
      { 'agent/code/a.js': 0o644 },
      { argv: ['node', 'a.js', '--x', 'b c', ''], cwd: '/agent/code' },
    ],
    [
      'python is python3',
      { lang: 'python', entry: 'src/a.py' },
      { 'agent/code/src/a.py': 0o644 },
      { argv: ['python3', 'src/a.py'], cwd: '/agent/code' },
    ],
    [
      'the directory of the build holds it',
      { entry: 'a.js', build: true },
      { 'agent/code/app/a.js': 0o644 },
      { argv: ['node', 'a.js'], cwd: BUILD_DIR },
    ],
    [
      '/agent/code is looked at first',
      { entry: 'a.js', build: true },
      { 'agent/code/a.js': 0o644, 'agent/code/app/a.js': 0o644 },
      { argv: ['node', 'a.js'], cwd: '/agent/code' },
    ],
    [
      'without [build] its directory does not count',
      { entry: 'a.js' },
      { 'agent/code/app/a.js': 0o644 },
      { argv: ['node', 'a.js'], cwd: '/agent/code' },
    ],
    [
      'in neither: where it runs is /agent/code, and the interpreter says what is missing',
      { entry: 'a.js', build: true },
      {},
      { argv: ['node', 'a.js'], cwd: '/agent/code' },
    ],
    [
      'absolute: taken as it is, runs in /agent/code',
      { entry: '/opt/a.js', build: true },
      { 'opt/a.js': 0o644, 'agent/code/app/opt/a.js': 0o644 },
      { argv: ['node', '/opt/a.js'], cwd: '/agent/code' },
    ],
    [
      'a binary beside which PATH has another of the name',
      { lang: 'go', entry: 'agent', args: ['-v'] },
      { 'agent/code/agent': 0o755, 'usr/bin/agent': 0o755 },
      { argv: ['./agent', '-v'], cwd: '/agent/code' },
    ],
    [
      'a binary of the build',
      { lang: 'rust', entry: 'target/release/agent', build: true },
      { 'agent/code/app/target/release/agent': 0o755 },
      { argv: ['target/release/agent'], cwd: BUILD_DIR },
    ],
    [
      'a binary without a directory, of the build',
      { lang: 'binary', entry: 'agent', build: true },
      { 'agent/code/app/agent': 0o755 },
      { argv: ['./agent'], cwd: BUILD_DIR },
    ],
    [
      'a binary that only PATH holds',
      { lang: 'binary', entry: 'codex', args: ['run'], build: true },
      { 'usr/bin/codex': 0o755 },
      { argv: ['codex', 'run'], cwd: '/agent/code' },
    ],
    [
      'an absolute binary',
      { lang: 'binary', entry: '/bin/tool', build: true },
      { 'bin/tool': 0o755 },
      { argv: ['/bin/tool'], cwd: '/agent/code' },
    ],
  ]
  test.each(table)('%s', async (_, agent, files, expected) => {
    expect(await agentStart(rootWith(files), config(agent), ENV)).toEqual({ ...expected, env: ENV })
  })

  test('a link is followed within the computer, never to the host', async () => {
    const root = rootWith({ 'opt/real/agent': 0o755 })
    symlinkSync('/opt/real/agent', join(root, 'agent/code/agent'))
    expect((await agentStart(root, config({ lang: 'binary', entry: 'agent' }), ENV)).argv).toEqual(['./agent'])
    const outward = rootWith({})
    const hostOnly = join(root, 'opt/real/agent')
    symlinkSync(hostOnly, join(outward, 'agent/code/agent'))
    expect((await agentStart(outward, config({ lang: 'binary', entry: 'agent' }), ENV)).argv).toEqual(['agent'])
  })
})

describe('what is certain not to start is refused', () => {
  const check = async (agent: Agent, files: Record<string, number | null>): Promise<unknown> => {
    const root = rootWith(files)
    const parsed = config(agent)
    return checkExecutable(root, parsed, await agentStart(root, parsed, ENV)).catch((thrown) => thrown)
  }

  test.each<[string, Agent, Record<string, number | null>, string]>([
    ['not executable', { lang: 'binary', entry: 'a' }, { 'agent/code/a': 0o644 }, 'a is not executable'],
    ['a directory', { lang: 'binary', entry: 'a' }, { 'agent/code/a': null }, 'a is not executable'],
    ['absolute and absent', { lang: 'go', entry: '/opt/a' }, {}, '/opt/a does not exist in the computer'],
    ['relative and absent', { lang: 'rust', entry: 'bin/a' }, {}, 'bin/a does not exist in the computer'],
  ])('%s', async (_, agent, files, message) => {
    const thrown = await check(agent, files)
    expect(thrown).toBeInstanceOf(OrbError)
    expect(thrown).toMatchObject({ code: 'spawn_failed', message: `agent.entry: ${message}` })
  })

  test.each<[string, Agent, Record<string, number | null>]>([
    ['an executable', { lang: 'binary', entry: 'a' }, { 'agent/code/a': 0o755 }],
    ['one that only its owner may run', { lang: 'binary', entry: 'a' }, { 'agent/code/a': 0o700 }],
    ['what PATH may hold', { lang: 'binary', entry: 'a' }, {}],
    ['what the interpreter will complain of itself', { lang: 'node', entry: 'a.js' }, {}],
  ])('%s is let through', async (_, agent, files) => {
    expect(await check(agent, files)).toBeUndefined()
  })
})
