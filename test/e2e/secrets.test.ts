/** The life of a computer's secrets (contract §7.2), against a real orb. Needs root. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { readdirSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import type { Computer } from '../support/computer.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'
import { until } from '../support/sweep.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

/** Every value that is sent starts like this, so that one search finds any of them where it must not be. */
const MARK = 'sk-hidden-'
const value = (name: string): string => `${MARK}${name}-0123456789`
const place = (name: string): string => `\${${name}}`

let orb: Orb

beforeAll(async () => {
  orb = await startOrb()
})
afterAll(() => orb?.stop())

const ENV = { A: place('ALPHA'), B: place('BETA'), LITERAL: 'BETA' }

async function deployed(): Promise<Computer> {
  const computer = await orb.computer()
  await computer.deployAgent({ env: ENV, secrets: { ALPHA: value('a'), BETA: value('b') } })
  return computer
}

const secretsOf = async (computer: Computer) => {
  const { A, B, LITERAL } = await computer.agentEnv()
  return { A, B, LITERAL }
}

const ready = (computer: Computer, times: number) =>
  until(async () => (await computer.lines('stdout')).filter((line) => line.includes('"ready"')).length >= times)

describe('secrets are injected again', () => {
  test('by a deploy, which changes those alone that it sends', async () => {
    const computer = await deployed()
    expect(await secretsOf(computer)).toEqual({ A: value('a'), B: value('b'), LITERAL: 'BETA' })
    expect((await computer.call('POST', '/agents')).status).toBe(201)
    expect(await ready(computer, 2)).toBe(true)
    expect(await secretsOf(computer)).toEqual({ A: value('a'), B: value('b'), LITERAL: 'BETA' })
    expect((await computer.call('POST', '/agents', { org_secrets: { BETA: value('rotated') } })).status).toBe(201)
    expect(await ready(computer, 3)).toBe(true)
    expect(await secretsOf(computer)).toEqual({ A: value('a'), B: value('rotated'), LITERAL: 'BETA' })
    expect((await computer.call('POST', '/agents', { org_secrets: { ALPHA: '' } })).status).toBe(201)
    expect(await ready(computer, 4)).toBe(true)
    expect(await secretsOf(computer)).toEqual({ A: '', B: value('rotated'), LITERAL: 'BETA' })
  })

  test('after a restart of the computer', async () => {
    const computer = await deployed()
    await computer.call('POST', '/restart')
    expect((await computer.call('POST', '/agents')).json['warnings']).toEqual([])
    expect(await ready(computer, 2)).toBe(true)
    expect(await secretsOf(computer)).toMatchObject({ A: value('a'), B: value('b') })
  })

  test('by the redeploy of a build, with those that the build brought', async () => {
    const computer = await deployed()
    const { json } = await computer.call('POST', '/build', { redeploy: true, org_secrets: { BETA: value('built') } })
    expect(json).toMatchObject({ success: true, redeployed: true })
    expect(await ready(computer, 2)).toBe(true)
    expect(await secretsOf(computer)).toMatchObject({ A: value('a'), B: value('built') })
  })

  test('by a recovery, after the machine or orb was gone', async () => {
    const computer = await deployed()
    await computer.call('POST', '/agents', { org_secrets: { BETA: value('newest') } })
    expect(await ready(computer, 2)).toBe(true)
    await orb.kill9()
    await orb.down()
    await orb.restart()
    expect(await ready(computer, 3)).toBe(true)
    expect(await secretsOf(computer)).toMatchObject({ A: value('a'), B: value('newest') })
  })
})

describe('a request that fails keeps no secret', () => {
  const config = (agent: Record<string, unknown> = {}, more: Record<string, unknown> = {}) => ({
    agent: { name: 'a', lang: 'node', entry: 'x.mjs', env: { A: place('ALPHA') }, ...agent },
    ...more,
  })
  const sent = { ALPHA: value('kept-never') }

  test.each([
    ['some are missing', config({ env: { A: place('ALPHA'), B: place('BETA') } }), 400, 'missing_secrets'],
    ['the program is not there', config({ lang: 'binary', entry: '/none' }), 422, 'spawn_failed'],
    ['the build fails', config({}, { build: { steps: ['exit 1'] } }), 422, 'build_failed'],
    ['the configuration is wrong', config({ lang: 'cobol' }), 400, 'invalid_config'],
  ])('when %s', async (_, orbConfig, status, error) => {
    const computer = await orb.computer()
    const answer = await computer.deploy(orbConfig, { org_secrets: sent })
    expect([answer.status, answer.json['error']]).toEqual([status, error])
    expect(answer.text).not.toContain(MARK)
    // Were it kept, the placeholder would be filled.
    const again = await computer.deploy(config())
    expect([again.status, again.json['message']]).toEqual([400, 'missing org_secrets: ALPHA'])
  })

  test('when they are too many, before anything is built for them', async () => {
    const computer = await orb.computer()
    const many = Object.fromEntries(Array.from({ length: 201 }, (_, index) => [`S${index}`, value('many')]))
    const answer = await computer.deploy(config({}, { build: { steps: ['true'] } }), {
      org_secrets: { ...many, ...sent },
    })
    expect([answer.status, answer.json['error']]).toEqual([400, 'invalid_request'])
    expect(answer.text).not.toContain(MARK)
    expect((await computer.call('GET', '/builds')).json['builds']).toEqual([])
  })

  test('and no other computer has those of one', async () => {
    await deployed()
    const other = await orb.computer()
    const answer = await other.deploy(config())
    expect([answer.status, answer.json['error']]).toEqual([400, 'missing_secrets'])
  })
})

describe('nobody is shown them', () => {
  test('by a build that writes them out', async () => {
    const computer = await deployed()
    await computer.put('agent/code/.env', `ALPHA=${value('a')}\nNEW=${value('new')}\n`)
    await computer.call(
      'POST',
      '/config',
      `[agent]\nname = "a"\nlang = "node"\nentry = "agent.mjs"\n[build]\nsteps = ["cat .env; cat .env >&2"]`,
    )
    const { text, json } = await computer.call('POST', '/build', { org_secrets: { NEW: value('new') } })
    expect(json).toMatchObject({ steps: [{ stdout: 'ALPHA=***\nNEW=***\n', stderr: 'ALPHA=***\nNEW=***\n' }] })
    expect(text).not.toContain(MARK)
    const inline = { agent: { name: 'a', lang: 'node', entry: 'agent.mjs' }, build: { steps: ['cat .env; exit 1'] } }
    await computer.put('agent/code/.env', value('sent'))
    const failed = await computer.deploy(inline, { org_secrets: { SENT: value('sent') } })
    expect(failed.json['error']).toBe('build_failed')
    expect(failed.text).not.toContain(MARK)
  })

  test('by any answer, log or file of orb', async () => {
    const computer = await deployed()
    await computer.call('POST', '/build')
    await computer.call('POST', '/agents/demote')
    await computer.call('POST', '/agents/promote')
    const answers = await Promise.all(
      ['', '/agents', '/config', '/builds', '/logs?tail=10000', '/logs?format=text'].map((path) =>
        computer.call('GET', path),
      ),
    )
    for (const { status, text } of answers) {
      expect(status).toBe(200)
      expect(text).not.toContain(MARK)
    }
    const paths = ['/v1/computers', '/v1/keys', '/metrics', '/health']
    for (const path of paths) expect((await orb.call('GET', path)).text).not.toContain(MARK)
    expect(orb.log).not.toContain(MARK)

    const files = readdirSync(orb.dataDir).filter((name) => name.startsWith('orb.db'))
    expect(files).toContain('orb.db')
    for (const file of files) expect(readFileSync(join(orb.dataDir, file)).includes(MARK)).toBe(false)
    expect(statSync(join(orb.dataDir, 'master.key')).mode & 0o777).toBe(0o600)
  })

  test('by the list of processes, here or in the computer', async () => {
    const computer = await deployed()
    expect(await computer.sh('ps axww -o args')).not.toContain(MARK)
    const commandLines = computer.processes().map((pid) => readFileSync(`/proc/${pid}/cmdline`, 'latin1'))
    expect(commandLines.length).toBeGreaterThan(0)
    for (const line of commandLines) expect(line).not.toContain(MARK)
  })
})
