import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { createdWebhook, demoted, promoted, webhookDeliveries, webhookList } from '../../src/api/cloud/schemas.ts'
import type { Computer } from '../support/computer.ts'
import { Gates } from '../support/gates.ts'
import { type LlmServer, startLlmServer } from '../support/llm-server.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'
import { until } from '../support/sweep.ts'
import { Receiver, signatureOf } from '../support/webhook-receiver.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

const SECRET = 'only the receiver knows this'
const RUN_ON = 'setInterval(() => {}, 1000)'
const APP_PORT = 8_000
const APP = `require('node:http').createServer((_, answer) => answer.end('hello')).listen(${APP_PORT})`

const gates = new Gates()
let orb: Orb
let llm: LlmServer
let receiver: Receiver
let id: string

const hook = (body: object) => orb.ask(createdWebhook, 'POST', '/v1/webhooks', { events: ['*'], ...body })
const deliveries = async (of = id) =>
  (await orb.ask(webhookDeliveries, 'GET', `/v1/webhooks/${of}/deliveries?limit=1100`)).deliveries
const remove = (of: string) => orb.call('DELETE', `/v1/webhooks/${of}`)

beforeAll(async () => {
  llm = startLlmServer({ answerWhen: gates.answerWhen })
  receiver = new Receiver()
  orb = await startOrb()
  id = (await hook({ url: receiver.url(), secret: SECRET })).id
})
afterEach(() => {
  gates.openAll()
  receiver.answer = () => 204
})
afterAll(async () => {
  await orb?.stop()
  await receiver?.stop()
  await llm?.stop()
})

async function go(computer: Computer, verb: 'demote' | 'promote') {
  const { status, json, text } = await computer.call('POST', `/agents/${verb}`)
  if (status !== 200) throw new Error(`${verb}: ${status} ${text}`)
  return json
}

describe('events', () => {
  test('of a life: created, deployed, put to sleep and woken by hand, replaced, restarted, destroyed', async () => {
    const computer = await orb.computer({ name: 'watched', runtime_mb: 256, disk_mb: 200 })
    const { pid } = (await computer.deployScript('node', RUN_ON)).json
    const slept = demoted.parse(await go(computer, 'demote'))
    const woken = promoted.parse(await go(computer, 'promote'))
    const second = (await computer.deployScript('node', RUN_ON)).json
    await computer.call('POST', '/restart')
    await computer.deployScript('node', RUN_ON)
    await computer.call('DELETE', '')
    await receiver.expectTold(computer.id, [
      'computer.created',
      'agent.spawned deploy',
      'agent.checkpointed manual',
      'agent.restored manual',
      'agent.finished replaced',
      'agent.spawned deploy',
      'agent.finished restart',
      'agent.spawned deploy',
      'agent.finished deleted',
      'computer.destroyed',
    ])
    const base = { computer_id: computer.id, computer_name: 'watched', swarm_id: null }
    const ofAgent = { ...base, port: 10_000 }
    const data = async (what: string) => (await receiver.event(computer.id, what)).data
    const figures = { port: null, pid: null, runtime_mb: 256, disk_mb: 200 }
    expect(await data('computer.created')).toEqual({ ...base, ...figures })
    expect(await data('computer.destroyed')).toEqual({ ...base, ...figures })
    expect(await data('agent.checkpointed manual')).toEqual({
      ...ofAgent,
      pid: null,
      reason: 'manual',
      kind: 'full',
      duration_ms: slept.duration_ms,
      size_bytes: slept.size_bytes,
    })
    expect(await data('agent.restored manual')).toEqual({
      ...ofAgent,
      pid: woken.pid,
      reason: 'manual',
      duration_ms: woken.restore_ms,
    })
    for (const reason of ['replaced', 'restart', 'deleted'])
      expect(await data(`agent.finished ${reason}`)).toEqual({ ...ofAgent, pid: null, reason, exit_code: null })
    const spawns = receiver.events(computer.id).filter(({ type }) => type === 'agent.spawned')
    expect(spawns.map((event) => event.data['pid'])).toContain(pid)
    expect(spawns.map((event) => event.data['pid'])).toContain(second['pid'])
    for (const spawn of spawns)
      expect(spawn.data).toEqual({ ...ofAgent, pid: expect.any(Number), reason: 'deploy', code_version: null })
  })

  test('carry their names, their time and a signature, and nothing shows the secret', async () => {
    const computer = await orb.computer()
    await receiver.event(computer.id, 'computer.created')
    for (const one of receiver.received) {
      expect(one.headers.get('x-orb-event')).toBe(one.event.type)
      expect(one.headers.get('x-orb-delivery')).toBe(one.event.id)
      expect(one.headers.get('content-type')).toBe('application/json')
      expect(one.headers.get('x-orb-signature')).toBe(signatureOf(one, SECRET))
      expect(Math.abs(Number(one.headers.get('x-orb-timestamp')) - Date.now() / 1000)).toBeLessThan(600)
      expect(one.event.org_id).toBe(orb.orgId)
    }
    const { text } = await orb.call('GET', '/v1/webhooks')
    const stored = ['orb.db', 'orb.db-wal'].map((name) => readFileSync(join(orb.dataDir, name), 'latin1')).join('')
    expect(stored).toContain(receiver.url())
    for (const place of [text, stored, orb.log]) expect(place).not.toContain(SECRET)
    const { text: metrics } = await orb.call('GET', '/metrics')
    expect(metrics).toMatch(/orb_webhook_deliveries_total\{outcome="delivered"\} [1-9]/)
  })

  test('of a sleep for want of an answer, of a visitor, and of a build', async () => {
    const computer = await orb.computer()
    await computer.deployAgent({ llmPort: llm.port })
    gates.shut('q')
    await computer.ask({ id: 'q', prompt: 'hi' })
    await computer.waitForState('checkpointed')
    gates.open('q')
    expect((await computer.outcome('q')).answer).toBe('echo: hi')
    expect((await receiver.event(computer.id, 'agent.checkpointed llm')).data['size_bytes']).toBeGreaterThan(0)
    expect((await receiver.event(computer.id, 'agent.restored llm')).data['duration_ms']).toBeGreaterThan(0)

    const config = { agent: { args: [] }, ports: { expose: [APP_PORT] }, lifecycle: { idle_timeout: '2s' } }
    await computer.put('agent/code/main.mjs', '')
    await computer.deployScript('node', APP.replace("require('node:http')", "(await import('node:http'))"), config)
    await receiver.event(computer.id, 'agent.checkpointed idle')
    const { subdomain } = await computer.view()
    const visit = await fetch(orb.url, { headers: { host: subdomain } })
    expect(await visit.text()).toBe('hello')
    await receiver.event(computer.id, 'agent.restored http')
    await computer.waitForState('checkpointed')
    expect((await computer.call('POST', '/build')).status).toBe(200)
    await receiver.event(computer.id, 'agent.restored build')
  })

  test.each([
    ['by itself', 'node', 'setTimeout(() => process.exit(3), 500)', 'exit', 3],
    ['at once', 'node', 'process.exit(4)', 'exit', 4],
    [
      'for want of memory',
      'node',
      'const kept = []; setInterval(() => kept.push(Buffer.alloc(16 * 1024 * 1024, 1)), 5)',
      'oom',
      137,
    ],
  ] as const)('of an agent that ends %s, once', async (_, lang, source, reason, exitCode) => {
    const computer = await orb.computer({ runtime_mb: 64 })
    await computer.deployScript(lang, source)
    const { data } = await receiver.event(computer.id, `agent.finished ${reason}`)
    expect(data).toMatchObject({ exit_code: exitCode, pid: null })
    await computer.call('POST', '/restart')
    await computer.call('DELETE', '')
    const ends = ['agent.spawned deploy', `agent.finished ${reason}`]
    await receiver.expectTold(computer.id, ['computer.created', ...ends, 'computer.destroyed'])
  })

  test('of a checkpoint that is damaged: one end, and a restore once it is mended', async () => {
    const computer = await orb.computer()
    await computer.deployScript('node', RUN_ON)
    await go(computer, 'demote')
    await orb.terminate()
    const images = join(orb.dataDir, 'checkpoints', computer.id)
    const image = join(images, readdirSync(images)[0] ?? '')
    const file = join(image, readdirSync(image).find((name) => name.startsWith('pages-')) ?? '')
    const whole = readFileSync(file)
    const damaged = Buffer.from(whole)
    damaged[damaged.length >> 1] = (damaged[damaged.length >> 1] ?? 0) ^ 4
    writeFileSync(file, damaged)
    await orb.restart()
    for (let n = 0; n < 2; n++) expect((await computer.call('POST', '/agents/promote')).status).toBe(500)
    writeFileSync(file, whole)
    await go(computer, 'promote')
    await computer.call('POST', '/restart')
    await receiver.expectTold(computer.id, [
      'computer.created',
      'agent.spawned deploy',
      'agent.checkpointed manual',
      'agent.finished restore_failed',
      'agent.restored manual',
      'agent.finished restart',
    ])
  })

  test('of a start that nobody asked for', async () => {
    const computer = await orb.computer()
    await computer.deployScript('node', RUN_ON)
    await orb.terminate()
    await orb.down()
    await orb.restart()
    await computer.waitForState('running')
    const told = ['computer.created', 'agent.spawned deploy', 'agent.spawned recovery']
    await receiver.expectTold(computer.id, told)
    const { data } = await receiver.event(computer.id, 'agent.spawned recovery')
    expect(data['pid']).toBe((await computer.agent())?.pid ?? 0)
  })
})

describe('deliveries', () => {
  test('that orb did not live to see answered come again, under the same id, also an end that came meanwhile', async () => {
    const computer = await orb.computer()
    await receiver.event(computer.id, 'computer.created')
    const never = Promise.withResolvers<number>()
    receiver.answer = () => never.promise
    await computer.deployScript('node', RUN_ON)
    const spawned = await receiver.event(computer.id, 'agent.spawned deploy')
    await orb.kill9()
    process.kill(Number(spawned.data['pid']), 'SIGKILL')
    const before = receiver.received.length
    receiver.answer = () => 204
    await orb.restart()
    await receiver.event(computer.id, 'agent.finished exit')
    const again = () => receiver.received.slice(before).map(({ event }) => event.id)
    expect(await until(() => again().includes(spawned.id))).toBe(true)
    expect(await until(async () => (await deliveries()).every(({ status }) => status === 'delivered'))).toBe(true)
    await receiver.expectTold(computer.id, ['computer.created', 'agent.spawned deploy', 'agent.finished exit'])
  })

  test('that fail are tried again after ten seconds, across a restart of orb; the log tells of it', async () => {
    receiver.answer = () => 500
    const computer = await orb.computer()
    const created = await receiver.event(computer.id, 'computer.created')
    const logged = async () => (await deliveries()).find(({ event_id }) => event_id === created.id)
    expect(await until(async () => (await logged())?.attempts.length === 1)).toBe(true)
    const first = await logged()
    expect(first).toMatchObject({
      type: 'computer.created',
      status: 'waiting',
      attempts: [{ response_status: 500, error: 'the receiver answered 500' }],
      next_attempt_at: expect.any(String),
    })
    await orb.kill9()
    receiver.answer = () => 204
    await orb.restart()
    expect(await until(async () => (await logged())?.status === 'delivered', 30_000)).toBe(true)
    const last = await logged()
    expect(last?.next_attempt_at).toBeNull()
    expect(last?.attempts.map(({ response_status }) => response_status)).toEqual([500, 204])
    const times = last?.attempts.map(({ at }) => Date.parse(at)) ?? []
    // Times are shown in whole seconds.
    expect((times[1] ?? 0) - (times[0] ?? 0)).toBeGreaterThanOrEqual(9_000)
    const [one, two] = receiver.received.filter(({ event }) => event.id === created.id)
    expect(two?.body).toBe(one?.body ?? '')
    expect(two?.headers.get('x-orb-signature')).not.toBe(one?.headers.get('x-orb-signature') ?? '')
  })

  test('wait for no receiver that is silent', async () => {
    const silent = new Receiver()
    silent.answer = () => new Promise(() => {})
    const { id: silentId } = await hook({ url: silent.url() })
    const computers = await Promise.all(Array.from({ length: 6 }, () => orb.computer()))
    for (const computer of computers) await receiver.event(computer.id, 'computer.created')
    const waiting = await deliveries(silentId)
    expect(waiting).toHaveLength(6)
    expect(waiting.every(({ status }) => status === 'waiting')).toBe(true)
    expect((await remove(silentId)).status).toBe(200)
    await silent.stop()
  })

  test('are of the events that a webhook asked for, until it is deleted', async () => {
    const some = await hook({ url: receiver.url('/some'), events: ['computer.destroyed'] })
    const [one, two] = [await orb.computer(), await orb.computer()]
    await one.call('DELETE', '')
    await receiver.expectTold(one.id, ['computer.destroyed'], '/some')
    expect((await remove(some.id)).json).toEqual({ id: some.id, deleted: true })
    expect((await remove(some.id)).status).toBe(404)
    await two.call('DELETE', '')
    await receiver.event(two.id, 'computer.destroyed')
    expect(receiver.told(two.id, '/some')).toEqual([])
  })

  test('end with 410', async () => {
    const { id: gone } = await hook({ url: receiver.url('/gone') })
    receiver.answer = ({ path }) => (path === '/gone' ? 410 : 204)
    const first = await orb.computer()
    const shown = async () =>
      (await orb.ask(webhookList, 'GET', '/v1/webhooks')).webhooks.find((webhook) => webhook.id === gone)
    expect(await until(async () => (await shown())?.active === false)).toBe(true)
    expect((await shown())?.disabled_reason).toContain('410')
    const second = await orb.computer()
    await receiver.event(second.id, 'computer.created')
    expect([receiver.told(first.id, '/gone'), receiver.told(second.id, '/gone')]).toEqual([['computer.created'], []])
    await remove(gone)
  })

  test('go nowhere private that the operator did not name', async () => {
    for (const url of [
      'https://169.254.169.254/',
      'https://10.0.0.1/',
      'http://example.com/',
      `http://${orb.gateway}/`,
    ]) {
      const answer = await orb.call('POST', '/v1/webhooks', { url, events: ['*'] })
      expect([url, answer.status, answer.json['error']]).toEqual([url, 400, 'invalid_request'])
    }
  })
})

test('another organisation has webhooks of its own', async () => {
  const { key } = orb
  const computer = await orb.computer()
  await receiver.event(computer.id, 'computer.created')
  await orb.register()
  expect((await orb.ask(webhookList, 'GET', '/v1/webhooks')).total).toBe(0)
  for (const answer of [await remove(id), await orb.call('GET', `/v1/webhooks/${id}/deliveries`)])
    expect([answer.status, answer.json['error']]).toEqual([404, 'not_found'])
  const theirs = await orb.computer()
  await theirs.deployScript('node', RUN_ON)
  orb.key = key
  const mine = await orb.computer()
  await receiver.event(mine.id, 'computer.created')
  expect(receiver.told(theirs.id)).toEqual([])
})
