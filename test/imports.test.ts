import { describe, expect, test } from 'bun:test'
import { dirname, join, normalize } from 'node:path'
import { dependencies } from '../package.json'

const SRC = join(import.meta.dir, '../src')

/** Small files in src/ itself that know no room: every room may use them, and they may use each other. */
const SHARED = ['cidr.ts', 'addresses.ts', 'errors.ts', 'log.ts', 'time.ts', 'version.ts']

/** What a file of each room, or of src/ itself, may import beside its own room and what is shared. */
const MAY_IMPORT: Record<string, string[]> = {
  'main.ts': ['api', 'client', 'services', 'proxy', 'runtime', 'store', 'config.ts'],
  api: ['services', 'console', 'config.ts'],
  services: ['proxy', 'runtime', 'store', 'config.ts'],
  client: [],
  proxy: ['runtime', 'store'],
  runtime: [],
  store: [],
  console: [],
  'config.ts': [],
  ...Object.fromEntries(SHARED.map((file) => [file, []])),
}

/** Files outside src/ that one file takes in when it is built. */
const FROM_OUTSIDE: Record<string, string[]> = {
  'version.ts': ['package.json'],
  'console/terminal-page.ts': ['build/console/terminal.css', 'build/console/terminal.js'],
  'runtime/bundle.ts': ['build/runtime.manifest', 'build/runtime.tar.zst'],
}

const IMPORT_FORMS = [
  /^\s*(?:import|export)\b[^'"`;]*?\bfrom\s*(['"])([^'"\n]+)\1/gm,
  /^\s*import\s*(['"])([^'"\n]+)\1/gm,
  /\b(?:import|require)\s*\(\s*(['"`])([^'"`\n]+)\1/g,
]

/** Every module that the source names, those named for their types only too. */
const importsOf = (source: string): string[] =>
  IMPORT_FORMS.flatMap((form) => [...source.matchAll(form)].flatMap((match) => match[2] ?? []))

const roomOf = (file: string): string => file.split('/')[0] ?? file

/** Why `file` (a path below src/) must not import `specifier`; undefined where it may. */
function complaint(file: string, specifier: string): string | undefined {
  if (!specifier.startsWith('.')) return packageComplaint(specifier)
  const target = normalize(join(dirname(file), specifier))
  if (/\.(test|fixture)\.tsx?$/.test(target)) return 'is for tests only'
  if (target.startsWith('../')) {
    const allowed = FROM_OUTSIDE[file] ?? []
    return allowed.includes(target.slice('../'.length)) ? undefined : 'lies outside src/'
  }
  if (/^[^/]+\/types\.ts$/.test(target)) return undefined
  const from = roomOf(file)
  const to = roomOf(target)
  if (from === to) return undefined
  const allowed = MAY_IMPORT[from]
  if (!allowed) return `${from} is a room that the architecture does not know`
  return allowed.includes(to) || SHARED.includes(to) ? undefined : `${from} must not import from ${to}`
}

function packageComplaint(specifier: string): string | undefined {
  if (specifier === 'bun:test') return 'is for tests only'
  if (/^(bun|node):/.test(specifier) || specifier === 'bun') return undefined
  const name = specifier
    .split('/')
    .slice(0, specifier.startsWith('@') ? 2 : 1)
    .join('/')
  return name in dependencies ? undefined : 'is no dependency of package.json'
}

test('every import in src points downward', async () => {
  const files = [...new Bun.Glob('**/*.{ts,tsx}').scanSync(SRC)].filter((file) => !/\.test\.tsx?$|\.d\.ts$/.test(file))
  expect(files).toContain('runtime/bundle.ts')
  const complaints: string[] = []
  for (const file of files.sort()) {
    for (const specifier of importsOf(await Bun.file(join(SRC, file)).text())) {
      const why = complaint(file, specifier)
      if (why) complaints.push(`src/${file} imports ${specifier}: ${why}`)
    }
  }
  expect(complaints).toEqual([])
})

describe('the rule itself', () => {
  const cases: [file: string, specifier: string, allowed: boolean][] = [
    ['api/cloud/computers.ts', '../../services/computers.ts', true],
    ['api/cloud/computers.ts', '../auth.ts', true],
    ['api/cloud/computers.ts', '../../store/computers.ts', false],
    ['api/cloud/computers.ts', '../../store/types.ts', true],
    ['services/agents.ts', '../runtime/criu.ts', true],
    ['services/agents.ts', '../api/auth.ts', false],
    ['client/api.ts', '../version.ts', true],
    ['client/api.ts', '../services/agents.ts', false],
    ['services/agents.ts', '../client/api.ts', false],
    ['proxy/llm.ts', '../services/agents.ts', false],
    ['proxy/llm.ts', '../services/types.ts', true],
    ['runtime/criu.ts', '../store/db.ts', false],
    ['runtime/criu.ts', '../config.ts', false],
    ['runtime/criu.ts', '../errors.ts', true],
    ['store/db.ts', '../runtime/criu.ts', false],
    ['store/db.ts', '../main.ts', false],
    ['errors.ts', './log.ts', true],
    ['errors.ts', './config.ts', false],
    ['errors.ts', './store/db.ts', false],
    ['store/db.ts', './db.test.ts', false],
    ['store/db.ts', '../../test/helpers.ts', false],
    ['store/db.ts', '../../build/runtime.manifest', false],
    ['runtime/bundle.ts', '../../build/runtime.manifest', true],
    ['attic/old.ts', '../errors.ts', false],
    ['store/db.ts', 'bun:sqlite', true],
    ['store/db.ts', 'zod/v4', true],
    ['store/db.ts', 'bun:test', false],
    ['store/db.ts', 'openai', false],
    ['api/openapi.ts', '@elysiajs/swagger', true],
  ]
  for (const [file, specifier, allowed] of cases) {
    test(`${file} ${allowed ? 'may' : 'must not'} import ${specifier}`, () => {
      expect(complaint(file, specifier) === undefined).toBe(allowed)
    })
  }

  test('sees every form of import', () => {
    const source = [
      "import a from './a.ts'",
      "import type { B } from './b.ts'",
      "import {\n  c,\n  type C,\n} from './c.ts'",
      "export * from './d.ts'",
      "import './e.ts'",
      "const f = await import('./f.ts')",
      "type G = import('./g.ts').G",
      "import h from './h.zst' with { type: 'file' }",
      'const text = "taken from \'./no.ts\'"',
      " * import x from './example.ts'",
    ].join('\n')
    const seen = importsOf(source).sort()
    expect(seen).toEqual(['./a.ts', './b.ts', './c.ts', './d.ts', './e.ts', './f.ts', './g.ts', './h.zst'])
  })
})

test('every room and top-level file of src is known to the rule', () => {
  const found = [...new Bun.Glob('*').scanSync({ cwd: SRC, onlyFiles: false })].filter(
    (name) => !/\.d\.ts$|\.test\.ts$/.test(name),
  )
  const unknown = found.filter((name) => !(name in MAY_IMPORT))
  expect(unknown).toEqual([])
})
