import { afterAll, describe, expect, test } from 'bun:test'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { cidrContains, parseCidr } from './cidr.ts'
import { loadSettings, readFlags } from './config.ts'
import { isoTime, parseDuration } from './time.ts'

const dir = mkdtempSync(join(tmpdir(), 'orb-config-'))
afterAll(() => rmSync(dir, { recursive: true }))

const NO_FILE = join(dir, 'absent.toml')
const load = (env: Record<string, string>, flags = {}) => loadSettings({ flags, env, file: NO_FILE })

describe('settings', () => {
  test('defaults', () => {
    const settings = load({})
    expect(settings).toMatchObject({
      listen: { kind: 'tcp', host: '127.0.0.1', port: 8787 },
      domain: 'orb.localhost',
      publicUrl: 'http://127.0.0.1:8787',
      tls: null,
      trustProxy: false,
      dataDir: '/var/lib/orb',
      base: 'host',
      registration: 'open',
      freezeAfterMs: 2000,
      checkpointAfterMs: 5000,
      idleTimeoutMs: 120_000,
      busyCpuPercent: 25,
      execTimeoutMs: 30_000,
      memoryMultiplier: 3,
      maxRuntimeMb: 65_536,
      swapBytes: 0,
      allowPrivate: [],
      rateRuntime: 0.005,
      metricsToken: null,
    })
    expect(settings.subnet.text).toBe('10.42.0.0/16')
  })

  test('file < environment < flags', () => {
    const file = join(dir, 'config.toml')
    writeFileSync(
      file,
      'freeze_after = "3s"\ndomain = "file.test"\nlisten = "127.0.0.1:1"\nsandbox_allow = ["10.0.0.0/8"]\n',
    )
    const settings = loadSettings({
      flags: { listen: 'unix:/run/orb.sock' },
      env: { ORB_DOMAIN: 'env.test', ORB_LISTEN: '127.0.0.1:2', ORB_BASE: '' },
      file,
    })
    expect(settings.freezeAfterMs).toBe(3000)
    expect(settings.domain).toBe('env.test')
    expect(settings.listen).toEqual({ kind: 'unix', path: '/run/orb.sock' })
    expect(settings.base).toBe('host')
    expect(settings.sandboxAllow.map((cidr) => cidr.text)).toEqual(['10.0.0.0/8'])
  })

  test('what orb may reach', () => {
    const entries = load({
      ORB_ALLOW_PRIVATE: '10.1.0.0/16, llm.internal:8080,git.internal,127.0.0.1:9,*,::1',
    }).allowPrivate
    expect(entries).toEqual([
      { kind: 'cidr', cidr: parseCidr('10.1.0.0/16')! },
      { kind: 'host', host: 'llm.internal', port: 8080 },
      { kind: 'host', host: 'git.internal' },
      { kind: 'host', host: 'ip4:7f000001', port: 9 },
      { kind: 'any' },
      { kind: 'host', host: 'ip6:1' },
    ])
  })

  const bad: [name: string, env: Record<string, string>, message: RegExp][] = [
    ['duration', { ORB_FREEZE_AFTER: 'soon' }, /^invalid ORB_FREEZE_AFTER: "soon" \(expected 500ms/],
    ['listen', { ORB_LISTEN: '8787' }, /^invalid ORB_LISTEN/],
    ['listen port', { ORB_LISTEN: '127.0.0.1:70000' }, /^invalid ORB_LISTEN/],
    ['unix path', { ORB_LISTEN: 'unix:orb.sock' }, /^invalid ORB_LISTEN/],
    ['relative data directory', { ORB_DATA_DIR: 'data' }, /^invalid ORB_DATA_DIR/],
    ['subnet with host bits', { ORB_SUBNET: '10.42.0.1/16' }, /^invalid ORB_SUBNET/],
    ['IPv6 subnet', { ORB_SUBNET: 'fd00::/16' }, /^invalid ORB_SUBNET/],
    ['registration', { ORB_REGISTRATION: 'maybe' }, /^invalid ORB_REGISTRATION: "maybe" \(expected open or closed\)$/],
    ['half of TLS', { ORB_TLS_CERT: '/cert.pem' }, /^invalid ORB_TLS_KEY: missing/],
    ['public URL', { ORB_PUBLIC_URL: 'ftp://x' }, /^invalid ORB_PUBLIC_URL/],
    ['percent', { ORB_BUSY_CPU_PERCENT: '-1' }, /^invalid ORB_BUSY_CPU_PERCENT/],
    ['count', { ORB_MAX_COMPUTERS: '1.5' }, /^invalid ORB_MAX_COMPUTERS/],
    ['multiplier', { ORB_MEMORY_MULTIPLIER: '0.5' }, /^invalid ORB_MEMORY_MULTIPLIER/],
    ['allow list', { ORB_SANDBOX_ALLOW: '10.0.0.0/8,nonsense' }, /^invalid ORB_SANDBOX_ALLOW/],
  ]
  test.each(bad)('bad %s: one line that names it', (_, env, message) => {
    expect(() => load(env)).toThrow(message)
    expect(() => load(env)).not.toThrow(/\n/)
  })

  test('files that cannot be used', () => {
    const broken = join(dir, 'broken.toml')
    writeFileSync(broken, 'domain = \n')
    expect(() => loadSettings({ flags: {}, env: {}, file: broken })).toThrow(/cannot read .*broken.toml/)
    expect(() => loadSettings({ flags: {}, env: {}, file: broken })).not.toThrow(/\n/)
    const typo = join(dir, 'typo.toml')
    writeFileSync(typo, 'domian = "x"\n')
    expect(() => loadSettings({ flags: {}, env: {}, file: typo })).toThrow('domian')
    expect(() => load({}, { config: NO_FILE })).toThrow('cannot read')
  })

  test('flags', () => {
    expect(readFlags(['--listen', '127.0.0.1:1', '--data-dir=/d'])).toMatchObject({
      listen: '127.0.0.1:1',
      dataDir: '/d',
    })
    expect(() => readFlags(['--lisen', 'x'])).toThrow('--lisen')
  })
})

test('durations', () => {
  const cases: [string, number | null][] = [
    ['500ms', 500],
    ['30s', 30_000],
    ['10m', 600_000],
    ['1h', 3_600_000],
    ['90', 90_000],
    ['0s', 0],
    ['', null],
    ['-1s', null],
    ['1d', null],
    ['1 s', null],
    ['1e3', null],
  ]
  for (const [text, ms] of cases) expect([text, parseDuration(text)]).toEqual([text, ms])
  expect(isoTime(Date.UTC(2026, 3, 19, 4, 5, 0, 999))).toBe('2026-04-19T04:05:00Z')
})

test('address blocks', () => {
  const cases: [block: string, address: string, inside: boolean][] = [
    ['10.42.0.0/16', '10.42.255.255', true],
    ['10.42.0.0/16', '10.43.0.0', false],
    ['10.42.0.0/16', '::ffff:10.42.0.1', true],
    ['0.0.0.0/0', '8.8.8.8', true],
    ['0.0.0.0/0', '::1', false],
    ['::1', '::1', true],
    ['fd00::/8', 'fdff::1', true],
    ['fd00::/8', 'fe80::1', false],
    ['2001:db8::/32', '2001:db8:0:1::', true],
    ['127.0.0.1', '127.0.0.2', false],
    ['127.0.0.1', 'localhost', false],
  ]
  for (const [block, address, inside] of cases) {
    const cidr = parseCidr(block)
    expect([block, address, cidr && cidrContains(cidr, address)]).toEqual([block, address, inside])
  }
  for (const text of ['', '10.0.0.0/33', '10.0.0.0/', '10.0.0.0/8/8', 'host', '10.0.0.1/8', '1.2.3/8']) {
    expect([text, parseCidr(text)]).toEqual([text, null])
  }
})
