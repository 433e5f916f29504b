import { afterAll, afterEach, beforeAll, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { z } from 'zod'
import {
  buildList,
  computerList,
  removedSwarm,
  swarmList,
  swarmProgress,
  swarmReport,
  swarm as swarmSchema,
} from '../../src/api/cloud/schemas.ts'
import { Computer } from '../support/computer.ts'
import { type LlmServer, startLlmServer } from '../support/llm-server.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'
import { until } from '../support/sweep.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

const REPLICAS = 5
const WAIT_MS = 30_000

let orb: Orb
let llm: LlmServer
let answer = Promise.withResolvers<void>()

beforeAll(async () => {
  llm = startLlmServer({ answerWhen: () => answer.promise })
  orb = await startOrb()
})
afterAll(async () => {
  answer.resolve()
  await orb?.stop()
  await llm?.stop()
})

/** Asks its LLM once, and counts its visitors: what it knows is in memory. */
const AGENT = `
  import { createServer } from 'node:http'
  const { ORB_REPLICA_INDEX: index, ORB_REPLICA_COUNT: count, TOKEN: token, ORB_PROXY_URL: proxy } = process.env
  let visits = 0
  createServer((_, response) => response.end(String(++visits))).listen(8000)
  const body = JSON.stringify({ model: 'stand-in', messages: [{ role: 'user', content: 'replica ' + index }] })
  const headers = { 'content-type': 'application/json' }
  const response = await fetch(proxy + '/v1/chat/completions', { method: 'POST', headers, body })
  const { choices } = await response.json()
  console.log(JSON.stringify({ index, count, token, said: choices[0].message.content }))
`
const withAgent = (source: string) => `echo ${Buffer.from(source).toString('base64')} | base64 -d > main.mjs`

const placeholder = (name: string) => `\${${name}}`

const config = (...steps: string[]) => ({
  agent: { name: 'worker', lang: 'node', entry: 'main.mjs', env: { TOKEN: placeholder('TOKEN') } },
  llm: { base_url: `http://127.0.0.1:${llm.port}` },
  ...(steps.length > 0 ? { build: { steps } } : {}),
})

const order = (name: string, replicas: number, orb_config: object) => ({
  name,
  replicas,
  orb_config,
  org_secrets: { TOKEN: 'secret token' },
  runtime_mb: 128,
  disk_mb: 128,
})

const layers = (): string[] => {
  const dir = join(orb.dataDir, 'images', 'layers')
  return existsSync(dir) ? readdirSync(dir) : []
}
const disks = (): string[] => readdirSync(join(orb.dataDir, 'computers'))

/** Deleted swarms leave nothing, not even after a test that failed half way. */
afterEach(async () => {
  answer.resolve()
  for (const { swarm_id } of (await orb.ask(swarmList, 'GET', '/v1/swarms')).swarms) {
    await orb.call('DELETE', `/v1/swarms/${swarm_id}`)
  }
  expect((await orb.ask(computerList, 'GET', '/v1/computers')).total).toBe(0)
  expect([...disks(), ...layers()]).toEqual([])
})

/** Sends the order and reads its events as they come. */
async function* events(body: object, signal?: AbortSignal) {
  const headers = { authorization: `Bearer ${orb.key}`, accept: 'text/event-stream' }
  const response = await fetch(`${orb.url}/v1/swarms`, { method: 'POST', headers, body: JSON.stringify(body), signal })
  expect(response.status).toBe(200)
  let text = ''
  for await (const chunk of response.body ?? []) {
    text += Buffer.from(chunk).toString()
    const blocks = text.split('\n\n')
    text = blocks.pop() ?? ''
    for (const block of blocks) {
      const [, event, data] = /^event: (\w+)\ndata: (.*)$/.exec(block) ?? []
      if (event !== undefined) yield { event, data: z.record(z.string(), z.unknown()).parse(JSON.parse(data ?? '')) }
    }
  }
}

test('one call builds once and deploys in each; they sleep through their call, wake each for itself, and go', async () => {
  answer = Promise.withResolvers()
  const build = ['env > env', 'head -c 8 /dev/urandom | xxd -p > stamp', withAgent(AGENT)]
  const made = await orb.call('POST', '/v1/swarms', order('workers', REPLICAS, config(...build)))
  expect([made.status, made.text]).toEqual([201, expect.any(String)])
  const report = swarmReport.parse(made.json)
  expect(report).toMatchObject({ name: 'workers', replicas: REPLICAS, deployed: REPLICAS, failed: [] })
  expect(report.swarm_id).toMatch(/^swm_[a-z0-9]{10}$/)
  expect(report.computers.map(({ replica_index, status }) => [replica_index, status])).toEqual(
    Array.from({ length: REPLICAS }, (_, index) => [index, 'active']),
  )
  const all = report.computers.map(({ id }) => new Computer(orb, id))
  const views = await Promise.all(all.map((computer) => computer.view()))
  expect(views.map(({ name, swarm_id, replica_index }) => [name, swarm_id, replica_index])).toEqual(
    all.map((_, index) => [`workers-replica-${index}`, report.swarm_id, index]),
  )
  const shown = await orb.ask(swarmSchema, 'GET', '/v1/swarms/workers')
  expect(await orb.ask(swarmSchema, 'GET', `/v1/swarms/${report.swarm_id}`)).toEqual(shown)
  expect(await orb.ask(swarmList, 'GET', '/v1/swarms')).toEqual({ swarms: [shown], total: 1 })

  // Built once, in none of them as a replica.
  expect(layers()).toHaveLength(1)
  const stamps = await Promise.all(all.map((computer) => computer.get('agent/code/stamp')))
  expect(new Set(stamps).size).toBe(1)
  expect(await all[1]?.get('agent/code/env')).not.toContain('ORB_REPLICA')
  const { builds } = await orb.ask(buildList, 'GET', `/v1/computers/${all[1]?.id}/builds`)
  expect(builds).toMatchObject([{ success: true, message: expect.stringContaining(all[0]?.shortId ?? '-') }])
  expect(await all[2]?.lines('orb')).toContain(`swarm workers, replica 2 of ${REPLICAS}: deployed`)
  expect((await orb.call('POST', '/v1/swarms', order('workers', 1, config()))).json['error']).toBe('name_taken')

  for (const computer of all) {
    const { sleep_reason } = await computer.waitForState('checkpointed')
    expect(sleep_reason).toBe('llm')
  }
  answer.resolve()
  for (const [index, computer] of all.entries()) {
    const line = await computer.waitForLine((text) => text.startsWith('{"index"'))
    const said = `echo: replica ${index}`
    expect(JSON.parse(line)).toEqual({ index: `${index}`, count: `${REPLICAS}`, token: 'secret token', said })
  }

  // Each is a computer of its own, also after its disk was mounted anew.
  const [, one, two] = all
  if (!one || !two) throw new Error('too few replicas')
  const visit = (computer: Computer) => computer.sh('curl -sS --fail --max-time 10 http://127.0.0.1:8000')
  await one.sh('echo changed > /agent/code/stamp; mv /agent/code /agent/moved; mv /agent/moved /agent/code')
  expect(await visit(one)).toBe('1')
  expect((await one.call('POST', '/agents/demote')).status).toBe(200)
  await orb.kill9()
  await orb.down()
  await orb.restart()
  expect((await one.call('POST', '/agents/promote')).status).toBe(200)
  expect(await visit(one)).toBe('2')
  expect(await one.get('agent/code/stamp')).toBe('changed\n')
  expect(await two.get('agent/code/stamp')).toBe(stamps[0] ?? '')

  const removed = await orb.ask(removedSwarm, 'DELETE', '/v1/swarms/workers')
  expect(removed).toEqual({ swarm_id: report.swarm_id, deleted: REPLICAS, failed: [] })
  expect((await orb.call('DELETE', '/v1/swarms/workers')).status).toBe(404)
  expect([...disks(), ...layers()]).toEqual([])
})

test('a layer goes with the last computer that stands on it', async () => {
  await orb.ask(
    swarmReport,
    'POST',
    '/v1/swarms',
    order('shrinking', 3, config(withAgent('setInterval(() => {}, 1e6)'))),
  )
  const { computers } = await orb.ask(swarmSchema, 'GET', '/v1/swarms/shrinking')
  const left: number[] = []
  for (const { id } of computers) {
    expect((await orb.call('DELETE', `/v1/computers/${id}`)).status).toBe(200)
    left.push(layers().length)
  }
  expect(left).toEqual([1, 1, 0])
  expect((await orb.ask(swarmSchema, 'GET', '/v1/swarms/shrinking')).computers).toEqual([])
})

test('replicas that fail are named and stay, the others run', async () => {
  const source = '#!/bin/sh\n[ $ORB_REPLICA_INDEX = 1 ] && echo not me >&2 && exit 3\nexec sleep 1000\n'
  const script = config(`${withAgent(source)}; chmod +x main.mjs`)
  const partly = { ...script, agent: { ...script.agent, lang: 'binary' } }
  const { status, json } = await orb.call('POST', '/v1/swarms', order('partly', 3, partly))
  expect(status).toBe(207)
  const { deployed, failed, computers } = swarmReport.parse(json)
  expect(deployed).toBe(2)
  const message = 'the agent exited with code 3: not me'
  expect(failed).toEqual([{ replica_index: 1, error: 'deploy_failed', message, computer_id: computers[1]?.id ?? '' }])
  expect(computers.map((computer) => computer.status)).toEqual(['active', 'failed', 'active'])
})

test('a build that fails is tried once, and said of each', async () => {
  const failing = config('echo tried >> /agent/data/tries', 'exit 4')
  const { status, json } = await orb.call('POST', '/v1/swarms', order('broken', 3, failing))
  expect(status).toBe(207)
  const { failed, computers } = swarmReport.parse(json)
  expect(failed.map(({ error, message }) => [error, message])).toEqual(
    Array.from({ length: 3 }, () => ['build_failed', 'step 2 failed with exit code 4']),
  )
  expect(computers.map((computer) => computer.status)).toEqual(['failed', 'failed', 'failed'])
  // Members can be used as any computer.
  const last = new Computer(orb, computers[2]?.id ?? '')
  expect(await last.sh('ls /agent/data')).toBe('')
  expect((await last.deployScript('node', 'setInterval(() => {}, 1e6)')).status).toBe(201)
  expect((await last.view()).status).toBe('active')
})

test('an orb that is killed leaves a swarm that says so and can be deleted', async () => {
  const seen: string[] = []
  for await (const { data } of events(order('cut', 3, config('sleep 60')))) {
    const { phase } = swarmProgress.parse(data)
    seen.push(phase)
    if (phase !== 'building') continue
    const { computers } = await orb.ask(swarmSchema, 'GET', '/v1/swarms/cut')
    expect(computers.map(({ status }) => status)).toEqual(['building', 'building', 'building'])
    break
  }
  expect(seen).toEqual(['created', 'building'])
  await orb.kill9()
  await orb.restart()
  const { computers } = await orb.ask(swarmSchema, 'GET', '/v1/swarms/cut')
  expect(computers.map(({ status }) => status)).toEqual(['failed', 'failed', 'failed'])
  expect(await orb.ask(removedSwarm, 'DELETE', '/v1/swarms/cut')).toMatchObject({ deleted: 3, failed: [] })
})

test('a client that leaves ends nothing', async () => {
  const gone = new AbortController()
  const source = withAgent('setInterval(() => {}, 1e6)')
  const reading = (async () => {
    for await (const { event } of events(order('alone', 3, config(source)), gone.signal))
      if (event === 'progress') gone.abort()
  })()
  await expect(reading).rejects.toThrow()
  const statuses = async () =>
    (await orb.ask(swarmSchema, 'GET', '/v1/swarms/alone')).computers.map(({ status }) => status)
  await until(async () => (await statuses()).every((status) => status === 'active'), WAIT_MS)
  expect(await statuses()).toEqual(['active', 'active', 'active'])
})

test('one that is deleted while it is built ends at once', async () => {
  const progress = events(order('unwanted', 3, config('sleep 600')))
  let last: Record<string, unknown> = {}
  let removal: Promise<unknown> | null = null
  for await (const { data } of progress) {
    if (data['phase'] === 'building') removal = orb.ask(removedSwarm, 'DELETE', '/v1/swarms/unwanted')
    last = data
  }
  expect(swarmReport.parse(last)).toMatchObject({ deployed: 0, failed: [{}, {}, {}] })
  expect(await removal).toMatchObject({ deleted: 3, failed: [] })
})

test('what is refused makes nothing', async () => {
  const refusals: [object, number, string][] = [
    [{ agent: { name: 'a', lang: 'perl', entry: 'a' } }, 400, 'invalid_config'],
    [{ ...config(), build: { steps: [] } }, 400, 'invalid_config'],
    [{ agent: { name: 'a', lang: 'node', entry: 'a', env: { A: placeholder('OTHER') } } }, 400, 'missing_secrets'],
  ]
  for (const [orb_config, status, error] of refusals) {
    const answer = await orb.call('POST', '/v1/swarms', order('refused', 2, orb_config))
    expect([answer.status, answer.json['error']]).toEqual([status, error])
  }
  expect((await orb.call('GET', '/v1/swarms/refused')).status).toBe(404)
  expect((await orb.ask(computerList, 'GET', '/v1/computers')).total).toBe(0)
})
