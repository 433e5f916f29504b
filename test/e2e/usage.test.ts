import { Database } from 'bun:sqlite'
import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { stats, usage } from '../../src/api/cloud/schemas.ts'
import type { Computer } from '../support/computer.ts'
import { Gates } from '../support/gates.ts'
import { type LlmServer, startLlmServer } from '../support/llm-server.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'
import { until } from '../support/sweep.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

/** Between two events whose times must be told apart. */
const APART_MS = 300

/** Lives until it is told to end, with exit code 7. */
const QUIET = "process.on('SIGUSR2', () => process.exit(7)); setInterval(() => {}, 1000); console.log('listening')"

interface Mark {
  at: number
  state: 'none' | 'ram' | 'nvme'
}

const gates = new Gates()
let orb: Orb
let llm: LlmServer

beforeAll(async () => {
  llm = startLlmServer({ answerWhen: gates.answerWhen })
  orb = await startOrb({ env: { ORB_RATE_RUNTIME: '1000', ORB_RATE_DISK: '0' } })
})
afterEach(() => gates.openAll())
afterAll(async () => {
  await orb?.stop()
  await llm?.stop()
})

const statsOf = (computer: Computer, query = '') => orb.ask(stats, 'GET', `/v1/computers/${computer.id}/stats${query}`)
const usageOf = (query = '') => orb.ask(usage, 'GET', `/v1/usage${query}`)

/** What orb wrote down of a computer, and when it was last seen. */
function written(computer: Computer): { marks: Mark[]; seenAt: number } {
  const db = new Database(join(orb.dataDir, 'orb.db'), { readonly: true })
  try {
    const marks = db
      .query<Mark, [string]>(
        `SELECT at, state FROM usage_marks JOIN usage_computers ON number = computer WHERE id = ? ORDER BY at`,
      )
      .all(computer.id)
    return { marks, seenAt: db.query<{ at: number }, []>('SELECT at FROM usage_seen').get()?.at ?? 0 }
  } finally {
    db.close()
  }
}

const states = (computer: Computer): string =>
  written(computer)
    .marks.map(({ state }) => state)
    .join(' ')
const last = (computer: Computer): Mark => written(computer).marks.at(-1) ?? { at: 0, state: 'none' }

/** Lets time pass that an account to the ms shows, and says when that was. */
async function apart(): Promise<number> {
  const from = Date.now()
  await until(() => Date.now() > from + APART_MS)
  return Date.now()
}

const programs = (computer: Computer): number[] =>
  computer.agentProcesses().filter((pid) => readFileSync(`/proc/${pid}/cmdline`, 'utf8').startsWith('node\0'))

describe('a computer', () => {
  let computer: Computer
  beforeAll(async () => {
    computer = await orb.computer({ runtime_mb: 512, disk_mb: 256 })
  })

  test('without an agent takes its disk alone', async () => {
    expect(await statsOf(computer)).toMatchObject({
      computer_id: computer.id,
      window: '30d',
      active_secs: 0,
      sleep_secs: 0,
      sleep_pct: 0,
      active_pct: 0,
      llm_calls: 0,
      checkpoints: 0,
      ckpt_full: 0,
      ckpt_incremental: 0,
      failures: 0,
      runtime_gb_hours: 0,
      last_active_ago_secs: null,
      avg_restore_ms: null,
    })
    expect(await usageOf()).toMatchObject({ runtime_gb_hours: 0, computers_created: 1, computers_destroyed: 0 })
  })

  test('whose agent sleeps through a call has a checkpoint, a restore, and time in each state', async () => {
    gates.shut('long')
    await computer.deployAgent({ llmPort: llm.port })
    await computer.ask({ id: 'long', prompt: 'long' })
    await computer.waitForState('checkpointed')
    expect(await until(async () => (await statsOf(computer)).sleep_secs > 0)).toBe(true)
    const asleep = await statsOf(computer)
    const awakeBefore = (await usageOf()).runtime_gb_hours
    expect(awakeBefore).toBeGreaterThan(0)
    await apart()
    // Nothing is charged for the memory of one that sleeps.
    expect((await usageOf()).runtime_gb_hours).toBe(awakeBefore)
    gates.open('long')
    await computer.outcome('long')
    await computer.waitForState('running')
    expect(await until(async () => (await usageOf()).runtime_gb_hours > awakeBefore)).toBe(true)
    const after = await statsOf(computer)
    expect(after).toMatchObject({ llm_calls: 1, checkpoints: 1, ckpt_full: 1, failures: 0 })
    expect(after.avg_restore_ms).toBeGreaterThan(0)
    expect(after.sleep_secs).toBeGreaterThanOrEqual(asleep.sleep_secs)
    expect(after.sleep_pct + after.active_pct).toBeLessThanOrEqual(100.01)
    // At 1000 $ a GB-hour and no price of the disk.
    expect(after.est_cost_usd).toBeCloseTo(after.runtime_gb_hours * 1000, 2)
    expect(states(computer)).toBe('ram nvme ram')
    expect(await usageOf(`?computer=${computer.shortId}`)).toMatchObject({
      computer_id: computer.id,
      checkpoint_cycles: 1,
      computers_created: 1,
    })
    expect(await statsOf(computer, '?window=lifetime')).toMatchObject({
      window: 'lifetime',
      period_start: (await computer.view()).created_at,
      llm_calls: 1,
    })
  })

  test('counts the calls of commands, too', async () => {
    const body = JSON.stringify({ model: 'm', max_tokens: 9, messages: [{ role: 'user', content: 'beside' }] })
    await computer.sh(`curl -sS --fail -d '${body}' "$ORB_PROXY_URL/v1/messages"`)
    expect((await statsOf(computer)).llm_calls).toBe(2)
  })

  test('that wakes anew is active anew', async () => {
    await computer.call('POST', '/agents/demote')
    await apart()
    await computer.call('POST', '/agents/promote')
    const view = await statsOf(computer)
    expect(view).toMatchObject({ checkpoints: 2, llm_calls: 2 })
    expect(view.last_active_ago_secs).not.toBeNull()
    expect((await usageOf('?start=2026-01-01&end=2026-01-02')).checkpoint_cycles).toBe(0)
  })

  test('whose restore fails counts a failure, and takes nothing until it runs', async () => {
    const failing = await orb.computer()
    await failing.deployAgent()
    await failing.call('POST', '/agents/demote')
    // On the port of the agent.
    const intruder = "require('net').createServer().listen(8000, () => require('fs').writeFileSync('/tmp/listens', ''))"
    await failing.sh(`setsid node -e "${intruder}" >/dev/null 2>&1 & until [ -e /tmp/listens ]; do sleep 0.05; done`)
    expect((await failing.call('POST', '/agents/promote')).json).toMatchObject({ error: 'restore_failed' })
    expect(await statsOf(failing)).toMatchObject({ failures: 1, checkpoints: 1, avg_restore_ms: null })
    expect(last(failing).state).toBe('none')
    await failing.sh('pkill -KILL -f "[c]reateServer"')
    expect(await until(async () => (await failing.call('POST', '/agents/promote')).status === 200)).toBe(true)
    expect(last(failing).state).toBe('ram')
    expect((await statsOf(failing)).avg_restore_ms).toBeGreaterThan(0)
    await failing.call('DELETE', '')
  })

  test('that was deleted is in the accounts of its organisation, of no other', async () => {
    const before = await usageOf()
    const gone = await orb.computer({ disk_mb: 128 })
    await gone.deployScript('node', QUIET)
    await apart()
    await gone.call('DELETE', '')
    const kept = await usageOf(`?computer=${gone.id}`)
    expect(kept).toMatchObject({ computers_created: 1, computers_destroyed: 1 })
    expect(kept.runtime_gb_hours).toBeGreaterThan(0)
    await apart()
    expect(await usageOf(`?computer=${gone.id}`)).toMatchObject({ runtime_gb_hours: kept.runtime_gb_hours })
    expect((await usageOf()).computers_destroyed).toBe(before.computers_destroyed + 1)
    expect((await gone.call('GET', '/stats')).status).toBe(404)
    expect(states(gone)).toBe('ram none')

    const { key } = orb
    await orb.register()
    expect(await usageOf()).toMatchObject({ runtime_gb_hours: 0, disk_gb_hours: 0, computers_created: 0 })
    for (const path of [`/v1/usage?computer=${gone.id}`, `/v1/usage?computer=${computer.id}`, '/v1/usage?computer=x']) {
      expect((await orb.call('GET', path)).json).toMatchObject({ error: 'not_found' })
    }
    expect((await computer.call('GET', '/stats')).json).toMatchObject({ error: 'not_found' })
    orb.key = key
  })

  test.each(['start=2026-04-02&end=2026-04-01', 'start=2126-01-01', 'end=never', 'start='])(
    'cannot be asked for the period %s',
    async (query) => {
      expect((await orb.call('GET', `/v1/usage?${query}`)).json).toMatchObject({ error: 'invalid_request' })
    },
  )
})

describe('while no orb is there', () => {
  let computer: Computer
  beforeAll(async () => {
    computer = await orb.computer()
  })

  test('an agent that runs or sleeps goes on as it was', async () => {
    await computer.deployScript('node', QUIET)
    const running = written(computer).marks
    await orb.kill9()
    await apart()
    await orb.restart()
    expect((await computer.agent())?.state).toBe('running')
    expect(written(computer).marks).toEqual(running)

    await computer.call('POST', '/agents/demote')
    const asleep = written(computer).marks
    await orb.terminate()
    await apart()
    await orb.restart()
    expect((await computer.agent())?.state).toBe('checkpointed')
    expect(written(computer).marks).toEqual(asleep)
    await computer.call('POST', '/agents/promote')
    expect(states(computer)).toBe('ram nvme ram')
  })

  test('an agent that ends has ended then, and not when orb comes back', async () => {
    await orb.kill9()
    const from = await apart()
    for (const pid of programs(computer)) process.kill(pid, 'SIGUSR2')
    await until(() => computer.agentProcesses().length === 0)
    const to = Date.now()
    await apart()
    await orb.restart()
    expect(await computer.agent()).toMatchObject({ state: 'failed', exit_code: 7 })
    const { at, state } = last(computer)
    expect(state).toBe('none')
    expect([at >= from, at <= to]).toEqual([true, true])
  })

  test('an agent that is killed with its pid 1 was there until orb saw it last', async () => {
    await computer.deployScript('node', QUIET)
    await orb.terminate()
    const { seenAt } = written(computer)
    await apart()
    for (const pid of computer.agentProcesses()) process.kill(pid, 'SIGKILL')
    await until(() => computer.agentProcesses().length === 0)
    await orb.restart()
    expect((await computer.agent())?.state).toBe('failed')
    expect(last(computer)).toEqual({ at: seenAt, state: 'none' })
  })

  test('orb down ends what is in memory, and what comes back begins anew', async () => {
    const asleep = await orb.computer()
    for (const one of [computer, asleep]) await one.deployScript('node', QUIET)
    await asleep.call('POST', '/agents/demote')
    const sleeping = written(asleep).marks
    await orb.terminate()
    const from = await apart()
    await orb.down()
    const to = Date.now()
    const { at, state } = last(computer)
    expect([state, at >= from, at <= to]).toEqual(['none', true, true])
    expect(written(asleep).marks).toEqual(sleeping)
    await apart()
    await orb.restart()
    // While it is being started it shows as running.
    expect(await until(() => last(computer).state === 'ram')).toBe(true)
    const [none, again] = written(computer).marks.slice(-2)
    expect(none).toEqual({ at, state: 'none' })
    expect([again?.state, (again?.at ?? 0) > to]).toEqual(['ram', true])
    expect(last(asleep).state).toBe('nvme')
  })

  test('after all that, states never overlap and no time is lost', async () => {
    const view = await statsOf(computer, '?window=lifetime')
    const { marks } = written(computer)
    expect(marks.every(({ at }, index) => index === 0 || at > (marks[index - 1]?.at ?? 0))).toBe(true)
    expect(marks.every(({ state }, index) => index === 0 || state !== marks[index - 1]?.state)).toBe(true)
    expect(view.active_secs + view.sleep_secs).toBeLessThanOrEqual(view.wall_secs + 1)
    expect(view.failures).toBe(0)
  })
})
