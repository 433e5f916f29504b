import { afterEach, describe, expect, test } from 'bun:test'
import { readdirSync } from 'node:fs'
import Anthropic from '@anthropic-ai/sdk'
import { startLlmServer } from '../../test/support/llm-server.ts'
import {
  type Bench,
  post,
  type RawConnection,
  type RawServer,
  rawClient,
  rawServer,
  settle,
  startBench,
  until,
} from './testing.ts'

const cleanups: (() => unknown)[] = []
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
})

interface Scene {
  proxy: Bench
  server: RawServer
  client: RawConnection
  up: RawConnection
}

/** An agent whose request has gone upstream. */
async function asked(request = post('{}'), over: Parameters<typeof startBench>[1] = {}): Promise<Scene> {
  const server = rawServer()
  const proxy = startBench(`http://127.0.0.1:${server.port}`, over)
  cleanups.push(server.stop, proxy.end)
  const client = await rawClient(proxy.port)
  client.write(request)
  const up = await nextUpstream(server, 0)
  await until(() => proxy.agent.calls[0]?.log[0] === 'waiting', 'the call waits')
  return { proxy, server, client, up }
}

async function nextUpstream(server: RawServer, index: number): Promise<RawConnection> {
  await until(() => server.connections[index]?.received.includes('\r\n\r\n') ?? false, `upstream request ${index}`)
  return server.connections[index]!
}

const HEAD = 'HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n'
const CHUNKED = 'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n'
const chunk = (text: string): string => `${text.length.toString(16)}\r\n${text}\r\n`
const woken = (proxy: Bench, call = 0) => until(() => proxy.agent.calls[call]?.log.includes('wake') ?? false, 'wake')

describe('held until the agent runs', () => {
  test('a head alone announces the wake, wakes nobody and writes nothing; the first body byte wakes, and waits', async () => {
    const { proxy, client, up } = await asked()
    proxy.agent.sleep()
    up.write(HEAD)
    await settle()
    expect(proxy.agent.calls[0]?.log).toEqual(['waiting', 'answering'])
    up.write('h')
    await woken(proxy)
    up.write('ello world')
    await settle()
    expect(client.bytes).toBe(0)
    proxy.agent.wakeUp()
    expect(await client.has('world')).toBe(`${HEAD}hello world`)
    expect(proxy.agent.calls[0]?.log).toEqual(['waiting', 'answering', 'wake', 'delivered'])
  })

  test('nor is a head written to an agent that runs', async () => {
    const { client, up } = await asked()
    up.write(HEAD)
    await settle()
    expect(client.bytes).toBe(0)
    up.write('hello world')
    await client.has('hello world')
  })

  test.each([
    [
      'an empty body',
      'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n',
      'HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n',
      'delivered',
    ],
    [
      'a comment of an event stream',
      `${CHUNKED}${chunk(': ping\n\n')}0\r\n\r\n`,
      '8\r\n: ping\n\n\r\n0\r\n\r\n',
      'delivered',
    ],
    ['a broken answer', 'nonsense\r\n\r\n', '"error":"upstream_unreachable"', 'upstream_error'],
  ] as const)('%s wakes and is held', async (_name, answer, delivered, outcome) => {
    const { proxy, client, up } = await asked()
    proxy.agent.sleep()
    up.write(answer)
    await woken(proxy)
    await settle()
    expect(client.bytes).toBe(0)
    proxy.agent.wakeUp()
    await client.has(delivered)
    expect(await proxy.agent.outcome()).toBe(outcome)
  })

  test('an upstream that closes without an answer wakes too: 502', async () => {
    const { proxy, client, up } = await asked()
    proxy.agent.sleep()
    up.reset()
    await woken(proxy)
    expect(client.bytes).toBe(0)
    proxy.agent.wakeUp()
    expect(await client.has('}')).toStartWith('HTTP/1.1 502 Bad Gateway\r\n')
    expect(client.closed).toBe(false)
  })

  test('5 MB held on disk arrive whole and in order, what follows streams live', async () => {
    const { proxy, client, up } = await asked()
    const held = Buffer.alloc(5_000_000)
    for (let i = 0; i < held.length; i++) held[i] = (i * 31 + (i >> 10)) & 0xff
    proxy.agent.sleep()
    up.write(`HTTP/1.1 200 OK\r\nContent-Length: ${held.length + 4}\r\n\r\n`)
    up.write(held)
    await woken(proxy)
    await until(() => up.socket.bytesWritten > held.length, 'all is sent')
    await settle()
    expect(client.bytes).toBe(0)
    expect(readdirSync(proxy.spoolDir)).toEqual([])
    proxy.agent.wakeUp()
    const head = `HTTP/1.1 200 OK\r\nContent-Length: ${held.length + 4}\r\n\r\n`
    await until(() => client.bytes === head.length + held.length, 'what was held arrives')
    up.write('live')
    const text = await client.has('live')
    expect(text === `${head}${held.toString('latin1')}live`).toBe(true)
    expect(await proxy.agent.outcome()).toBe('delivered')
  })

  test('above 64 MiB the upstream is not read on, and nothing is lost', async () => {
    const { proxy, client, up } = await asked()
    const total = 90 * 1024 * 1024
    client.keep = false
    proxy.agent.sleep()
    up.write(`HTTP/1.1 200 OK\r\nContent-Length: ${total}\r\n\r\n`)
    for (let i = 0; i < 90; i++) up.write(Buffer.alloc(1024 * 1024, i))
    let before = -1
    await until(() => up.socket.bytesWritten > 64 * 1024 * 1024, 'a lot is sent')
    await until(() => {
      const still = up.socket.bytesWritten === before
      before = up.socket.bytesWritten
      return still
    }, 'the upstream stops')
    expect(before).toBeLessThan(total)
    expect(client.bytes).toBe(0)
    proxy.agent.wakeUp()
    await until(() => client.bytes > total, 'all arrives')
    expect(await proxy.agent.outcome()).toBe('delivered')
  }, 30_000)

  test('an agent that is put to sleep in the middle of a stream gets the rest after it woke', async () => {
    const { proxy, client, up } = await asked()
    up.write(`${CHUNKED}${chunk('one')}`)
    await client.has('one')
    proxy.agent.sleep()
    const before = client.bytes
    up.write(`${chunk('two')}${chunk('three')}`)
    await settle()
    up.write(chunk('four'))
    await settle()
    expect(client.bytes).toBe(before)
    proxy.agent.wakeUp()
    expect(await client.has('four')).toContain('3\r\none\r\n8\r\ntwothree\r\n4\r\nfour\r\n')
    up.write('0\r\n\r\n')
    await client.has('\r\n0\r\n\r\n')
    expect(proxy.agent.calls[0]?.log).toEqual(['waiting', 'wake', 'delivered'])
  })

  test('the official SDK sees a slow answer', async () => {
    const llm = startLlmServer({ firstByteMs: 50 })
    const proxy = startBench(`http://127.0.0.1:${llm.port}`)
    cleanups.push(llm.stop, proxy.end)
    const anthropic = new Anthropic({ baseURL: `http://127.0.0.1:${proxy.port}`, apiKey: 'x', maxRetries: 0 })
    const answer = anthropic.messages
      .stream({ model: 'm', max_tokens: 9, messages: [{ role: 'user', content: 'a b c' }] })
      .finalText()
    await until(() => proxy.agent.calls[0]?.log[0] === 'waiting', 'the call waits')
    proxy.agent.sleep()
    await woken(proxy)
    proxy.agent.wakeUp()
    expect(await answer).toBe('echo: a b c')
    expect(llm.requests.length).toBe(1)
  })
})

describe('what the journal is told', () => {
  const BEGUN = ['body', 'sent']

  test('of an answer that comes at once: that the call is over', async () => {
    const { proxy, client, up } = await asked()
    expect(proxy.journal.calls).toEqual([BEGUN])
    up.write(`${HEAD}hello world`)
    await client.has('world')
    expect(proxy.journal.calls).toEqual([[...BEGUN, 'remove']])
  })

  test('of an answer in pieces to an agent that runs: that it has begun, then that the call is over', async () => {
    const { proxy, client, up } = await asked()
    up.write(`${CHUNKED}${chunk('one')}`)
    await client.has('one')
    up.write(chunk('two'))
    await client.has('two')
    expect(proxy.journal.calls).toEqual([[...BEGUN, 'answered']])
    up.write('0\r\n\r\n')
    await client.has('\r\n0\r\n\r\n')
    expect(proxy.journal.calls).toEqual([[...BEGUN, 'answered', 'remove']])
  })

  test('of an answer to an agent that sleeps: all of it, before the agent gets any', async () => {
    const { proxy, client, up } = await asked()
    proxy.agent.sleep()
    up.write(`${HEAD}hello`)
    await woken(proxy)
    expect(proxy.journal.calls).toEqual([[...BEGUN, 'answer', 'append']])
    up.write(' world')
    await settle()
    const kept = [...BEGUN, 'answer', 'append', 'complete']
    expect(proxy.journal.calls).toEqual([kept])
    expect(client.bytes).toBe(0)
    proxy.agent.wakeUp()
    await client.has('world')
    expect(proxy.journal.calls).toEqual([[...kept, 'delivered']])
    client.reset()
    await until(() => proxy.journal.calls[0]?.length === kept.length + 2, 'the broken connection is noticed')
    expect(proxy.journal.calls).toEqual([[...kept, 'delivered', 'complete']])
  })

  test('of an agent that falls asleep in the middle of an answer: the whole answer', async () => {
    const { proxy, client, up } = await asked()
    up.write(`${CHUNKED}${chunk('one')}`)
    await client.has('one')
    proxy.agent.sleep()
    up.write(`${chunk('two')}0\r\n\r\n`)
    await until(() => proxy.journal.calls[0]?.includes('complete') ?? false, 'it is written down')
    expect(proxy.journal.calls).toEqual([[...BEGUN, 'answered', 'answer', 'append', 'complete']])
    proxy.agent.wakeUp()
    await client.has('two')
  })

  test('of an error to an agent that sleeps: not that it is an answer to keep', async () => {
    const { proxy, client, up } = await asked()
    proxy.agent.sleep()
    up.write('HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\n{}')
    await woken(proxy)
    proxy.agent.wakeUp()
    await client.has('{}')
    expect(proxy.journal.calls).toEqual([[...BEGUN, 'answer', 'append', 'remove']])
  })

  test('of an answer that begins before the request is whole: never that there is something to send again', async () => {
    const server = rawServer()
    const proxy = startBench(`http://127.0.0.1:${server.port}`)
    cleanups.push(server.stop, proxy.end)
    const client = await rawClient(proxy.port)
    const request = post('{"a":1}')
    client.write(request.slice(0, -3))
    const up = await nextUpstream(server, 0)
    up.write(`${CHUNKED}${chunk('early')}`)
    await client.has('early')
    client.write(request.slice(-3))
    await until(() => up.received.endsWith('{"a":1}'), 'the rest arrives')
    expect(proxy.journal.calls[0]).not.toContain('sent')
    up.write('0\r\n\r\n')
    await client.has('\r\n0\r\n\r\n')
    expect(proxy.journal.calls[0]?.at(-1)).toBe('remove')
  })

  test('of a call that the agent gives up: that it is over', async () => {
    const { proxy, client } = await asked()
    client.reset()
    await proxy.agent.outcome()
    expect(proxy.journal.calls).toEqual([[...BEGUN, 'remove']])
  })

  test('of a retry that joins an earlier call: nothing but that it is over', async () => {
    const { proxy, client, up } = await asked()
    proxy.agent.sleep()
    client.reset()
    await proxy.agent.outcome()
    proxy.agent.wakeUp()
    const retry = await rawClient(proxy.port)
    retry.write(post('{}'))
    await until(() => proxy.agent.calls[1]?.log[0] === 'waiting', 'it waits')
    up.write(`${HEAD}hello world`)
    await retry.has('world')
    expect(proxy.journal.calls[1]).toEqual(['body', 'remove'])
    expect(proxy.journal.calls[0]).toEqual([...BEGUN, 'remove'])
  })

  test('of calls of others than the agent: nothing', async () => {
    const server = rawServer()
    const proxy = startBench(`http://127.0.0.1:${server.port}`)
    cleanups.push(server.stop, proxy.end)
    proxy.agent.agentTree = false
    const client = await rawClient(proxy.port)
    client.write(post('{}'))
    ;(await nextUpstream(server, 0)).write(`${HEAD}hello world`)
    await client.has('world')
    expect(proxy.journal.calls).toEqual([])
  })
})

describe('broken connections', () => {
  const same = post('{"a":1}', ['X-Api-Key: k'])

  /** The agent slept, its connection broke; `request` comes on a new one. */
  async function broken(again = same): Promise<Scene & { retry: RawConnection; send: () => void }> {
    const scene = await asked(same)
    scene.proxy.agent.sleep()
    scene.client.reset()
    expect(await scene.proxy.agent.outcome()).toBe('kept')
    scene.proxy.agent.wakeUp()
    const retry = await rawClient(scene.proxy.port)
    return { ...scene, retry, send: () => retry.write(again) }
  }

  test('the same request joins the running call', async () => {
    const { proxy, server, up, retry, send } = await broken()
    up.write(CHUNKED)
    send()
    await until(() => proxy.agent.calls[1]?.log[0] === 'waiting', 'the second call waits')
    up.write(`${chunk('hello')}`)
    await retry.has('hello')
    up.write('0\r\n\r\n')
    const text = await retry.has('\r\n0\r\n\r\n')
    expect(text).toContain('\r\nX-Orb-Replay: 1\r\n')
    expect(await proxy.agent.outcome(1)).toBe('replayed')
    expect(proxy.agent.ownCalls).toBe(1)
    expect(server.connections.length).toBe(1)
  })

  test('the same request gets the complete answer, once', async () => {
    const { proxy, server, up, retry, send } = await broken()
    up.write(`${HEAD}hello world`)
    await until(() => up.received.length > 0, 'it is asked')
    await settle()
    send()
    expect(await retry.has('world')).toBe('HTTP/1.1 200 OK\r\nContent-Length: 11\r\nX-Orb-Replay: 1\r\n\r\nhello world')
    expect(proxy.agent.calls[1]?.log).toEqual(['wake', 'replayed'])
    send()
    await until(() => proxy.agent.calls[2]?.log[0] === 'waiting', 'it goes upstream')
    expect(server.connections.length + up.received.split('POST').length).toBe(1 + 3)
  })

  test.each([
    ['body', post('{"a":2}')],
    ['path', post('{"a":1}', [], '/v1/messages?b')],
    ['method', post('{"a":1}').replace('POST', 'PUT')],
  ])('a request with another %s goes upstream', async (_what, other) => {
    const { proxy, server, retry, send } = await broken(other)
    send()
    const up = await nextUpstream(server, 1)
    up.write(`${HEAD}hello again`)
    expect(await retry.has('again')).not.toContain('X-Orb-Replay')
    expect(proxy.agent.ownCalls).toBe(2)
    expect(await proxy.agent.outcome(1)).toBe('delivered')
    expect(up.received).toEndWith(other.split('\r\n\r\n')[1] ?? '')
  })

  test('a large body that was held back for the comparison goes upstream whole', async () => {
    const body = 'x'.repeat(3_000_000)
    const { server, retry, send } = await broken(post(body))
    send()
    const up = await nextUpstream(server, 1)
    await until(() => up.received.endsWith(`\r\n\r\n${body}`), 'the whole body arrives')
    up.write(`${HEAD}hello again`)
    await retry.has('again')
  })

  test('another computer never gets it', async () => {
    const { proxy, server } = await broken()
    proxy.agent.computerId = 'computer-2'
    const other = await rawClient(proxy.port)
    other.write(same)
    const second = await nextUpstream(server, 1)
    second.write(`${HEAD}other world`)
    expect(await other.has('other world')).not.toContain('X-Orb-Replay')
  })

  test('an error is not kept: the same request asks anew', async () => {
    const { server, up, retry, send } = await broken()
    up.write('HTTP/1.1 500 Oops\r\nConnection: close\r\nContent-Length: 0\r\n\r\n')
    await until(() => up.closed, 'it is dropped')
    send()
    const second = await nextUpstream(server, 1)
    second.write(`${HEAD}hello again`)
    expect(await retry.has('again')).toStartWith(HEAD)
  })

  test('it is kept no longer than its time', async () => {
    const scene = await asked(same, { replayTtlMs: 30 })
    scene.proxy.agent.sleep()
    scene.client.reset()
    await scene.proxy.agent.outcome()
    scene.proxy.agent.wakeUp()
    scene.up.write(`${HEAD}hello world`)
    await Bun.sleep(150)
    const retry = await rawClient(scene.proxy.port)
    retry.write(same)
    await until(() => scene.proxy.agent.calls[1]?.log[0] === 'waiting', 'it goes upstream')
  })

  test('an agent that can not be woken: its connection ends, the answer stays', async () => {
    const { proxy, server, client, up } = await asked(same)
    proxy.agent.sleep()
    up.write(`${HEAD}hello world`)
    await woken(proxy)
    proxy.agent.cannotWake()
    await client.isClosed()
    expect(client.bytes).toBe(0)
    expect(await proxy.agent.outcome()).toBe('kept')
    const retry = await rawClient(proxy.port)
    retry.write(same)
    expect(await retry.has('world')).toContain('X-Orb-Replay: 1')
    expect(server.connections.length).toBe(1)
  })

  test('a connection that breaks in the middle of the delivery after a sleep: the answer is kept whole', async () => {
    const { proxy, client, up } = await asked(same)
    proxy.agent.sleep()
    up.write(`${CHUNKED}${chunk('hello')}`)
    await woken(proxy)
    proxy.agent.wakeUp()
    await client.has('hello')
    client.reset()
    expect(await proxy.agent.outcome()).toBe('kept')
    up.write(`${chunk(' world')}0\r\n\r\n`)
    const retry = await rawClient(proxy.port)
    retry.write(same)
    expect((await retry.has('0\r\n\r\n')).replace(/\r\n[0-9a-f]+\r\n|\r\n/g, '')).toContain('hello world')
  })

  test('a delivered answer that meets a dead connection is kept; one that was taken is not', async () => {
    const { proxy, client, up, server } = await asked(same)
    proxy.agent.sleep()
    up.write(`${HEAD}hello world`)
    await woken(proxy)
    proxy.agent.wakeUp()
    await client.has('world')
    client.reset()
    await settle()
    const retry = await rawClient(proxy.port)
    retry.write(same)
    await retry.has('X-Orb-Replay: 1')
    retry.socket.end()
    await settle()
    const third = await rawClient(proxy.port)
    third.write(same)
    await until(() => proxy.agent.calls[2]?.log[0] === 'waiting', 'it goes upstream')
    expect(server.connections.length).toBe(1)
  })

  test('drop keeps what was slept through, forget does not', async () => {
    const { proxy, client, up } = await asked(same)
    proxy.agent.sleep()
    proxy.drop('computer-1')
    await client.isClosed()
    expect(await proxy.agent.outcome()).toBe('kept')
    expect(up.closed).toBe(false)
    proxy.forget('computer-1')
    await until(() => up.closed, 'the upstream call ends')
  })
})
