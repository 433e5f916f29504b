import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openVault } from './vault.ts'

let dir: string

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'orb-vault-'))
})
afterEach(() => rmSync(dir, { recursive: true }))

test('the key file is made once, for its owner alone, with nothing left beside it', () => {
  const first = openVault(dir)
  const { mode, size } = statSync(join(dir, 'master.key'))
  expect([mode & 0o777, size]).toEqual([0o600, 32])
  expect(readdirSync(dir)).toEqual(['master.key'])
  const second = openVault(dir)
  expect(second.open(first.seal('sk-1', 'computer'), 'computer')).toBe('sk-1')
  expect(second.jwtSecret).toEqual(first.jwtSecret)
})

test('a damaged key file is refused, not replaced', () => {
  writeFileSync(join(dir, 'master.key'), 'short')
  expect(() => openVault(dir)).toThrow('is damaged')
  expect(statSync(join(dir, 'master.key')).size).toBe(5)
})

test('what is sealed shows nothing, differs each time, opens as it was', () => {
  const vault = openVault(dir)
  for (const plain of ['', 'sk-secret', 'ü'.repeat(100_000)]) {
    const sealed = vault.seal(plain, 'c1')
    expect(vault.open(sealed, 'c1')).toBe(plain)
    expect(sealed).not.toEqual(vault.seal(plain, 'c1'))
    if (plain !== '') expect(Buffer.from(sealed).includes(plain)).toBe(false)
  }
})

test('another computer, a changed byte, a cut or another master key do not open it', () => {
  const vault = openVault(dir)
  const sealed = vault.seal('sk-secret', 'c1')
  const message = 'cannot be read'
  expect(() => vault.open(sealed, 'c2')).toThrow(message)
  for (const at of [0, 12, sealed.length - 1]) {
    const changed = Uint8Array.from(sealed)
    changed[at] = (changed[at] ?? 0) ^ 1
    expect(() => vault.open(changed, 'c1')).toThrow(message)
  }
  expect(() => vault.open(sealed.subarray(0, -1), 'c1')).toThrow(message)
  expect(() => vault.open(new Uint8Array(3), 'c1')).toThrow(message)
  rmSync(join(dir, 'master.key'))
  expect(() => openVault(dir).open(sealed, 'c1')).toThrow(message)
})
