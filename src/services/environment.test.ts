import { describe, expect, test } from 'bun:test'
import { OrbError } from '../errors.ts'
import {
  agentEnvironment,
  baseEnvironment,
  buildEnvironment,
  type EnvironmentFacts,
  resolveSecrets,
  shellVariables,
} from './environment.ts'
import { parseInline } from './orb-toml.ts'

const placeholder = (name: string): string => `\${${name}}`
const facts: EnvironmentFacts = {
  computerId: 'abc12345-0000-4000-8000-000000000000',
  proxyUrl: 'http://10.42.0.1:10000',
  apiUrl: 'http://10.42.0.1:8787',
  ports: [8000, 9000],
  replica: { index: 0, count: 3 },
}

const BASE = {
  HOME: '/root',
  USER: 'root',
  LANG: 'C.UTF-8',
  NPM_CONFIG_PREFIX: '/root/.npm-global',
  PIP_BREAK_SYSTEM_PACKAGES: '1',
  UV_USE_IO_URING: '0',
  PATH: '/root/.npm-global/bin:/root/.local/bin:/agent/packages/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
  PORT: '8000',
  ORB_COMPUTER_ID: facts.computerId,
  ORB_API_URL: 'http://10.42.0.1:8787',
  ORB_PROXY_URL: 'http://10.42.0.1:10000',
  ANTHROPIC_BASE_URL: 'http://10.42.0.1:10000',
  OPENAI_BASE_URL: 'http://10.42.0.1:10000',
  ORB_PORT: '20001',
}
const REPLICA = { ORB_REPLICA_INDEX: '0', ORB_REPLICA_COUNT: '3' }

describe('environments', () => {
  test('exec has the base and nothing else, of orb’s own neither', () => {
    expect(baseEnvironment(facts)).toEqual({ ...BASE, ...REPLICA })
  })

  test('a build has no replica variables', () => {
    expect(buildEnvironment(facts)).toEqual({ ...BASE, DEBIAN_FRONTEND: 'noninteractive' })
  })

  test('without ports and swarm their variables are absent, not empty', () => {
    const { PORT, ...rest } = BASE
    expect(baseEnvironment({ ...facts, ports: [], replica: null })).toEqual(rest)
  })

  test('the user wins, except over reserved names', () => {
    const user = Object.fromEntries(Object.keys({ ...BASE, ...REPLICA, ORB_API_KEY: '' }).map((name) => [name, 'mine']))
    const environment = agentEnvironment(facts, user)
    const reserved = ['ORB_PROXY_URL', 'ANTHROPIC_BASE_URL', 'ORB_PORT', 'ORB_REPLICA_INDEX', 'ORB_REPLICA_COUNT']
    for (const [name, value] of Object.entries(environment)) {
      expect([name, value === 'mine']).toEqual([name, !reserved.includes(name)])
    }
    expect(environment).toMatchObject({ ORB_PORT: '20001', ORB_REPLICA_INDEX: '0', ORB_API_KEY: 'mine' })
  })
})

describe('resolveSecrets', () => {
  const config = parseInline(
    {
      agent: {
        name: 'a',
        lang: 'node',
        entry: 'a.js',
        env: {
          ONE: placeholder('B'),
          TWO: placeholder('A'),
          AGAIN: placeholder('B'),
          LITERAL: 'A',
          ODD: placeholder('toString'),
        },
      },
    },
    () => false,
  ).config
  const ODD = { toString: 'odd' }

  test.each([
    ['stored', { A: 'a', B: 'b', ...ODD }, undefined, { ONE: 'b', TWO: 'a' }],
    ['sent', {}, { A: 'a', B: 'b', ...ODD }, { ONE: 'b', TWO: 'a' }],
    ['sent wins over stored', { A: 'old', B: 'b', ...ODD }, { A: 'new' }, { ONE: 'b', TWO: 'new' }],
    ['an empty string is a value', { A: 'old', B: '', ...ODD }, { A: '' }, { ONE: '', TWO: '' }],
  ])('%s', (_, stored, sent, expected) => {
    const { env, warnings } = resolveSecrets(config, stored, sent)
    expect(env).toEqual({ ...expected, AGAIN: expected.ONE, LITERAL: 'A', ODD: 'odd' })
    expect(warnings).toEqual([])
  })

  test.each([
    ['sends some, some stay open', { X: 'x' }, { A: 'a' }, 'missing org_secrets: B, toString'],
    ['sends none, none stored', {}, undefined, 'missing org_secrets: B, A, toString'],
    ['sends an empty map, none stored', {}, {}, 'missing org_secrets: B, A, toString'],
  ])('%s', (_, stored, sent, message) => {
    expect(() => resolveSecrets(config, stored, sent)).toThrow(new OrbError('missing_secrets', message))
  })

  test.each([[undefined], [{}]])('sends none, some stored: open ones are empty and named', (sent) => {
    const { env, warnings } = resolveSecrets(config, { A: 'a' }, sent)
    expect(env).toEqual({ ONE: '', TWO: 'a', AGAIN: '', LITERAL: 'A', ODD: '' })
    expect(warnings).toEqual([
      'org_secrets.B has no value: an empty string is used',
      'org_secrets.toString has no value: an empty string is used',
    ])
  })

  test('no placeholder, no complaint', () => {
    const plain = parseInline({ agent: { name: 'a', lang: 'go', entry: 'a', env: { A: 'x' } } }, () => false).config
    expect(resolveSecrets(plain, {}, { UNUSED: 'u' })).toEqual({ env: { A: 'x' }, warnings: [] })
  })
})

test('a shell opens without the secrets that are missing, and without a configuration', () => {
  const config = parseInline(
    { agent: { name: 'a', lang: 'go', entry: 'a', env: { A: 'x', B: '$' + '{ONE}', C: '$' + '{TWO}' } } },
    () => false,
  ).config
  expect(shellVariables(config, { ONE: '1' })).toEqual({ A: 'x', B: '1', C: '' })
  expect(shellVariables(config, {})).toEqual({ A: 'x', B: '', C: '' })
  expect(shellVariables(null, { ONE: '1' })).toEqual({})
})
