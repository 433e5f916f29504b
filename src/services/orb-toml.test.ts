import { describe, expect, test } from 'bun:test'
import { OrbError } from '../errors.ts'
import {
  buildFingerprint,
  fromJson,
  type OrbConfig,
  type ParsedConfig,
  parseInline,
  parseToml,
  summary,
  toJson,
} from './orb-toml.ts'

const never = (): boolean => false
const toml = (text: string, plainHttpAllowed: (url: URL) => boolean = never): ParsedConfig =>
  parseToml(Buffer.from(text), plainHttpAllowed)
const config = (text: string): OrbConfig => toml(text).config
const problemsOf = (parse: () => unknown, code: string): unknown[] => {
  try {
    parse()
  } catch (thrown) {
    if (!(thrown instanceof OrbError)) throw thrown
    const details = thrown.fields['details']
    if (!Array.isArray(details)) throw new Error('no details')
    expect(thrown.code as string).toBe(code)
    expect(details[0]).toBe(thrown.message)
    return details
  }
  return []
}
const problems = (text: string): unknown[] => problemsOf(() => toml(text), 'invalid_toml')

const placeholder = (name: string): string => `\${${name}}`
const AGENT = '[agent]\nname = "a"\nlang = "node"\nentry = "main.js"\n'

describe('what is accepted', () => {
  test('the least there can be', () => {
    const { raw, ...rest } = config(AGENT)
    expect(rest).toEqual({
      agent: { name: 'a', lang: 'node', entry: 'main.js', args: [], env: {} },
      source: null,
      build: null,
      llm: { baseUrl: null, provider: 'multi' },
      ports: [],
      resources: { runtimeMb: null, diskMb: null },
      lifecycle: { sleep: 'auto', idleTimeoutMs: null },
      network: { outbound: null },
    })
    expect(raw).toEqual({ agent: { name: 'a', lang: 'node', entry: 'main.js' } })
  })

  test('every key of every era', () => {
    const { config: read, warnings } = toml(`
idle_timeout = "1h"
future = { ignored = true }
[agent]
name = "reviewer"
lang = "python"
entry = "/agent/code/main.py"
args = ["--port", "8000"]
idle_timeout = 5
unknown = 1979-05-27T07:32:00Z
[agent.env]
LITERAL = "x"
KEY = "\${OTHER_NAME}"
INSIDE = "Bearer \${TOKEN}"
WRONG = "\${not a name}"
INT = 3
BIG = 99999999999999999999
FLOAT = 0.5
INF = -inf
YES = true
EMPTY = ""
[source]
git = "https://github.com/org/repo"
[build]
steps = ["pip install -r requirements.txt", """
set -e
make"""]
[llm]
base_url = "https://llm.example.com/api/v1"
model = "any"
[ports]
expose = [8000, 9000, 8000]
[resources]
runtime = "2GB"
disk = 4096
[lifecycle]
sleep = "never"
idle_timeout = "500ms"
[backend]
provider = "anthropic"
api_base = "https://older.example.com"
routes = ["/v1"]
forward_headers = []
additional_domains = ["example.com"]
[network]
outbound = ["API.example.com", "*.example.org", "1.2.3.4", "10.0.0.0/8", "fd00::/8"]
`)
    const { raw, ...rest } = read
    expect(rest).toEqual({
      agent: {
        name: 'reviewer',
        lang: 'python',
        entry: '/agent/code/main.py',
        args: ['--port', '8000'],
        env: {
          LITERAL: { literal: 'x' },
          KEY: { secret: 'OTHER_NAME' },
          INSIDE: { literal: `Bearer ${placeholder('TOKEN')}` },
          WRONG: { literal: placeholder('not a name') },
          INT: { literal: '3' },
          BIG: { literal: '99999999999999999999' },
          FLOAT: { literal: '0.5' },
          INF: { literal: '-inf' },
          YES: { literal: 'true' },
          EMPTY: { literal: '' },
        },
      },
      source: { git: 'https://github.com/org/repo', branch: 'main' },
      build: { steps: ['pip install -r requirements.txt', 'set -e\nmake'], workingDir: '/agent/code' },
      llm: { baseUrl: 'https://llm.example.com/api/v1', provider: 'anthropic' },
      ports: [8000, 9000],
      resources: { runtimeMb: 2048, diskMb: 4096 },
      lifecycle: { sleep: 'never', idleTimeoutMs: 500 },
      network: { outbound: ['api.example.com', '*.example.org', '1.2.3.4', '10.0.0.0/8', 'fd00::/8'] },
    })
    expect(warnings.map((warning) => warning.split(' ')[0])).toEqual(['agent.env.INSIDE', 'agent.env.WRONG'])
    expect(raw['future']).toEqual({ ignored: true })
    const { raw: rawAgain, ...restAgain } = fromJson(toJson(read))
    expect(restAgain).toEqual(rest)
    expect(rawAgain).toEqual(raw)
  })

  test('a list that was stored before there was a limit is still read', () => {
    const stored = { agent: { name: 'a', lang: 'node', entry: 'a' }, network: { outbound: Array(300).fill('a.test') } }
    expect(fromJson(JSON.stringify(stored)).network.outbound).toHaveLength(300)
  })

  test.each([
    ['[backend]\nprovider = "google"', null, 'google'],
    ['[backend]\napi_base = "https://b.example.com"', 'https://b.example.com', 'custom'],
    ['[llm]\nbase_url = "https://l.example.com"', 'https://l.example.com', 'custom'],
    ['[llm]\nmodel = "m"', null, 'multi'],
  ])('LLM of %p', (text, baseUrl, provider) => {
    const read = config(`${AGENT}${text}`)
    expect(read.llm).toEqual({ baseUrl, provider: provider as OrbConfig['llm']['provider'] })
    expect(summary(read)).toEqual({
      agent: { name: 'a', lang: 'node', entry: 'main.js' },
      backend: { provider },
      llm: { base_url: baseUrl },
      ports: { expose: [] },
    })
  })

  test.each([
    ['idle_timeout = "10m"\n', AGENT, '', 600_000],
    ['idle_timeout = "10m"\n', `${AGENT}idle_timeout = 90\n`, '', 90_000],
    ['idle_timeout = "10m"\n', `${AGENT}idle_timeout = 90\n`, '[lifecycle]\nidle_timeout = "0s"', 0],
  ])('idle timeout: the most specific place counts', (top, agent, lifecycle, ms) => {
    expect(config(top + agent + lifecycle).lifecycle.idleTimeoutMs).toBe(ms)
  })

  test('network: absent is the whole internet, empty is nothing', () => {
    expect(config(`${AGENT}[network]`).network.outbound).toBeNull()
    expect(config(`${AGENT}[network]\noutbound = []`).network.outbound).toEqual([])
  })

  test('a byte order mark and Windows line ends', () => {
    expect(config(`\ufeff${AGENT.replaceAll('\n', '\r\n')}`).agent.name).toBe('a')
  })

  test('plain http where the operator allows it', () => {
    const text = `${AGENT}[llm]\nbase_url = "http://127.0.0.1:9000/v1"\n[source]\ngit = "http://git.local/r.git"`
    expect(toml(text, (url) => url.protocol === 'http:').config.llm.baseUrl).toBe('http://127.0.0.1:9000/v1')
    expect(problemsOf(() => toml(text, (url) => url.hostname === '127.0.0.1'), 'invalid_toml')).toEqual([
      'source.git must be an https:// URL',
    ])
    // What was stored stays readable when the operator withdraws it.
    expect(fromJson(toJson(toml(text, () => true).config)).llm.baseUrl).toBe('http://127.0.0.1:9000/v1')
  })

  test('JSON: null is absent, harmful keys are dropped', () => {
    const json =
      JSON.parse(`{"agent":{"name":"a","lang":"go","entry":"./a","args":null,"env":{"A":1,"B":null,"__proto__":"x","constructor":"x"}},
      "build":null,"__proto__":{"source":{"git":"file:///etc"}},"prototype":1}`)
    const read = parseInline(json, never).config
    expect(read.agent).toEqual({ name: 'a', lang: 'go', entry: './a', args: [], env: { A: { literal: '1' } } })
    expect([read.build, read.source]).toEqual([null, null])
    expect(Object.keys(read.raw)).toEqual(['agent', 'build'])
    expect('x' in {}).toBe(false)
  })

  test('limits are met exactly', () => {
    const steps = Array.from({ length: 100 }, () => 's'.repeat(65_536))
    const env = Object.fromEntries(Array.from({ length: 200 }, (_, index) => [`N${index}`, 'v']))
    env['N0'] = 'v'.repeat(131_072)
    const expose = Array.from({ length: 16 }, (_, index) => 65_535 - index)
    const json = { agent: { name: 'a', lang: 'rust', entry: 'a', env }, build: { steps }, ports: { expose } }
    const read = parseInline(json, never).config
    expect([read.build?.steps.length, Object.keys(read.agent.env).length, read.ports.length]).toEqual([100, 200, 16])
  })
})

describe('what is refused', () => {
  test.each([
    ['', 'orb.toml is empty'],
    [' \n', 'orb.toml is empty'],
    ['x = 1', 'missing [agent] section'],
    ['agent = 1', 'agent must be a table'],
    ['[agent]\nlang = "go"\nentry = "a"', 'agent.name is required'],
    ['[agent]\nname = ""\nlang = "go"\nentry = "a"', 'agent.name is required'],
    ['[agent]\nname = "a"\nentry = "a"', 'agent.lang is required'],
    ['[agent]\nname = "a"\nlang = "go"', 'agent.entry is required'],
    ['[agent]\nname = 5\nlang = "go"\nentry = "a"', 'agent.name must be a string'],
    ['[agent]\nname = "a\\u0000"\nlang = "go"\nentry = "a"', 'agent.name must not contain a NUL character'],
    [AGENT.replace('node', 'typescript'), 'invalid lang: typescript (expected: node, python, go, rust, binary)'],
    [AGENT.replace('"node"', '7'), 'agent.lang must be a string'],
    [`${AGENT}args = "x"`, 'agent.args must be a list of strings'],
    [`${AGENT}args = ["x", 1, 2]`, 'agent.args must be a list of strings'],
    [`${AGENT}env = "x"`, 'agent.env must be a table'],
    [`${AGENT}env.A = ["x"]`, 'agent.env.A must be a string, a number or a boolean'],
    [`${AGENT}env.A = 1979-05-27`, 'agent.env.A must be a string, a number or a boolean'],
    [`${AGENT}env."A=B" = "x"`, 'invalid agent.env: "A=B" (expected a name without = and NUL)'],
    [`${AGENT}env."" = "x"`, 'invalid agent.env: "" (expected a name without = and NUL)'],
    [`${AGENT}env.A = "x\\u0000"`, 'agent.env.A must not contain a NUL character'],
    [`${AGENT}[source]`, 'source.git is required'],
    [`source = "x"\n${AGENT}`, 'source must be a table'],
    [`${AGENT}[build]`, 'build.steps is required'],
    [`${AGENT}[build]\nsteps = []`, 'build.steps must have at least one step'],
    [`${AGENT}[build]\nsteps = [1]`, 'build.steps must be a list of strings'],
    [
      `${AGENT}[build]\nsteps = ["x"]\nworking_dir = "code"`,
      'invalid build.working_dir: code (expected an absolute path such as /agent/code)',
    ],
    [`${AGENT}[llm]\nbase_url = "ftp://x"`, 'invalid llm.base_url: ftp://x (expected an https:// URL)'],
    [`${AGENT}[llm]\nbase_url = "http://x"`, 'invalid llm.base_url: http://x (expected an https:// URL)'],
    [`${AGENT}[backend]\napi_base = "x"`, 'invalid backend.api_base: x (expected an https:// URL)'],
    [
      `${AGENT}[backend]\nprovider = "azure"`,
      'invalid backend.provider: azure (expected: anthropic, openai, google, multi, custom)',
    ],
    [`${AGENT}[backend]\nroutes = "x"`, 'backend.routes must be a list of strings'],
    [`${AGENT}[ports]\nexpose = 8000`, 'ports.expose must be a list of integers'],
    [`${AGENT}[ports]\nexpose = ["8000"]`, 'ports.expose must be a list of integers'],
    [`${AGENT}[ports]\nexpose = [80.5]`, 'ports.expose must be a list of integers'],
    [`${AGENT}[ports]\nexpose = [0]`, 'invalid ports.expose: 0 (expected ports from 1 to 65535)'],
    [`${AGENT}[ports]\nexpose = [1, 65536]`, 'invalid ports.expose: 65536 (expected ports from 1 to 65535)'],
    [`${AGENT}[ports]\nexpose = [${Array(17).fill(1)}]`, 'invalid ports.expose: 17 ports (expected at most 16)'],
    [`${AGENT}[resources]\nruntime = "lots"`, 'invalid resources.runtime: lots (expected a size such as 2GB or 512MB)'],
    [`${AGENT}[resources]\ndisk = -1`, 'invalid resources.disk: -1 (expected a size such as 2GB or 512MB)'],
    [`${AGENT}[resources]\nruntime = true`, 'resources.runtime must be a size'],
    [`${AGENT}[resources]\ndisk_mb = "512"`, 'resources.disk_mb must be an integer'],
    [`${AGENT}[lifecycle]\nsleep = "off"`, 'invalid lifecycle.sleep: off (expected: auto, never)'],
    [
      `${AGENT}[lifecycle]\nidle_timeout = "soon"`,
      'invalid lifecycle.idle_timeout: soon (expected a duration such as 120s)',
    ],
    [`${AGENT}idle_timeout = -5`, 'invalid agent.idle_timeout: -5 (expected a duration such as 120s)'],
    [`idle_timeout = inf\n${AGENT}`, 'idle_timeout must be a duration'],
    [`${AGENT}[network]\noutbound = "x"`, 'network.outbound must be a list of strings'],
    [
      `${AGENT}[network]\noutbound = ${JSON.stringify(Array(257).fill('a.test'))}`,
      'invalid network.outbound: 257 entries (expected at most 256)',
    ],
    [
      `${AGENT}[llm]\nbase_url = "https://${'x'.repeat(300)} "`,
      `invalid llm.base_url: https://${'x'.repeat(72)}… (expected an https:// URL)`,
    ],
  ])('%p', (text, message) => expect(problems(text)[0] as string | undefined).toBe(message))

  test.each([
    'git@github.com:o/r.git',
    'ssh://git@github.com/o/r',
    'file:///etc',
    'ext::sh -c id',
    'http://github.com/o/r',
    'https:github.com/o/r',
    'https://',
    'https://github.com/o/r\\n',
    '-https://github.com/o/r',
    ' https://github.com/o/r',
    'https://a b/c',
  ])('source %p', (git) =>
    expect(problems(`${AGENT}[source]\ngit = "${git}"`)).toEqual(['source.git must be an https:// URL']),
  )

  test('credentials in addresses are refused and not repeated', () => {
    const text = `${AGENT}[source]\ngit = "https://user:hunter2@github.com/o/r"\n[llm]\nbase_url = "https://:hunter2@x.example"\n`
    expect(problems(text)).toEqual([
      'source.git must not contain credentials',
      'llm.base_url must not contain credentials',
    ])
    expect(problems(`${AGENT}[llm]\nbase_url = "https://x.example?key=hunter2"`)).toEqual([
      'llm.base_url must not contain a query or fragment',
    ])
  })

  test.each(['-x', '', 'a..b', 'a b', '/a', 'x'.repeat(256), 'a;b', 'ä'])('branch %p', (branch) => {
    const text = `${AGENT}[source]\ngit = "https://github.com/o/r"\nbranch = "${branch}"`
    expect(problems(text)[0] as string).toStartWith(`invalid source.branch: ${branch.slice(0, 80)}`)
  })

  test.each([
    'https://x.example',
    'a b',
    '*',
    '*.*.example',
    'a:80',
    '300.1.1.1',
    '10.0.0.1/8',
    '10.0.0.0/33',
    '',
    'a..b',
    '-a.example',
  ])('outbound %p', (host) =>
    expect(problems(`${AGENT}[network]\noutbound = ["ok.example", "${host}"]`)).toEqual([
      `invalid network.outbound: ${host} (expected a host, *.host, an IP or a CIDR)`,
    ]),
  )

  test('one more than each limit', () => {
    const agent = { name: 'a', lang: 'go', entry: 'a' }
    const env = Object.fromEntries(Array.from({ length: 201 }, (_, index) => [`N${index}`, 'v']))
    const inline = (json: unknown): unknown[] => problemsOf(() => parseInline(json, never), 'invalid_config')
    expect(inline({ agent: { ...agent, env } })).toEqual(['invalid agent.env: 201 names (expected at most 200)'])
    expect(inline({ agent: { ...agent, env: { A: 'é'.repeat(65_537) } } })).toEqual([
      'invalid agent.env.A: 131074 bytes (expected at most 131072)',
    ])
    expect(inline({ agent, build: { steps: Array(101).fill('x') } })).toEqual([
      'invalid build.steps: 101 steps (expected at most 100)',
    ])
    expect(inline({ agent, build: { steps: ['x', 'x'.repeat(65_537)] } })).toEqual([
      'invalid build.steps[1]: 65537 bytes (expected at most 65536)',
    ])
  })

  test('all problems at once, the first as message, the value of a variable in none', () => {
    const text = AGENT.replace('node', 'ruby').replace('name', 'nam')
    expect(problems(`${text}env.A = ["hunter2"]\n[ports]\nexpose = [0]\n[lifecycle]\nsleep = "x"`)).toEqual([
      'agent.name is required',
      'invalid lang: ruby (expected: node, python, go, rust, binary)',
      'agent.env.A must be a string, a number or a boolean',
      'invalid ports.expose: 0 (expected ports from 1 to 65535)',
      'invalid lifecycle.sleep: x (expected: auto, never)',
    ])
  })

  test.each([
    ['a = 1\n\nb = =', 'TOML parse error at line 3, column 5: '],
    ['[agent]\nname = "a"\nname = "b"', 'TOML parse error at line 3, column 1: '],
    ['a = "\0"', 'TOML parse error at line 1, column '],
    [`a = ${'['.repeat(5000)}`, 'TOML parse error at line 1, column '],
  ])('TOML %p', (text, start) => {
    const [message] = problems(text)
    expect(message as string).toStartWith(start)
    expect(message as string).not.toContain('\n')
  })

  test('bytes that are not UTF-8', () => {
    expect(problemsOf(() => parseToml(new Uint8Array([0x61, 0x3d, 0xff]), never), 'invalid_toml')).toEqual([
      'orb.toml is not UTF-8',
    ])
  })

  test('nesting beyond 32 levels, by dotted keys too', () => {
    const levels = (count: number): string => Array(count).fill('a').join('.')
    expect(problems(`${levels(32)} = 1\n${AGENT}`)).toEqual([])
    expect(problems(`${levels(33)} = 1\n${AGENT}`)).toEqual(['the configuration is nested deeper than 32 levels'])
    expect(problems(`${levels(100_000)} = 1\n${AGENT}`)).toEqual(['the configuration is nested deeper than 32 levels'])
  })

  test.each([[null], [[]], ['text'], [7]])('inline %p', (json) => {
    expect(problemsOf(() => parseInline(json, never), 'invalid_config')).toEqual([
      'the configuration must be an object',
    ])
  })
})

describe('buildFingerprint', () => {
  const base = `${AGENT}[source]\ngit = "https://github.com/o/r"\n[build]\nsteps = ["a", "b"]\n`
  const same = (text: string): boolean => buildFingerprint(config(text)) === buildFingerprint(config(base))

  test('does not see what a build does not see', () => {
    expect(same(`${base}working_dir = "/agent/code"\n[ports]\nexpose = [1]`)).toBe(true)
    expect(same(base.replace('[build]', 'branch = "main"\n[build]').replace('node', 'go'))).toBe(true)
  })

  test.each([
    base.replace('/r"', '/other"'),
    base.replace('[build]', 'branch = "dev"\n[build]'),
    base.replace('"a", "b"', '"a, b"'),
    base.replace('"a", "b"', '"b", "a"'),
    `${base}working_dir = "/x"`,
    AGENT,
  ])('sees %p', (text) => expect(same(text)).toBe(false))
})
