import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { ExchangeRequest } from '../../proxy/exchange.ts'
import type { ResponseHead } from '../../proxy/http1.ts'
import type { Bytes, CallJournal } from '../../proxy/journal.ts'
import { type Bench, post, type RawConnection, rawClient, rawServer, startBench, until } from '../../proxy/testing.ts'
import { openStore, type Store } from '../../store/store.ts'
import { openVault } from '../vault.ts'
import { BLOCK_BYTES } from './arena.ts'
import { MAX_COMPUTER_BYTES } from './entry.ts'
import { openCallJournal, type ServiceJournal } from './journal.ts'

const COMPUTER = 'computer-1'
const TTL_MS = 60_000

let dir: string
let spool: string
let store: Store
const cleanups: (() => unknown)[] = []

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'orb-journal-'))
  spool = join(dir, 'spool')
  mkdirSync(spool)
  store = openStore(join(dir, 'orb.db'))
  store.orgs.insert({ id: 'org', email: 'a@example.com', createdAt: 1 })
  for (const id of [COMPUTER, 'computer-2']) {
    store.computers.insert({
      id,
      shortId: id,
      orgId: 'org',
      name: 'c',
      runtimeMb: 512,
      diskMb: 1024,
      userId: null,
      swarmId: null,
      replicaIndex: null,
      base: 'host',
      createdAt: 1,
      updatedAt: 1,
    })
  }
})
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
  store.close()
  rmSync(dir, { recursive: true })
})

const open = (ttlMs = TTL_MS): ServiceJournal =>
  openCallJournal({ calls: store.llmCalls, vault: openVault(dir), dir: spool, ttlMs })

/** Beside the arena. */
const files = (): string[] =>
  readdirSync(spool)
    .filter((name) => name !== 'requests')
    .sort()
const states = (): string[] => store.llmCalls.all().map(({ state }) => state)

describe('entries', () => {
  const request = (length: number): ExchangeRequest => ({
    upstream: { secure: true, host: 'llm.test', port: 443, authority: 'llm.test', target: '/v1/messages?key=hidden' },
    method: 'POST',
    head: Buffer.from(
      `POST /v1/messages HTTP/1.1\r\nX-Api-Key: hidden\xe9\r\nContent-Length: ${length}\r\n\r\n`,
      'latin1',
    ),
    chunked: false,
  })
  const HEAD: ResponseHead = {
    status: 200,
    reason: 'OK',
    minorVersion: 1,
    headers: [{ name: 'x', value: 'y', line: 'X: y' }],
    framing: { kind: 'chunked' },
    keepAlive: true,
  }
  const keyOf = (body: Buffer) => `${new Bun.CryptoHasher('sha256').update(body).digest('hex')} POST /v1/messages`

  const sent = (journal: CallJournal, body: Buffer, computerId = COMPUTER) => {
    const entry = journal.begin(computerId)
    for (let at = 0; at < body.length; at += 1000) entry.body(body.subarray(at, at + 1000))
    entry.sent(keyOf(body), request(body.length))
    return entry
  }
  const complete = (journal: CallJournal, body: Buffer, answer: Buffer) => {
    const entry = sent(journal, body)
    entry.answer(HEAD)
    for (let at = 0; at < answer.length; at += 700) entry.append(answer.subarray(at, at + 700))
    entry.complete()
    return entry
  }
  const all = (bytes: Bytes): Buffer => {
    const pieces: Buffer[] = []
    for (let at = 0; at < bytes.end; at += pieces.at(-1)?.length ?? 0) {
      pieces.push(Buffer.from(bytes.read(at)))
      expect(pieces.at(-1)?.length).toBeGreaterThan(0)
    }
    return Buffer.concat(pieces)
  }
  const crash = (journal: CallJournal, ttlMs?: number): ServiceJournal => {
    journal.close()
    return open(ttlMs)
  }

  test.each([[0], [100], [4096], [4097], [200_000]])('a request of %d bytes comes back whole, once', (length) => {
    const body = Buffer.alloc(length, 'abcdefg')
    const journal = open()
    sent(journal, body)
    const next = crash(journal)
    expect(next.leftAnswers()).toEqual([])
    const calls = next.takeUnanswered(COMPUTER)
    expect(calls?.map(({ key, request }) => ({ key, request }))).toEqual([
      { key: keyOf(body), request: request(length) },
    ])
    expect(all(calls![0]!.body).equals(body)).toBe(true)
    calls![0]!.body.dispose()
    expect(next.takeUnanswered(COMPUTER)).toBeNull()

    const third = crash(next)
    expect(third.takeUnanswered(COMPUTER)).toBeNull()
    expect([...states(), ...files()]).toEqual([])
  })

  test('an answer comes back whole, and again until it is removed', () => {
    const answer = Buffer.alloc(150_000, 'answer')
    const journal = open()
    complete(journal, Buffer.from('{}'), answer)
    const next = crash(journal)
    const [left] = next.leftAnswers()
    expect(left).toMatchObject({ computerId: COMPUTER, key: keyOf(Buffer.from('{}')), head: HEAD })
    expect(left!.ttlMs).toBeGreaterThan(TTL_MS - 10_000)
    expect(all(left!.body).equals(answer)).toBe(true)

    const third = crash(next)
    const [again] = third.leftAnswers()
    again!.body.dispose()
    again!.entry.remove()
    expect([...states(), ...files()]).toEqual([])
  })

  test('a call that ends leaves nothing, whatever had come of it', () => {
    const journal = open()
    const long = Buffer.alloc(10_000)
    const started = journal.begin(COMPUTER)
    started.body(long)
    const answered = sent(journal, long)
    answered.answered()
    expect([files(), states()]).toEqual([[], []])
    const answering = sent(journal, long)
    answering.answer(HEAD)
    answering.append(long)
    const entries = [started, answered, answering, sent(journal, long), complete(journal, long, long)]
    expect(files()).toEqual(['3.answer', '5.answer'])
    expect(states()).toEqual(['answering', 'sent', 'complete'])
    for (const entry of entries) {
      entry.remove()
      entry.remove()
    }
    expect([...states(), ...files()]).toEqual([])
  })

  test('an agent that falls asleep in the middle of an answer: it is written down all the same', () => {
    const journal = open()
    const entry = sent(journal, Buffer.from('{}'))
    entry.answered()
    entry.answer(HEAD)
    entry.append(Buffer.from('all of it'))
    entry.complete()
    const [left] = crash(journal).leftAnswers()
    expect(all(left!.body).toString()).toBe('all of it')
    left!.body.dispose()
  })

  test('what is delivered is not kept over a crash, unless the connection turned out to be dead', () => {
    const journal = open()
    complete(journal, Buffer.from('a'), Buffer.from('1')).delivered()
    const refused = complete(journal, Buffer.from('b'), Buffer.from('2'))
    refused.delivered()
    refused.complete()
    const left = crash(journal).leftAnswers()
    expect(left.map(({ key }) => key)).toEqual([keyOf(Buffer.from('b'))])
    left[0]!.body.dispose()
  })

  test('nor is an answer whose time is over', async () => {
    const journal = open(1)
    complete(journal, Buffer.from('a'), Buffer.from('1'))
    await Bun.sleep(5)
    expect(crash(journal, 1).leftAnswers()).toEqual([])
    expect([...states(), ...files()]).toEqual([])
  })

  const LONG = Buffer.alloc(10_000, 'x')
  test.each<[string, (journal: CallJournal) => void]>([
    ['one of which a part of the answer came', (journal) => sent(journal, LONG).answer(HEAD)],
    [
      'one whose body is changed',
      (journal) => {
        sent(journal, LONG)
        const bytes = readFileSync(join(spool, 'requests'))
        bytes[BLOCK_BYTES + 7] = 1
        writeFileSync(join(spool, 'requests'), bytes)
      },
    ],
    [
      'one whose body is cut off',
      (journal) => {
        sent(journal, LONG)
        truncateSync(join(spool, 'requests'), BLOCK_BYTES + 7)
      },
    ],
  ])('no call of a computer is sent again when there is %s among them', (_what, more) => {
    const journal = open()
    sent(journal, LONG)
    more(journal)
    const other = sent(journal, Buffer.from('{}'), 'computer-2')
    const next = crash(journal)
    next.leftAnswers()
    expect(next.takeUnanswered(COMPUTER)).toBeNull()
    expect(states()).toEqual(['sent'])
    expect(next.takeUnanswered('computer-2')).toHaveLength(1)
    other.remove()
  })

  test('a call before it whose answer was delivered hinders none', () => {
    const journal = open()
    complete(journal, Buffer.from('a'), Buffer.from('1')).delivered()
    sent(journal, Buffer.from('b'))
    const next = crash(journal)
    expect(next.takeUnanswered(COMPUTER)?.map(({ key }) => key)).toEqual([keyOf(Buffer.from('b'))])
    next.recovered()
    expect(states()).toEqual(['sent'])
  })

  test.each([
    ['gone', () => rmSync(join(spool, '1.answer'))],
    ['changed', () => writeFileSync(join(spool, '1.answer'), 'other')],
  ])('an answer whose file is %s is not served', (_what, damage) => {
    const journal = open()
    complete(journal, Buffer.from('a'), Buffer.from('right'))
    damage()
    expect(crash(journal).leftAnswers()).toEqual([])
    expect([...states(), ...files()]).toEqual([])
  })

  test('a computer that is forgotten leaves nothing, others stay', () => {
    const journal = open()
    sent(journal, LONG)
    complete(journal, LONG, LONG)
    sent(journal, LONG, 'computer-2')
    const next = crash(journal)
    next.leftAnswers()[0]?.body.dispose()
    sent(next, LONG)
    next.forget(COMPUTER)
    expect(store.llmCalls.all().map(({ computerId }) => computerId)).toEqual(['computer-2'])
    expect(files()).toEqual([])
  })

  test('bodies of calls that wait are left alone by those that come and go, before and after a crash', () => {
    const bodies = [1, 2, 3].map((seed) => Buffer.alloc(100_000, `${seed}abc`))
    const churn = (journal: CallJournal) => {
      for (let round = 0; round < 3; round++) for (const entry of bodies.map(() => sent(journal, LONG))) entry.remove()
    }
    const journal = open()
    const [gone] = bodies.map((body) => sent(journal, body))
    gone!.remove()
    churn(journal)
    const next = crash(journal)
    churn(next)
    const calls = next.takeUnanswered(COMPUTER)!
    churn(next)
    expect(calls.map(({ body }) => all(body).toString())).toEqual(bodies.slice(1).map(String))
    for (const { entry } of calls) entry.remove()
    const size = statSync(join(spool, 'requests')).size
    expect(size).toBeLessThanOrEqual(15 * BLOCK_BYTES)
  })

  test('what a start finds and nobody asks for goes, with files of no call', () => {
    const journal = open()
    sent(journal, LONG)
    journal.close()
    writeFileSync(join(spool, '77.answer'), 'stray')
    writeFileSync(join(spool, 'hold-1-1'), 'stray')
    const next = open()
    expect(files()).toEqual([])
    const mine = sent(next, LONG)
    next.recovered()
    expect(store.llmCalls.all().map(({ id }) => id)).toEqual([2])
    mine.remove()
  })

  test('heads, which carry keys, are sealed', () => {
    const journal = open()
    complete(journal, Buffer.from('a'), Buffer.from('b'))
    const [row] = store.llmCalls.all()
    for (const text of [row!.request, row!.answerHead!])
      expect(Buffer.from(text).toString('latin1')).not.toContain('hidden')
    journal.close()
    store.close()
    for (const name of readdirSync(dir).filter((name) => name.startsWith('orb.db'))) {
      expect(readFileSync(join(dir, name)).includes('hidden')).toBe(false)
    }
    store = openStore(join(dir, 'orb.db'))
  })

  test('beyond the bound a call is not written down, and costs the others nothing', () => {
    const journal = open()
    const large = Buffer.alloc(64 * 1024 * 1024)
    const entries = Array.from({ length: MAX_COMPUTER_BYTES / large.length }, () => {
      const entry = journal.begin(COMPUTER)
      entry.body(large)
      entry.sent('key', request(large.length))
      return entry
    })
    const beyond = sent(journal, LONG)
    expect(states()).toHaveLength(entries.length)
    beyond.answer(HEAD)
    beyond.append(LONG)
    beyond.complete()
    expect(states()).toHaveLength(entries.length)
    entries[0]!.remove()
    sent(journal, LONG)
    expect(states()).toHaveLength(entries.length)
  })

  test('a directory that cannot be written costs the call its place in the journal alone', () => {
    const journal = open()
    rmSync(spool, { recursive: true })
    const entry = sent(journal, LONG)
    entry.answer(HEAD)
    entry.append(LONG)
    entry.complete()
    entry.delivered()
    entry.remove()
    expect(states()).toEqual([])
    mkdirSync(spool)
  })
})

describe('the proxy after a crash', () => {
  const BODY = JSON.stringify({ text: 'x'.repeat(20_000) })
  const HEAD = 'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n'

  const upstream = () => {
    const server = rawServer()
    cleanups.push(server.stop)
    /** The nth connection to it, once a whole request has come on it. */
    const request = async (index: number): Promise<RawConnection> => {
      await until(() => server.connections[index]?.received.endsWith('"}') ?? false, `request ${index} comes`)
      return server.connections[index]!
    }
    return { ...server, request }
  }

  interface Run {
    proxy: Bench
    journal: ServiceJournal
    /** As a kill would leave the journal. */
    crash(): Promise<void>
  }

  function start(port: number): Run {
    const journal = open()
    const proxy = startBench(`http://127.0.0.1:${port}`, { journal })
    let crashed = false
    const crash = async () => {
      if (crashed) return
      crashed = true
      journal.close()
      await proxy.end()
    }
    cleanups.push(crash)
    return { proxy, journal, crash }
  }

  const ask = async (proxy: Bench, body = BODY): Promise<RawConnection> => {
    const client = await rawClient(proxy.port)
    client.write(post(body, ['X-Api-Key: k']))
    return client
  }

  /** An agent fell asleep in a call, and orb crashed. `answer` came before that. */
  async function crashed(server: ReturnType<typeof upstream>, answer = ''): Promise<Run> {
    const before = start(server.port)
    await ask(before.proxy)
    const up = await server.request(0)
    await until(() => before.proxy.agent.calls[0]?.log[0] === 'waiting', 'the call waits')
    before.proxy.agent.sleep()
    up.write(answer)
    if (answer !== '') await until(() => before.proxy.agent.calls[0]?.log.includes('wake') ?? false, 'the answer comes')
    await before.crash()
    return start(server.port)
  }

  const wakes = () => {
    const state = { count: 0, wake: () => void state.count++ }
    return state
  }

  test('the call is made again as it was; its first byte wakes, and the retry joins it', async () => {
    const server = upstream()
    const { proxy } = await crashed(server)
    const woken = wakes()
    expect(proxy.resume(COMPUTER, woken.wake)).toBe(true)
    const up = await server.request(1)
    expect(up.received).toBe(server.connections[0]!.received)
    up.write(HEAD)
    up.write('hello')
    await until(() => woken.count > 0, 'the agent is woken')
    const retry = await ask(proxy)
    await retry.has('hello')
    up.write(' world')
    expect(await retry.has('world')).toContain('X-Orb-Replay: 1')
    expect([woken.count, server.connections.length]).toEqual([1, 2])
    await until(() => states().length + files().length === 0, 'the journal is empty')
  })

  test('an answer to the second call that nobody fetched outlives the next crash', async () => {
    const server = upstream()
    const second = await crashed(server)
    const woken = wakes()
    expect(second.proxy.resume(COMPUTER, woken.wake)).toBe(true)
    ;(await server.request(1)).write(`${HEAD}hello world`)
    await until(() => woken.count > 0, 'the agent is woken')
    await second.crash()
    const third = start(server.port)
    const wokenAgain = wakes()
    expect(third.proxy.resume(COMPUTER, wokenAgain.wake)).toBe(true)
    expect(wokenAgain.count).toBe(1)
    expect(await (await ask(third.proxy)).has('hello world')).toContain('X-Orb-Replay: 1')
    expect(server.connections).toHaveLength(2)
  })

  test('a complete answer wakes at once and is served to the same request alone, once', async () => {
    const server = upstream()
    const { proxy, journal } = await crashed(server, `${HEAD}hello world`)
    expect(states()).toEqual(['complete'])
    const woken = wakes()
    expect(proxy.resume(COMPUTER, woken.wake)).toBe(true)
    journal.recovered()
    expect(woken.count).toBe(1)
    await ask(proxy, '{"text":"other"}')
    await server.request(1)
    expect(await (await ask(proxy)).has('hello world')).toContain('X-Orb-Replay: 1')
    await until(() => states().every((state) => state === 'sent'), 'it is used up')
    await ask(proxy)
    await server.request(2)
  })

  test('a complete answer that is being fetched when orb crashes again is there for the next retry', async () => {
    const server = upstream()
    const second = await crashed(server, `${HEAD}hello world`)
    second.proxy.agent.sleep()
    await ask(second.proxy)
    await until(() => second.proxy.agent.calls[0]?.log.includes('wake') ?? false, 'it has the answer')
    await second.crash()
    const third = start(server.port)
    expect(await (await ask(third.proxy)).has('hello world')).toContain('X-Orb-Replay: 1')
    expect(server.connections).toHaveLength(1)
  })

  test.each([
    ['a part of the answer had come', `${HEAD}hello`],
    ['the answer was an error', 'HTTP/1.1 529 Overloaded\r\nContent-Length: 2\r\n\r\n{}'],
  ])('nothing is fetched when %s', async (_what, answer) => {
    const server = upstream()
    const { proxy } = await crashed(server, answer)
    const woken = wakes()
    expect(proxy.resume(COMPUTER, woken.wake)).toBe(false)
    expect([woken.count, ...states(), ...files()]).toEqual([0])
    await ask(proxy)
    await server.request(1)
  })

  test('a call is made again once only', async () => {
    const server = upstream()
    const second = await crashed(server)
    expect(second.proxy.resume(COMPUTER, () => undefined)).toBe(true)
    await server.request(1)
    await second.crash()
    const third = start(server.port)
    expect(third.proxy.resume(COMPUTER, () => undefined)).toBe(false)
    expect(server.connections).toHaveLength(2)
  })

  test.each([
    ['an error', (up: RawConnection) => up.write('HTTP/1.1 429 Slow down\r\nContent-Length: 2\r\n\r\n{}')],
    ['a dead connection', (up: RawConnection) => up.reset()],
  ])('%s instead of the answer wakes, and the retry asks anew', async (_what, fail) => {
    const server = upstream()
    const { proxy } = await crashed(server)
    const woken = wakes()
    proxy.resume(COMPUTER, woken.wake)
    fail(await server.request(1))
    await until(() => woken.count === 1, 'the agent is woken')
    await until(() => states().length + files().length === 0, 'the journal is empty')
    const retry = await ask(proxy)
    await until(() => proxy.agent.calls[0]?.log[0] === 'waiting', 'the retry goes upstream')
    expect(retry.bytes).toBe(0)
  })

  test('of several calls the first answer wakes, and all are kept', async () => {
    const server = upstream()
    const before = start(server.port)
    const bodies = ['{"text":"one"}', '{"text":"two"}']
    for (const [index, body] of bodies.entries()) {
      await ask(before.proxy, body)
      await server.request(index)
    }
    before.proxy.agent.sleep()
    await before.crash()
    const { proxy } = start(server.port)
    const woken = wakes()
    expect(proxy.resume(COMPUTER, woken.wake)).toBe(true)
    const again = [await server.request(2), await server.request(3)]
    for (const up of again) up.write(`${HEAD}hello ${up.received.slice(-5, -2)}!!`)
    await until(() => states().every((state) => state === 'complete'), 'both are complete')
    expect(woken.count).toBe(1)
    for (const body of bodies) await (await ask(proxy, body)).has(`hello ${body.slice(-5, -2)}!!`)
    expect(server.connections).toHaveLength(4)
  })

  test('forget ends what was begun again', async () => {
    const server = upstream()
    const { proxy } = await crashed(server)
    proxy.resume(COMPUTER, () => undefined)
    const up = await server.request(1)
    proxy.forget(COMPUTER)
    await until(() => up.closed, 'the upstream call ends')
    expect([...states(), ...files()]).toEqual([])
    expect(existsSync(spool)).toBe(true)
  })
})
