import { Database } from 'bun:sqlite'
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { symlinkSync } from 'node:fs'
import { join } from 'node:path'
import type { z } from 'zod'
import { cronJobs, cronRuns, cronTriggered } from '../../src/api/cloud/schemas.ts'
import type { Computer } from '../support/computer.ts'
import { Gates, timesAsked } from '../support/gates.ts'
import { type LlmServer, startLlmServer } from '../support/llm-server.ts'
import { CHECKPOINT_AFTER_MS, type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'
import { until } from '../support/sweep.ts'

/** One of them waits for the next full minute. */
setDefaultTimeout(TEST_TIMEOUT_MS + 60_000)

const FILE = 'agent/.orb/cron.json'
const CAPTURED_BYTES = 16_384
const MINUTE_MS = 60_000
const WAIT_MS = 20_000
const KEY_REFERENCE = '$' + '{KEY}'
/** Never comes while the tests run. */
const NEVER = '0 0 29 2 *'

type Run = z.output<typeof cronRuns>['runs'][number]

const gates = new Gates()
let orb: Orb
let llm: LlmServer

beforeAll(async () => {
  llm = startLlmServer({ answerWhen: gates.answerWhen })
  orb = await startOrb()
})
afterAll(async () => {
  gates.openAll()
  await orb?.stop()
  await llm?.stop()
})

const job = (name: string, command: string, more: Record<string, unknown> = {}) => ({
  name,
  schedule: NEVER,
  command,
  ...more,
})
const write = (computer: Computer, ...jobs: unknown[]) => computer.put(FILE, JSON.stringify({ version: 1, jobs }))
const list = (computer: Computer) => orb.ask(cronJobs, 'GET', `/v1/computers/${computer.id}/cron`)
const trigger = (computer: Computer, name: string) => computer.call('POST', `/cron/${name}/trigger`)
const run = async (computer: Computer, name: string) => cronTriggered.parse((await trigger(computer, name)).json)
const runs = async (computer: Computer, query = ''): Promise<Run[]> =>
  (await orb.ask(cronRuns, 'GET', `/v1/computers/${computer.id}/cron/runs${query}`)).runs
const waitForFile = async (computer: Computer, path: string) =>
  expect(await until(async () => (await computer.call('GET', `/files/${path}`)).status === 200, WAIT_MS)).toBe(true)

/** Says that it has begun, then waits until the test lets it go. */
const GATED = 'touch /agent/data/begun; until [ -e /agent/data/go ]; do sleep 0.05; done'

describe('cron.json', () => {
  let computer: Computer
  beforeAll(async () => {
    computer = await orb.computer()
  })

  test('is not there: no jobs', async () => {
    expect(await list(computer)).toEqual({ jobs: [], error: null })
    expect(await runs(computer)).toEqual([])
  })

  test('that a program inside writes counts, with defaults filled in', async () => {
    const jobs = [{ name: 'a', schedule: '0 0 1 1 *', command: 'true' }, job('b', 'false', { enabled: false })]
    await computer.sh(`echo '${JSON.stringify({ jobs })}' > /agent/.orb/cron.json`)
    const { jobs: shown, error } = await list(computer)
    expect(error).toBeNull()
    expect(shown).toEqual([
      {
        name: 'a',
        schedule: '0 0 1 1 *',
        command: 'true',
        env: {},
        working_dir: null,
        timeout_secs: 30,
        enabled: true,
        skip_if_running: true,
        next_fire_at: `${new Date().getUTCFullYear() + 1}-01-01T00:00:00Z`,
        last_fired_at: null,
      },
      expect.objectContaining({ name: 'b', enabled: false, next_fire_at: null }),
    ])
  })

  test('is looked at without anybody asking', async () => {
    const other = await orb.computer()
    await write(other, job('found', 'true'))
    const database = new Database(join(orb.dataDir, 'orb.db'), { readonly: true })
    const known = database.query('SELECT name FROM cron_jobs WHERE computer_id = ?')
    expect(await until(() => known.get(other.id) !== null, WAIT_MS)).toBe(true)
    database.close()
  })

  test('that is broken leaves the last good jobs', async () => {
    await computer.put(FILE, '{"jobs":[')
    const broken = await list(computer)
    expect(broken.jobs.map(({ name }) => name)).toEqual(['a', 'b'])
    expect(broken.error).toContain('not valid JSON')
    await write(computer, job('c', 'true'), { name: 'd' })
    const mended = await list(computer)
    expect([mended.jobs.map(({ name }) => name), mended.error]).toEqual([['c'], 'jobs[1]: schedule is required'])
  })

  test('that is too long, or leads to the server, is not read', async () => {
    await write(computer, job('c', `: ${'x'.repeat(64 * 1024)}`))
    expect((await list(computer)).error).toBe('cron.json is longer than 65536 bytes')
    await computer.sh('rm /agent/.orb/cron.json')
    const secret = join(orb.dataDir, 'orb.db')
    symlinkSync(secret, join(orb.dataDir, 'computers', computer.id, 'rootfs', FILE))
    expect(await list(computer)).toEqual({ jobs: [], error: null })
    await computer.sh('rm /agent/.orb/cron.json')
  })
})

describe('a run', () => {
  let computer: Computer
  beforeAll(async () => {
    computer = await orb.computer()
    await computer.deployAgent({
      llmPort: llm.port,
      env: { PLAIN: 'as is', TOKEN: KEY_REFERENCE, ORB_PORT: '1' },
      secrets: { KEY: 's3cret' },
    })
  })

  test('has the environment of the agent and its own, and starts in /agent/code', async () => {
    const env = { OWN: 'mine', PLAIN: 'other', ORB_PROXY_URL: 'http://nowhere' }
    const line = 'echo "$PWD $PLAIN $TOKEN $OWN $HOME $ORB_COMPUTER_ID $ORB_PORT $ANTHROPIC_BASE_URL $ORB_PROXY_URL"'
    await write(computer, job('env', line, { env }), job('cwd', 'pwd', { working_dir: '/agent/data' }))
    const { stdout, ...rest } = await run(computer, 'env')
    expect(stdout?.split(/[ \n]/)).toEqual([
      ...['/agent/code', 'other', 's3cret', 'mine', '/root', computer.id, '20001'],
      ...Array.from({ length: 2 }, () => expect.stringMatching(/^http:\/\/10\.[\d.]+:\d+$/)),
      '',
    ])
    expect(rest).toMatchObject({ status: 'success', exit_code: 0, stderr: '', timed_out: false })
    expect((await run(computer, 'cwd')).stdout).toBe('/agent/data\n')
  })

  test('is recorded with its end, what it said first, and its job', async () => {
    await write(computer, job('long', 'head -c 20000 /dev/zero | tr "\\0" x; echo oops >&2; exit 3'))
    const answer = await run(computer, 'long')
    expect(answer).toMatchObject({ status: 'failure', exit_code: 3, stderr: 'oops\n', timed_out: false })
    expect(answer.stdout).toBe('x'.repeat(CAPTURED_BYTES))
    const [newest, before] = await runs(computer, '?limit=2')
    expect(newest).toMatchObject({
      id: answer.run_id,
      job_id: expect.stringMatching(/^job_[a-z0-9]{16}$/),
      job_name: 'long',
      status: 'failure',
      exit_code: 3,
      duration_ms: answer.duration_ms,
      error: null,
    })
    expect(newest?.stdout).toBe(answer.stdout)
    expect(before).toMatchObject({ job_name: 'cwd', status: 'success', stderr: null })
    expect((await runs(computer, '?job=env')).map(({ job_name }) => job_name)).toEqual(['env'])
    expect((await list(computer)).jobs[0]?.last_fired_at).toBe(newest?.fired_at ?? '')
  })

  test('that takes too long is killed with all its children', async () => {
    const beside = computer.processes().length
    await write(computer, job('slow', 'echo begun; setsid sleep 1000 & sleep 1000', { timeout_secs: 1 }))
    expect(await run(computer, 'slow')).toMatchObject({
      status: 'timeout',
      exit_code: null,
      stdout: 'begun\n',
      timed_out: true,
    })
    expect(await until(() => computer.processes().length === beside)).toBe(true)
    expect(await runs(computer, '?limit=1')).toMatchObject([{ status: 'timeout', exit_code: null }])
  })

  test('that cannot begin answers 502, an unknown job 404', async () => {
    await write(computer, job('lost', 'true', { working_dir: '/agent/nowhere' }))
    const answer = await trigger(computer, 'lost')
    expect([answer.status, cronTriggered.parse(answer.json)]).toEqual([
      502,
      {
        run_id: expect.stringMatching(/^run_[a-z0-9]{16}$/),
        status: 'error',
        exit_code: null,
        stdout: null,
        stderr: null,
        duration_ms: null,
        timed_out: false,
      },
    ])
    expect(await runs(computer, '?limit=1')).toMatchObject([
      { status: 'error', error: 'the working directory /agent/nowhere cannot be entered (ENOENT)' },
    ])
    const unknown = await trigger(computer, 'nobody')
    expect([unknown.status, unknown.json['error']]).toEqual([404, 'job_not_found'])
  })

  test('neither wakes a sleeping agent nor is seen by it, its LLM call included', async () => {
    const before = await computer.state()
    await computer.call('POST', '/agents/demote')
    const body = JSON.stringify({ model: 'm', messages: [{ role: 'user', content: 'hi' }] })
    const curl = `curl -sS --fail -H 'x-question: by-cron' -d '${body}' $OPENAI_BASE_URL/v1/chat/completions`
    await write(computer, job('ask', curl))
    expect(await run(computer, 'ask')).toMatchObject({ status: 'success', stdout: expect.stringContaining('echo: hi') })
    expect(timesAsked(llm.requests, 'by-cron')).toBe(1)
    expect((await computer.agent())?.state).toBe('checkpointed')
    expect((await computer.lines('orb')).some((line) => line.startsWith('restored'))).toBe(false)
    await computer.call('POST', '/agents/promote')
    expect(await computer.state()).toEqual({ life: before.life, count: before.count + 1 })
  })

  test('does not send the agent to sleep by a long LLM call, nor keep it from sleeping', async () => {
    gates.shut('long-by-cron')
    const body = JSON.stringify({ model: 'm', messages: [{ role: 'user', content: 'hi' }] })
    const curl = `curl -sS --fail -H 'x-question: long-by-cron' -d '${body}' $OPENAI_BASE_URL/v1/chat/completions`
    await write(computer, job('ask', curl, { timeout_secs: 120 }))
    const asked = run(computer, 'ask')
    expect(await until(() => timesAsked(llm.requests, 'long-by-cron') === 1, WAIT_MS)).toBe(true)
    expect(await computer.statesDuring(2 * CHECKPOINT_AFTER_MS)).toEqual(['running'])
    const demoted = await computer.call('POST', '/agents/demote')
    expect([demoted.status, (await computer.agent())?.state]).toEqual([200, 'checkpointed'])
    gates.open('long-by-cron')
    expect(await asked).toMatchObject({ status: 'success' })
    expect((await computer.agent())?.state).toBe('checkpointed')
  })
})

test('a run does not keep an idle agent from sleeping', async () => {
  const computer = await orb.computer()
  await computer.deployAgent({ config: { lifecycle: { idle_timeout: '2s' } } })
  await write(computer, job('busy', GATED, { timeout_secs: 200 }))
  const busy = run(computer, 'busy')
  await waitForFile(computer, 'agent/data/begun')
  expect((await computer.waitForState('checkpointed')).sleep_reason).toBe('idle')
  await computer.put('agent/data/go', '')
  expect(await busy).toMatchObject({ status: 'success' })
  expect((await computer.agent())?.state).toBe('checkpointed')
})

test('at its minute a job runs beside a sleeping agent; not while it still runs, nor when disabled', async () => {
  const computer = await orb.computer()
  await computer.deployAgent()
  await computer.call('POST', '/agents/demote')
  const every = { schedule: '* * * * *' }
  await write(
    computer,
    job('tick', 'date +%s', every),
    job('busy', GATED, { ...every, timeout_secs: 200 }),
    job('off', 'true', { ...every, enabled: false }),
  )
  const busy = run(computer, 'busy')
  await waitForFile(computer, 'agent/data/begun')
  const due = (await list(computer)).jobs.find(({ name }) => name === 'tick')?.next_fire_at ?? ''
  const ended = async () =>
    (await runs(computer)).filter(({ fired_at, finished_at }) => finished_at && fired_at === due)
  expect(await until(async () => (await ended()).length === 2, MINUTE_MS + WAIT_MS)).toBe(true)
  const [tick, skipped] = (await ended()).toSorted((a, b) => b.job_name.localeCompare(a.job_name))
  expect(tick).toMatchObject({ job_name: 'tick', status: 'success', exit_code: 0 })
  expect(Number(tick?.stdout)).toBeGreaterThanOrEqual(Date.parse(due) / 1000)
  expect(skipped).toMatchObject({ job_name: 'busy', status: 'skipped', error: 'the run before had not ended' })
  expect((await computer.agent())?.state).toBe('checkpointed')
  expect((await runs(computer, '?job=off')).length).toBe(0)
  await computer.put('agent/data/go', '')
  expect(await busy).toMatchObject({ status: 'success' })
  expect((await orb.call('GET', '/metrics')).text).toContain('orb_cron_runs_total{status="skipped"} 1')
})

describe('when orb', () => {
  test('is killed, what it ran is over, shown as an error and not begun again; jobs stay', async () => {
    const computer = await orb.computer()
    await write(computer, job('once', `echo begun >> /agent/data/begun; sleep 1000`, { timeout_secs: 1000 }))
    const idle = computer.processes().length
    const cutOff = trigger(computer, 'once').catch(() => 'cut off')
    await waitForFile(computer, 'agent/data/begun')
    await orb.kill9()
    expect(await cutOff).toBe('cut off')
    await orb.restart()
    expect(await runs(computer)).toMatchObject([
      { job_name: 'once', status: 'error', finished_at: expect.any(String), exit_code: null },
    ])
    expect(computer.processes()).toHaveLength(idle)
    expect(await computer.get('agent/data/begun')).toBe('begun\n')
    expect((await list(computer)).jobs.map(({ name }) => name)).toEqual(['once'])
  })

  test('comes back after all was taken down, jobs count without the computer; a trigger brings it up', async () => {
    const computer = await orb.computer()
    await write(computer, job('a', 'echo here'))
    expect(await orb.terminate()).toBe(0)
    await orb.down()
    await orb.restart()
    expect((await list(computer)).jobs.map(({ name }) => name)).toEqual(['a'])
    expect(computer.processes()).toEqual([])
    expect(await run(computer, 'a')).toMatchObject({ status: 'success', stdout: 'here\n' })
  })

  test('deletes a computer, its runs end with it', async () => {
    const computer = await orb.computer()
    await write(computer, job('a', GATED, { timeout_secs: 1000 }))
    const open = trigger(computer, 'a')
    await waitForFile(computer, 'agent/data/begun')
    expect((await orb.call('DELETE', `/v1/computers/${computer.id}`)).status).toBe(200)
    expect((await open).status).toBeOneOf([200, 502])
    expect((await computer.call('GET', '/cron')).status).toBe(404)
    expect((await trigger(computer, 'a')).status).toBe(404)
  })
})
