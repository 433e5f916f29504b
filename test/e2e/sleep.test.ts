import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import type { Computer } from '../support/computer.ts'
import { Gates, timesAsked } from '../support/gates.ts'
import { type LlmServer, startLlmServer } from '../support/llm-server.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

/** Longer than in other suites: here the frozen state must be seen too. */
const CHECKPOINT_AFTER_MS = 1_200
/** An agent that may sleep is on disk after this, with time to spare. */
const LADDER_MS = CHECKPOINT_AFTER_MS + 800
const MB = 1024 * 1024

const gates = new Gates()
let orb: Orb
let llm: LlmServer

beforeAll(async () => {
  llm = startLlmServer({ answerWhen: gates.answerWhen })
  orb = await startOrb({ env: { ORB_CHECKPOINT_AFTER: `${CHECKPOINT_AFTER_MS}ms` } })
})
afterAll(async () => {
  await orb?.stop()
  await llm?.stop()
})

afterEach(() => gates.openAll())

const checkpoints = async (computer: Computer): Promise<number> =>
  (await computer.lines('orb')).filter((line) => line.startsWith('checkpointed')).length

describe('an agent that waits for its LLM', () => {
  let computer: Computer
  beforeAll(async () => {
    computer = await orb.computer()
    await computer.deployAgent({ llmPort: llm.port, env: { DATA_MB: '100' } })
  })

  const CALLS = [
    { sdk: 'anthropic', stream: false },
    { sdk: 'anthropic', stream: true },
    { sdk: 'openai', stream: false },
    { sdk: 'openai', stream: true },
  ] as const

  test.each(CALLS)('sleeps through a call of $sdk, streamed: $stream', async ({ sdk, stream }) => {
    const id = `${sdk}-${stream}`
    gates.shut(id)
    const before = await computer.state()
    expect(computer.memoryBytes()).toBeGreaterThan(100 * MB)
    const beside = computer.processes().length

    await computer.ask({ id, prompt: `question of ${id}`, sdk, stream })
    const frozen = await computer.waitForState('frozen')
    expect(frozen.pid).toBeGreaterThan(0)
    expect(computer.processes()).toHaveLength(beside)

    const asleep = await computer.waitForState('checkpointed')
    expect(asleep).toMatchObject({ pid: null, sleep_reason: 'llm', failure_reason: null })
    expect(computer.agentProcesses()).toEqual([])
    expect(computer.memoryBytes()).toBeLessThan(2 * MB)
    expect((await computer.view()).status).toBe('active')

    gates.open(id)
    expect(await computer.outcome(id)).toEqual({
      id,
      answer: `echo: question of ${id}`,
      life: before.life,
      count: before.count + 1,
      intact: true,
    })
    expect(timesAsked(llm.requests, id)).toBe(1)
    expect(await computer.agent()).toMatchObject({ state: 'running', sleep_reason: null })
    await computer.expectStarts(1)
  })

  test('is only frozen when the answer comes before the time of the checkpoint', async () => {
    gates.shut('soon')
    const before = { pid: (await computer.agent())?.pid, checkpoints: await checkpoints(computer) }
    await computer.ask({ id: 'soon', prompt: 'soon' })
    await computer.waitForState('frozen')
    gates.open('soon')
    expect(await computer.outcome('soon')).toMatchObject({ answer: 'echo: soon', intact: true })
    expect({ pid: (await computer.agent())?.pid, checkpoints: await checkpoints(computer) }).toEqual(before)
  })

  test('runs on while an answer streams in, however long the gaps are', async () => {
    const before = await checkpoints(computer)
    await computer.ask({ id: 'gaps', prompt: 'slow', sdk: 'openai', stream: true, gapMs: CHECKPOINT_AFTER_MS + 100 })
    const states = await computer.statesDuring(3 * (CHECKPOINT_AFTER_MS + 100))
    expect(states).toEqual(['running'])
    expect(await computer.outcome('gaps')).toMatchObject({ answer: 'echo: slow' })
    expect(await checkpoints(computer)).toBe(before)
  })

  test('runs on while its tree is busy', async () => {
    gates.shut('busy')
    // Two, for the machine may be busy with other things as well.
    await computer.spawnInAgent('(while :; do :; done) & while :; do :; done')
    await computer.ask({ id: 'busy', prompt: 'busy' })
    expect(await computer.statesDuring(LADDER_MS)).toEqual(['running'])
    await computer.sh('pkill -KILL -f "while :"')
    await computer.waitForState('checkpointed')
    gates.open('busy')
    expect(await computer.outcome('busy')).toMatchObject({ answer: 'echo: busy' })
  })

  test('runs on while a command beside it waits for the LLM', async () => {
    gates.shut('beside')
    const body = JSON.stringify({ model: 'm', max_tokens: 9, messages: [{ role: 'user', content: 'from exec' }] })
    const command = computer.sh(`curl -sS --fail -H 'x-question: beside' -d '${body}' "$ORB_PROXY_URL/v1/messages"`)
    expect(await computer.statesDuring(LADDER_MS)).toEqual(['running'])
    gates.open('beside')
    expect(await command).toContain('echo: from exec')
  })

  test('that cannot be dumped stays where it is, says why, and gets its answer', async () => {
    gates.shut('traced', 'untraced')
    // criu cannot dump a process that another one traces.
    await computer.put(
      'agent/code/trace.py',
      `import ctypes, os, signal, time
child = os.fork()
if child == 0:
    ctypes.CDLL(None).ptrace(0, 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
os.waitpid(child, os.WUNTRACED)
print('tracing', flush=True)
time.sleep(1000)
`,
    )
    const before = await computer.state()
    await computer.spawnInAgent('exec python3 trace.py')
    await computer.waitForLine((line) => line === 'tracing')
    await computer.ask({ id: 'traced', prompt: 'traced' })
    const line = await computer.waitForLine((text) => text.startsWith('checkpoint failed: '))
    expect(line.length).toBeGreaterThan('checkpoint failed: '.length + 5)
    expect(line).not.toContain(orb.dataDir)
    expect((await computer.agent())?.state).toBe('frozen')
    gates.open('traced')
    expect(await computer.outcome('traced')).toMatchObject({ answer: 'echo: traced', life: before.life, intact: true })
    expect(timesAsked(llm.requests, 'traced')).toBe(1)

    await computer.sh('pkill -KILL -f trace.py')
    await computer.ask({ id: 'untraced', prompt: 'untraced' })
    await computer.waitForState('checkpointed')
    gates.open('untraced')
    expect(await computer.outcome('untraced')).toMatchObject({ answer: 'echo: untraced', life: before.life })
  })
})

test('sleep = "never" keeps an agent in memory', async () => {
  gates.shut('never')
  const computer = await orb.computer()
  await computer.deployAgent({ llmPort: llm.port, config: { lifecycle: { sleep: 'never' } } })
  await computer.ask({ id: 'never', prompt: 'never' })
  expect(await computer.statesDuring(LADDER_MS)).toEqual(['running'])
  gates.open('never')
  expect(await computer.outcome('never')).toMatchObject({ answer: 'echo: never' })
})

test('20 agents that wait at once each get their own answer', async () => {
  const numbers = Array.from({ length: 20 }, (_, index) => index)
  const ids = numbers.map((number) => `many-${number}`)
  gates.shut(...ids)
  const computers = await Promise.all(numbers.map(() => orb.computer({ runtime_mb: 128, disk_mb: 64 })))
  await Promise.all(computers.map((computer) => computer.deployAgent({ llmPort: llm.port })))
  await Promise.all(
    computers.map((computer, number) => {
      const stream = number % 2 === 0
      const sdk = number % 4 < 2 ? 'anthropic' : 'openai'
      return computer.ask({ id: `many-${number}`, prompt: `I am ${number}`, sdk, stream })
    }),
  )
  await Promise.all(computers.map((computer) => computer.waitForState('checkpointed', 60_000)))
  for (const id of ids.toReversed()) gates.open(id)
  const outcomes = await Promise.all(computers.map((computer, number) => computer.outcome(`many-${number}`, 60_000)))
  expect(outcomes.map(({ answer }) => answer)).toEqual(numbers.map((number) => `echo: I am ${number}`))
  expect(ids.map((id) => timesAsked(llm.requests, id))).toEqual(numbers.map(() => 1))
  await Promise.all(computers.map((computer) => computer.expectStarts(1)))
})
