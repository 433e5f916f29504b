import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { join } from 'node:path'
import { z } from 'zod'
import { type RawConnection, rawClient } from '../../src/proxy/testing.ts'
import type { Computer } from '../support/computer.ts'
import { Gates } from '../support/gates.ts'
import { type LlmServer, startLlmServer } from '../support/llm-server.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'
import { until } from '../support/sweep.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

const IDLE_TIMEOUT = '2s'
/** What ends the work of an agent here: a file, for that neither wakes it nor is anything that it sees. */
const GO = 'agent/data/go'

const State = z.object({ life: z.string(), count: z.number() })

const gates = new Gates()
let orb: Orb
let llm: LlmServer
/** An app that nothing keeps awake. */
let control: Computer

beforeAll(async () => {
  llm = startLlmServer({ answerWhen: gates.answerWhen })
  // The ladder must not be what sends an agent to sleep here.
  orb = await startOrb({
    env: { ORB_IDLE_TIMEOUT: IDLE_TIMEOUT, ORB_FREEZE_AFTER: '1h', ORB_CHECKPOINT_AFTER: '1h' },
  })
  control = await app()
})
afterAll(async () => {
  gates.openAll()
  await orb?.stop()
  await llm?.stop()
})

const small = (): Promise<Computer> => orb.computer({ runtime_mb: 128, disk_mb: 64 })

async function app(lifecycle: Record<string, string> = {}): Promise<Computer> {
  const computer = await small()
  await computer.put('agent/code/app.mjs', await Bun.file(join(import.meta.dir, '../support/app.mjs')).text())
  const answer = await computer.deploy({
    agent: { name: 'app', lang: 'node', entry: 'app.mjs', env: { BIND: '127.0.0.1:8000' } },
    ports: { expose: [8000] },
    lifecycle,
  })
  expect(answer.status).toBe(201)
  await computer.waitForLine((line) => line === 'app ready')
  return computer
}

async function script(lang: 'node' | 'python' | 'binary', source: string, config = {}): Promise<Computer> {
  const computer = await small()
  expect((await computer.deployScript(lang, source, config)).status).toBe(201)
  await computer.waitForLine((line) => line === 'begun')
  return computer
}

/** Does `work` again and again until it is told to go, and nothing from then on. */
const python = (work: string, before = ''): string => `
import os, select, socket, time, urllib.parse
${before}
print('begun', flush=True)
while not os.path.exists('/${GO}'):
    ${work}
select.select([], [], [])
`
const go = (computer: Computer) => computer.put(GO, '')

const hostOf = (computer: Computer): string => `${computer.shortId}.orb.localhost`

const visit = async (computer: Computer) =>
  State.parse(await (await fetch(`${orb.url}/state`, { headers: { host: hostOf(computer) } })).json())

/** Sends a request to the app and waits for the head of the answer. */
async function open(computer: Computer, path: string, headers: string[] = []): Promise<RawConnection> {
  const client = await rawClient(Number(new URL(orb.url).port))
  client.write([`GET ${path} HTTP/1.1`, `Host: ${hostOf(computer)}`, ...headers, '', ''].join('\r\n'))
  await client.has('\r\n\r\n')
  return client
}

const UPGRADE = [
  'Connection: Upgrade',
  'Upgrade: websocket',
  'Sec-WebSocket-Version: 13',
  'Sec-WebSocket-Key: dGhlIHNhbXBsZQ==',
]

const checkpoints = async (computer: Computer): Promise<string[]> =>
  (await computer.lines('orb')).filter((line) => line.startsWith('checkpointed'))

async function expectIdleSleep(computer: Computer): Promise<void> {
  const agent = await computer.waitForState('checkpointed')
  expect(agent).toMatchObject({ pid: null, sleep_reason: 'idle', failure_reason: null })
  expect(computer.agentProcesses()).toEqual([])
}

/** Wakes the control and waits until it is idle again, twice: whatever does nothing since before that is asleep too. */
async function windowsPass(): Promise<void> {
  for (let times = 0; times < 2; times++) {
    await visit(control)
    await expectIdleSleep(control)
  }
}

test('an app without visitors falls asleep, and a visitor finds it as it was', async () => {
  const before = await visit(control)
  await expectIdleSleep(control)
  expect(await visit(control)).toEqual({ life: before.life, count: before.count + 1 })
  expect(await control.agent()).toMatchObject({ state: 'running', sleep_reason: null })
  await expectIdleSleep(control)
  expect((await control.lines('orb')).findLast((line) => line.startsWith('checkpointed'))).toMatch(
    /^checkpointed \(idle\), \d+ bytes/,
  )
  const metrics = await orb.call('GET', '/metrics', undefined, { authorization: '' })
  expect(metrics.text).toMatch(/^orb_checkpoints_total\{kind="full",reason="idle"\} [1-9]/m)
})

/** What keeps an agent awake: begins it, and returns what ends it. */
type Keeper = () => Promise<{ computer: Computer; end: () => unknown }>

const scriptKeeper =
  (source: string): Keeper =>
  async () => {
    const computer = await script('python', source)
    return { computer, end: () => go(computer) }
  }

const connectionKeeper =
  (path: string, headers: string[] = []): Keeper =>
  async () => {
    const computer = await app()
    const client = await open(computer, path, headers)
    return { computer, end: () => client.socket.end() }
  }

const KEEPERS: [string, Keeper][] = [
  ['a request is open', connectionKeeper('/events')],
  ['a WebSocket is open', connectionKeeper('/', UPGRADE)],
  [
    'a command beside it runs',
    async () => {
      const computer = await app()
      const command = computer.exec(`echo begun > /agent/data/begun; until [ -e /${GO} ]; do sleep 0.1; done`)
      await until(async () => (await computer.call('GET', '/files/agent/data/begun')).status === 200)
      return { computer, end: () => Promise.all([go(computer), command]) }
    },
  ],
  [
    'it waits for its LLM',
    async () => {
      gates.shut('held')
      const body = JSON.stringify({ model: 'm', max_tokens: 9, messages: [{ role: 'user', content: 'hello' }] })
      const call = `curl -sS --fail -H 'x-question: held' -d '${body}' "$ORB_PROXY_URL/v1/messages"`
      const source = `#!/bin/bash\nmkfifo /agent/data/never\necho begun\n${call}\nread < /agent/data/never\n`
      const computer = await script('binary', source, { llm: { base_url: `http://127.0.0.1:${llm.port}/v1` } })
      return { computer, end: () => gates.open('held') }
    },
  ],
  ['it computes', scriptKeeper(python('pass'))],
  ['a thread sleeps for a time that it set', scriptKeeper(python('time.sleep(100)', 'time.sleep(0)'))],
  ['a thread naps', scriptKeeper(python('time.sleep(0.3)'))],
  [
    'it talks to others',
    scriptKeeper(
      python(
        "s.sendall(b'GET /health HTTP/1.1\\r\\nHost: orb\\r\\n\\r\\n'); s.recv(9999); select.select([], [], [], 0.15)",
        "url = urllib.parse.urlsplit(os.environ['ORB_API_URL']); s = socket.create_connection((url.hostname, url.port))",
      ),
    ),
  ],
]

describe('an agent stays awake while', () => {
  const begun = new Map<string, Awaited<ReturnType<Keeper>>>()
  const seen = new Map<string, unknown>()

  beforeAll(async () => {
    await Promise.all(KEEPERS.map(async ([name, keeper]) => begun.set(name, await keeper())))
    await windowsPass()
    for (const [name, { computer }] of begun) {
      seen.set(name, { state: (await computer.agent())?.state, checkpoints: await checkpoints(computer) })
    }
    await Promise.all([...begun.values()].map(({ end }) => end()))
  })

  test.each(KEEPERS.map(([name]) => name))('%s', async (name) => {
    expect(seen.get(name)).toEqual({ state: 'running', checkpoints: [] })
    const keeper = begun.get(name)
    // Its long sleep does not end with the file.
    if (!keeper || name.startsWith('a thread sleeps')) return
    await expectIdleSleep(keeper.computer)
  })
})

describe('an agent falls asleep though', () => {
  const KEEPALIVE = `
url = urllib.parse.urlsplit(os.environ['ORB_API_URL'])
s = socket.create_connection((url.hostname, url.port))
s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
`
  const CASES: ['node' | 'python', string, string][] = [
    ['node', 'it lives by timers of Node', "console.log('begun'); setInterval(() => {}, 200)"],
    ['python', 'a thread waits with a timeout', python('select.select([], [], [], 0.2)')],
    ['python', 'it has an unused connection with keepalive', python('select.select([], [], [])', KEEPALIVE)],
  ]
  test.concurrent.each(CASES)('%s: %s', async (lang, _, source) => {
    await expectIdleSleep(await script(lang, source))
  })
})

test.concurrent('orb.toml sets the time, or none, or forbids it', async () => {
  const [never, none, long, short] = await Promise.all([
    app({ sleep: 'never' }),
    app({ idle_timeout: '0s' }),
    app({ idle_timeout: '1h' }),
    app({ idle_timeout: '1s' }),
  ])
  await expectIdleSleep(short)
  await windowsPass()
  for (const computer of [never, none, long]) {
    expect((await computer.agent())?.state).toBe('running')
    expect(await checkpoints(computer)).toEqual([])
  }
})

test.concurrent('one that cannot be dumped goes on, and is tried again when it has been idle once more', async () => {
  // criu cannot dump a process that another one traces.
  const traced = `
import ctypes, signal
child = os.fork()
if child == 0:
    ctypes.CDLL(None).ptrace(0, 0, 0, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
os.waitpid(child, os.WUNTRACED)
`
  const release = 'os.kill(child, signal.SIGKILL)\nos.waitpid(child, 0)\nselect.select([], [], [])\n'
  const source = `${python('select.select([], [], [], 0.2)', traced).replace('select.select([], [], [])\n', release)}`
  const computer = await script('python', source)
  const failures = async () =>
    (await computer.lines('orb')).filter((line) => line.startsWith('checkpoint failed: ')).length
  expect(await until(async () => (await failures()) >= 1, TEST_TIMEOUT_MS / 2)).toBe(true)
  expect(await computer.agent()).toMatchObject({ state: 'running', sleep_reason: null })
  await go(computer)
  await expectIdleSleep(computer)
})

test('after a crash of orb, one that it left awake falls asleep', async () => {
  const { life } = await visit(control)
  await orb.kill9()
  await orb.restart()
  expect((await control.agent())?.state).toBe('running')
  await expectIdleSleep(control)
  expect((await visit(control)).life).toBe(life)
})
