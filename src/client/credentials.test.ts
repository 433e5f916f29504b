import { afterEach, beforeEach, expect, test } from 'bun:test'
import { chmod, mkdtemp, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { credentialsFile, findTarget, forgetKey, keepKey, normalUrl } from './credentials.ts'

const A = 'https://a.example.com'
const B = 'http://127.0.0.1:9'

let env: Record<string, string>

beforeEach(async () => {
  env = { HOME: await mkdtemp(join(tmpdir(), 'orb-test-')) }
})
afterEach(() => rm(env['HOME'] ?? '', { recursive: true, force: true }))

test('a key per server, the last one the default', () => {
  keepKey(A, { api_key: 'orb_a' }, env)
  keepKey(B, { api_key: 'orb_b', email: 'x@example.com' }, env)
  expect(findTarget(undefined, env)).toEqual({ url: B, key: 'orb_b' })
  expect(findTarget(`${A}/`, env)).toEqual({ url: A, key: 'orb_a' })
  expect(findTarget('https://c.example.com', env).key).toBeNull()
  expect(forgetKey(B, env)).toBe(true)
  expect(forgetKey(B, env)).toBe(false)
  expect(findTarget(A, env).key).toBe('orb_a')
})

test('environment goes before the file, the option before both', () => {
  keepKey(A, { api_key: 'orb_a' }, env)
  const own = { ...env, ORB_URL: B, ORB_API_KEY: 'orb_env' }
  expect(findTarget(undefined, own)).toEqual({ url: B, key: 'orb_env' })
  expect(findTarget(A, own)).toEqual({ url: A, key: 'orb_env' })
})

test('is its user’s alone, and is not read where others could', async () => {
  keepKey(A, { api_key: 'orb_a' }, env)
  expect((await stat(credentialsFile(env))).mode & 0o777).toBe(0o600)
  await chmod(credentialsFile(env), 0o644)
  expect(() => findTarget(A, env)).toThrow('chmod 600')
})

test.each(['orb.example.com', 'ftp://x', 'http://u:p@x', 'http://x/?q', ''])('%p is no base URL', (text) => {
  expect(() => normalUrl(text)).toThrow('base URL')
})
