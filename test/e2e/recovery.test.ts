import { afterAll, afterEach, beforeAll, expect, setDefaultTimeout, test } from 'bun:test'
import { readdirSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { runningCriu } from '../../src/runtime/criu-processes.ts'
import type { Computer } from '../support/computer.ts'
import { Gates, timesAsked } from '../support/gates.ts'
import { type LlmServer, startLlmServer } from '../support/llm-server.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'
import { isCriu, until } from '../support/sweep.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

const gates = new Gates()
let orb: Orb
let llm: LlmServer

beforeAll(async () => {
  llm = startLlmServer({ answerWhen: gates.answerWhen })
  orb = await startOrb()
})
afterEach(() => gates.openAll())
afterAll(async () => {
  await orb?.stop()
  await llm?.stop()
})

/** A process of the agent's that is traced by another: criu cannot dump that. */
const TRACED = `import ctypes, os, signal, time
child = os.fork()
if child == 0:
    ctypes.CDLL(None).ptrace(0, 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
os.waitpid(child, os.WUNTRACED)
print('tracing', flush=True)
time.sleep(1000)
`

test('a call whose end could not be told, as orb was killed in the middle of a dump: the agent learns of it', async () => {
  gates.shut('lost')
  const computer = await orb.computer()
  await computer.deployAgent({ llmPort: llm.port, config: { lifecycle: { sleep: 'never' } } })
  const before = await computer.state()
  await computer.put('agent/code/trace.py', TRACED)
  await computer.spawnInAgent('exec python3 trace.py')
  await computer.waitForLine((line) => line === 'tracing')
  // Without keep-alive, by which a client finds out for itself.
  const body = JSON.stringify({ model: 'stand-in', max_tokens: 1, messages: [{ role: 'user', content: 'lost' }] })
  await computer.put('agent/data/body', body)
  await computer.spawnInAgent(
    'curl -sS --no-keepalive -H "x-question: lost" -d @/agent/data/body "$ORB_PROXY_URL/v1/messages"; echo "ended with $?"',
  )
  expect(await until(() => timesAsked(llm.requests, 'lost') === 1)).toBe(true)

  const criu = () => runningCriu(orb.dataDir).find(({ pid }) => isCriu(pid))?.pid
  const demoted = computer.call('POST', '/agents/demote').catch(() => undefined)
  expect(await until(() => criu() !== undefined)).toBe(true)
  const working = criu() ?? 0
  process.kill(working, 'SIGSTOP')
  await orb.kill9()
  await demoted
  // The connection is locked: whatever the kernel still tries to say of its end is lost, until it gives up.
  const address = (await computerAddress(computer)) ?? ''
  Bun.spawnSync(['ss', '-K', '-t', 'dst', address, 'src', orb.gateway])
  expect(await until(() => connectionsWith(address) === '')).toBe(true)
  process.kill(working, 'SIGCONT')

  await orb.restart()
  expect(await computer.agent()).toMatchObject({ state: 'running', failure_reason: null })
  expect(await computer.waitForLine((line) => line.startsWith('ended with'))).not.toBe('ended with 0')
  expect(await computer.state()).toEqual({ life: before.life, count: before.count + 1 })
})

/** Of a computer, as its own namespace has it: orb need not run. */
async function computerAddress(computer: Computer): Promise<string | undefined> {
  const text = await Bun.$`ip -n ${computer.name} -4 -o address show dev eth0`.text()
  return /inet ([\d.]+)/.exec(text)?.[1]
}

const connectionsWith = (address: string): string =>
  Bun.spawnSync(['ss', '-tnH', 'dst', address, 'src', orb.gateway]).stdout.toString().trim()

test.each([
  ['running', 'broken', /^the computer cannot be brought up: mount .*\bdisk: /],
  ['running', 'missing', /^the computer cannot be brought up: its disk is missing: computers\/\S+\/disk\.img/],
  ['checkpointed', 'missing', /^the computer cannot be brought up: its disk is missing: computers\/\S+\/disk\.img/],
] as const)(
  'a %s agent whose disk is %s: others are served, it says why, and is there once the cause is gone',
  async (state, fault, reason) => {
    const [broken, other] = [await orb.computer(), await orb.computer()]
    for (const computer of [broken, other]) await computer.deployAgent()
    const before = { broken: await broken.state(), other: await other.state() }
    for (const computer of [broken, other]) await computer.put('agent/data/mine', 'kept')
    if (state === 'checkpointed') await broken.call('POST', '/agents/demote')
    await other.call('POST', '/agents/demote')
    await orb.terminate()
    await orb.down()
    const disk = join(orb.dataDir, 'computers', broken.id, 'disk.img')
    renameSync(disk, `${disk}.aside`)
    if (fault === 'broken') writeFileSync(disk, 'no file system')
    await orb.restart()

    expect((await other.call('POST', '/agents/promote')).status).toBe(200)
    expect(await other.state()).toEqual({ ...before.other, count: before.other.count + 1 })
    const fresh = await orb.computer()
    await fresh.deployAgent()
    const refused = await broken.call('POST', '/agents/promote')
    expect(refused.status).toBe(500)
    expect(refused.text).not.toContain(orb.dataDir)
    for (const answer of [
      refused,
      await broken.call('POST', '/exec', { command: 'true' }),
      await broken.call('GET', '/logs'),
      await broken.call('GET', '/files/agent/data/mine'),
    ]) {
      expect([answer.status, answer.json['message']]).toEqual([500, expect.stringMatching(reason)])
    }
    // Asked again, and after another start of orb, it is the same.
    await orb.terminate()
    await orb.restart()
    expect((await broken.call('POST', '/agents/promote')).status).toBe(500)
    expect((await other.agent())?.state).toBe('running')

    renameSync(`${disk}.aside`, disk)
    expect((await broken.call('POST', '/agents/promote')).status).toBe(200)
    await broken.waitForState('running')
    expect(await broken.get('agent/data/mine')).toBe('kept')
    if (state === 'running') {
      expect(await until(async () => (await broken.get('agent/data/lives')).trim().split('\n').length === 2)).toBe(true)
      return
    }
    expect(await broken.state()).toEqual({ ...before.broken, count: before.broken.count + 1 })
    await broken.expectStarts(1)
    expect(readdirSync(join(orb.dataDir, 'computers', broken.id))).toContain('disk.img')
  },
)
