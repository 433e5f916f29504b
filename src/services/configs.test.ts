import { beforeEach, describe, expect, test } from 'bun:test'
import { OrbError } from '../errors.ts'
import type { ConfigRow } from '../store/types.ts'
import { createConfigs } from './configs.ts'
import type { Principal } from './types.ts'

const who: Principal = { orgId: 'org', keyId: 'key', scope: 'full', role: 'admin' }
const ID = 'abc12345-0000-4000-8000-000000000000'
const PLACEHOLDER = ['$', '{SECRET}'].join('')
const TOML = `[agent]\nname = "a"\nlang = "node"\nentry = "main.js"\n[agent.env]\nKEY = "${PLACEHOLDER}"\n`

let rows: ConfigRow[] = []
beforeEach(() => {
  rows = []
})
const configs = createConfigs({
  configs: {
    get: (computerId, kind) => rows.find((row) => row.computerId === computerId && row.kind === kind) ?? null,
    put: (row) => {
      rows = [...rows.filter((old) => old.computerId !== row.computerId || old.kind !== row.kind), row]
    },
  },
  findComputer: (caller, id) => {
    if (caller.orgId === 'org' && [ID, 'abc12345'].includes(id)) return { id: ID }
    throw new OrbError('not_found', 'no such computer')
  },
  plainHttpAllowed: () => false,
  now: () => Date.UTC(2026, 3, 19, 4, 5),
})
const upload = (body: string, kind: 'toml' | 'json' = 'toml', id = ID) =>
  configs.upload(who, id, Buffer.from(body), kind)
const codeOf = (call: () => unknown): string => {
  try {
    call()
  } catch (thrown) {
    if (thrown instanceof OrbError) return thrown.code
    throw thrown
  }
  return 'none'
}

describe('configs', () => {
  test('an uploaded file comes back as it was', () => {
    const config_summary = {
      agent: { name: 'a', lang: 'node', entry: 'main.js' },
      backend: { provider: 'multi' },
      llm: { base_url: null },
      ports: { expose: [] },
    }
    expect(upload(TOML, 'toml', 'abc12345')).toEqual({
      computer_id: ID,
      config_summary,
      source: 'uploaded',
      warnings: [],
    })
    expect(configs.get(who, 'abc12345')).toEqual({
      computer_id: ID,
      config: { agent: { name: 'a', lang: 'node', entry: 'main.js', env: { KEY: PLACEHOLDER } } },
      toml: TOML,
      config_summary,
      source: 'uploaded',
      updated_at: '2026-04-19T04:05:00Z',
    })
  })

  test('JSON has no file; the whole configuration is replaced, what is deployed is not', () => {
    rows = [{ computerId: ID, kind: 'deployed', json: '{}', toml: null, source: 'inline', updatedAt: 0 }]
    upload(TOML)
    upload('{"agent":{"name":"b","lang":"go","entry":"./b"}}', 'json')
    expect(configs.get(who, ID)).toMatchObject({ config: { agent: { name: 'b' } }, toml: null })
    expect(rows.map(({ kind }) => kind)).toEqual(['deployed', 'stored'])
  })

  test.each([
    ['lang = 1', 'toml', 'invalid_toml'],
    ['{}', 'json', 'invalid_config'],
    ['{', 'json', 'invalid_json'],
    ['[]', 'json', 'invalid_json'],
    ['null', 'json', 'invalid_json'],
    [`${TOML}#${'x'.repeat(256 * 1024)}`, 'toml', 'payload_too_large'],
  ] as const)('%p as %s is %s and changes nothing', (body, kind, code) => {
    upload(TOML)
    const before = rows
    expect(codeOf(() => upload(body, kind))).toBe(code)
    expect(rows).toBe(before)
  })

  test('256 KiB are allowed', () => {
    expect(codeOf(() => upload(`${TOML}#`.padEnd(256 * 1024, 'x')))).toBe('none')
  })

  test('none yet, and not one’s own', () => {
    expect(codeOf(() => configs.get(who, ID))).toBe('config_not_found')
    expect(codeOf(() => configs.get({ ...who, orgId: 'other' }, ID))).toBe('not_found')
    expect(codeOf(() => configs.upload({ ...who, orgId: 'other' }, ID, Buffer.from('broken ='), 'toml'))).toBe(
      'not_found',
    )
    expect(rows).toEqual([])
  })
})
