import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import type { Computer } from '../support/computer.ts'
import { type Orb, type Payload, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

const UNKNOWN = '00000000-0000-4000-8000-000000000000'
const CONFIG = '[agent]\nname = "a"\nlang = "node"\nentry = "x.mjs"\n'

let orb: Orb
let computer: Computer
/** Of another organisation, with an agent. */
let foreign: Computer
let foreignKey = ''

beforeAll(async () => {
  orb = await startOrb()
  foreign = await orb.computer()
  await foreign.deployScript('node', 'setInterval(() => {}, 1000)')
  foreignKey = orb.key
  await orb.register()
  computer = await orb.computer()
})
afterAll(() => orb?.stop())

/** Everything of the organisation that a refused request might have changed. */
async function everything() {
  const paths = ['', '/agents', '/builds', '/config', '/files/', '/files/agent/code', '/logs']
  const answers = await Promise.all(paths.map((path) => computer.call('GET', path)))
  const [computers, keys] = await Promise.all([orb.call('GET', '/v1/computers'), orb.call('GET', '/v1/keys')])
  return [...answers.map(({ text }) => text), computers.text, keys.text.replaceAll(/"last_used_at":"[^"]*"/g, '')]
}

describe('who asks for', () => {
  const ROUTES: [string, string][] = [
    ['GET', ''],
    ['DELETE', ''],
    ['GET', '/agents'],
    ['POST', '/agents'],
    ['POST', '/agents/demote'],
    ['POST', '/agents/promote'],
    ['POST', '/restart'],
    ['POST', '/build'],
    ['GET', '/builds'],
    ['GET', '/builds/build_0000000000000000'],
    ['POST', '/config'],
    ['GET', '/config'],
    ['POST', '/exec'],
    ['GET', '/logs'],
    ['GET', '/logs?follow=1'],
    ['GET', '/files'],
    ['GET', '/files/etc/passwd'],
    ['PUT', '/files/etc/passwd'],
    ['POST', '/github/bootstrap'],
    ['POST', '/github/disconnect'],
  ]
  const bodyOf = (method: string, path: string): Payload => {
    if (path === '/exec') return { command: 'true' }
    if (path.startsWith('/github/')) return { pat: 'ghp_x' }
    if (method === 'PUT') return 'x'
    return path === '/config' && method === 'POST' ? CONFIG : undefined
  }

  test('an unknown, a foreign or a malformed computer is told the same', async () => {
    const before = { mine: await everything(), processes: foreign.processes() }
    for (const [method, path] of ROUTES) {
      const texts = new Set<string>()
      for (const id of [
        UNKNOWN,
        foreign.id,
        foreign.shortId,
        foreign.id.toUpperCase(),
        'x',
        '%00',
        "'; drop table computers; --",
        'x'.repeat(300),
      ]) {
        const encoded = id.startsWith('%') ? id : encodeURIComponent(id)
        const answer = await orb.call(method, `/v1/computers/${encoded}${path}`, bodyOf(method, path))
        expect([method, path, id, answer.status, answer.json['error']]).toEqual([method, path, id, 404, 'not_found'])
        texts.add(answer.text)
      }
      expect([method, path, texts.size]).toEqual([method, path, 1])
    }
    expect(await everything()).toEqual(before.mine)
    expect(foreign.processes()).toEqual(before.processes)
  })

  test('anything without a good key is told nothing, whether it exists or not', async () => {
    const before = await everything()
    const bad = [
      '',
      'Bearer',
      'Bearer x',
      `Bearer ${orb.key}x`,
      `Basic ${btoa(`x:${orb.key}`)}`,
      'Bearer a.b.c',
      `Bearer ${forgedToken()}`,
    ]
    for (const [method, path] of ROUTES) {
      for (const id of [computer.id, UNKNOWN]) {
        for (const authorization of bad) {
          const answer = await orb.call(method, `/v1/computers/${id}${path}`, bodyOf(method, path), { authorization })
          expect([method, path, authorization, answer.status, answer.json['error']]).toEqual([
            method,
            path,
            authorization,
            401,
            'unauthorized',
          ])
        }
      }
    }
    expect((await orb.call('GET', `/v1/computers?key=${orb.key}`, undefined, { authorization: '' })).status).toBe(401)
    expect(await everything()).toEqual(before)
  })

  test('a key of somebody else cannot revoke mine; a revoked one is worth nothing at once', async () => {
    const { json } = await orb.call('POST', '/v1/keys', { name: 'short-lived' })
    const key = { authorization: `Bearer ${json['api_key']}` }
    const login = await orb.call('POST', '/api/v1/auth/login', { api_key: json['api_key'] }, { authorization: '' })
    const token = { authorization: `Bearer ${login.json['token']}` }
    expect(
      (await orb.call('DELETE', `/v1/keys/${json['key_id']}`, undefined, { authorization: `Bearer ${foreignKey}` }))
        .status,
    ).toBe(404)
    for (const headers of [key, token])
      expect((await orb.call('GET', '/v1/computers', undefined, headers)).status).toBe(200)
    expect((await orb.call('DELETE', `/v1/keys/${json['key_id']}`)).json).toMatchObject({ revoked: true })
    for (const headers of [key, token])
      expect((await orb.call('GET', '/v1/computers', undefined, headers)).status).toBe(401)
    expect((await orb.call('DELETE', `/v1/keys/${json['key_id']}`)).status).toBe(404)
  })
})

test('nothing of all this was an error of the server', () => {
  expect(orb.log.split('\n').filter((line) => / status=5\d\d|\berror\b/.test(line))).toEqual([])
})

/** A token as an attacker would make it: unsigned. */
function forgedToken(): string {
  const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url')
  return `${part({ alg: 'none', typ: 'JWT' })}.${part({ sub: orb.orgId, exp: 9_999_999_999 })}.`
}
