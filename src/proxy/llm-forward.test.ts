import { afterEach, describe, expect, test } from 'bun:test'
import Anthropic from '@anthropic-ai/sdk'
import OpenAI from 'openai'
import { startLlmServer } from '../../test/support/llm-server.ts'
import { type Bench, post, type RawServer, rawClient, rawServer, startBench, until } from './testing.ts'

const cleanups: (() => unknown)[] = []
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
})

function bench(...args: Parameters<typeof startBench>): Bench {
  const made = startBench(...args)
  cleanups.push(made.end)
  return made
}

/** An upstream that answers each request, once its text ends with `when`, with the given pieces. */
function upstream(pieces: (string | Uint8Array)[], when = '', then: 'keep' | 'end' = 'keep'): RawServer {
  const server = rawServer((connection) => {
    if (!connection.received.endsWith(when) || !connection.received.includes('\r\n\r\n')) return
    for (const piece of pieces) connection.write(piece)
    if (then === 'end') connection.socket.end()
  })
  cleanups.push(server.stop)
  return server
}

const urlOf = (server: { port: number }): string => `http://127.0.0.1:${server.port}`

describe('the official SDKs', () => {
  test('Anthropic and OpenAI, plain and streaming, get what the upstream said', async () => {
    const llm = startLlmServer()
    cleanups.push(llm.stop)
    const proxy = bench(urlOf(llm))
    const anthropic = new Anthropic({ baseURL: urlOf(proxy), apiKey: 'sk-ant-x', maxRetries: 0 })
    const openai = new OpenAI({ baseURL: `${urlOf(proxy)}/v1`, apiKey: 'sk-x', maxRetries: 0 })
    const messages = [{ role: 'user' as const, content: 'Grüße, one two three' }]
    const expected = 'echo: Grüße, one two three'

    const plain = await anthropic.messages.create({ model: 'm', max_tokens: 9, messages })
    expect(plain.content).toMatchObject([{ type: 'text', text: expected }])
    const streamed = await anthropic.messages.stream({ model: 'm', max_tokens: 9, messages }).finalText()
    expect(streamed).toBe(expected)
    const chat = await openai.chat.completions.create({ model: 'm', messages })
    expect(chat.choices[0]?.message.content).toBe(expected)
    let text = ''
    for await (const chunk of await openai.chat.completions.create({ model: 'm', messages, stream: true })) {
      text += chunk.choices[0]?.delta.content ?? ''
    }
    expect(text).toBe(expected)

    expect(llm.requests.map((request) => request.path)).toEqual([
      '/v1/messages',
      '/v1/messages',
      '/v1/chat/completions',
      '/v1/chat/completions',
    ])
    expect(llm.requests[0]?.headers.get('authorization')).toBe('Bearer sk-ant-x')
    expect(llm.requests[3]?.headers.get('authorization')).toBe('Bearer sk-x')
    for (const call of proxy.agent.calls) expect(call.log).toEqual(['waiting', 'wake', 'delivered'])
  })

  test('300 streams at once each get their own answer', async () => {
    const llm = startLlmServer({ firstByteMs: 200, gapMs: 5 })
    cleanups.push(llm.stop)
    const proxy = bench(urlOf(llm))
    const anthropic = new Anthropic({ baseURL: urlOf(proxy), apiKey: 'x', maxRetries: 0 })
    const ask = (i: number) =>
      anthropic.messages
        .stream({ model: 'm', max_tokens: 9, messages: [{ role: 'user', content: `number ${i} of many` }] })
        .finalText()
    const texts = await Promise.all(Array.from({ length: 300 }, (_, i) => ask(i)))
    expect(texts).toEqual(Array.from({ length: 300 }, (_, i) => `echo: number ${i} of many`))
    expect(llm.requests.length).toBe(300)
  })
})

describe('bytes', () => {
  test('a request goes upstream with its lines as they were, but for hop-by-hop and Host', async () => {
    const server = upstream(['HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'], 'body')
    const proxy = bench(`${urlOf(server)}/base`)
    const client = await rawClient(proxy.port)
    client.write(
      'PATCH /v1/x?a=%2F&&b HTTP/1.1\r\nhOsT: old\r\nX-A:  1\t\r\nx-a: \xe9\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\nAuthorization: Bearer s\r\nX-A: 1\r\nContent-Length: 4\r\n\r\nbody',
    )
    await client.has('ok')
    expect(server.connections[0]?.received).toBe(
      `PATCH /base/v1/x?a=%2F&&b HTTP/1.1\r\nHost: 127.0.0.1:${server.port}\r\nX-A:  1\t\r\nx-a: \xe9\r\nAuthorization: Bearer s\r\nX-A: 1\r\nContent-Length: 4\r\n\r\nbody`,
    )
  })

  const gzip = Buffer.from(Bun.gzipSync(Buffer.from('hello hello hello')))
  const withHead = (head: string, body: string | Uint8Array): Buffer =>
    Buffer.concat([Buffer.from(head, 'latin1'), Buffer.from(body)])
  test.each([
    [
      '429',
      'HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nX-RateLimit: a\r\nx-ratelimit: b\r\nContent-Length: 2\r\n\r\n',
      '{}',
    ],
    ['500 with an odd reason', 'HTTP/1.1 500 N\xf6  pe\r\ncontent-length: 0\r\n\r\n', ''],
    [
      'redirect',
      'HTTP/1.1 307 Temporary Redirect\r\nLocation: https://elsewhere.test/\r\nContent-Length: 0\r\n\r\n',
      '',
    ],
    ['204', 'HTTP/1.1 204 No Content\r\nA: b\r\n\r\n', ''],
    ['gzip', `HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: ${gzip.length}\r\n\r\n`, gzip],
  ])('an answer passes byte for byte: %s', async (_name, head, body) => {
    const answer = withHead(head, body)
    const proxy = bench(urlOf(upstream([answer])))
    const client = await rawClient(proxy.port)
    client.write(post('{}'))
    await until(() => client.bytes >= answer.length, 'the answer comes')
    expect(client.received).toBe(answer.toString('latin1'))
    expect(await proxy.agent.outcome()).toBe('delivered')
  })

  test('hop-by-hop headers of an answer stay here, interim answers too', async () => {
    const server = upstream([
      'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nConnection: X-H\r\nX-H: 1\r\nA: 1\r\nContent-Length: 2\r\n\r\nok',
    ])
    const proxy = bench(urlOf(server))
    const client = await rawClient(proxy.port)
    client.write(post('{}'))
    expect(await client.has('ok')).toBe('HTTP/1.1 200 OK\r\nA: 1\r\nContent-Length: 2\r\n\r\nok')
  })

  test('a body that ends with the connection comes chunked, and plain to HTTP/1.0', async () => {
    const server = upstream(['HTTP/1.1 200 OK\r\nA: 1\r\n\r\nall of it'], '', 'end')
    const proxy = bench(urlOf(server))
    const client = await rawClient(proxy.port)
    client.write('GET /x HTTP/1.1\r\nHost: a\r\n\r\n')
    const text = await client.has('0\r\n\r\n')
    expect(text).toStartWith('HTTP/1.1 200 OK\r\nA: 1\r\nTransfer-Encoding: chunked\r\n\r\n')
    expect(text.replace(/[0-9a-f]+\r\n|\r\n/g, '')).toEndWith('all of it')
    const old = await rawClient(proxy.port)
    old.write('GET /x HTTP/1.0\r\n\r\n')
    await old.isClosed()
    expect(old.received).toBe('HTTP/1.1 200 OK\r\nA: 1\r\nConnection: close\r\n\r\nall of it')
  })

  test('HTTP/1.0 with keep-alive and a known length keeps its connection', async () => {
    const proxy = bench(urlOf(upstream(['HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'])))
    const client = await rawClient(proxy.port)
    client.write('GET /x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n')
    expect(await client.has('ok')).toContain('Connection: keep-alive')
    expect(client.closed).toBe(false)
  })

  test('a chunked request arrives whole, and pipelined requests are answered in order', async () => {
    const llm = startLlmServer()
    cleanups.push(llm.stop)
    const proxy = bench(urlOf(llm))
    const client = await rawClient(proxy.port)
    client.write(
      'POST /v1/messages HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\nX-Delay-Ms: 50\r\n\r\n',
    )
    await client.has('HTTP/1.1 100 Continue\r\n\r\n')
    const body = '{"messages":[{"role":"user","content":"first"}]}'
    client.write(
      `5;x=y\r\n${body.slice(0, 5)}\r\n${(body.length - 5).toString(16)}\r\n${body.slice(5)}\r\n0\r\nT: 1\r\n\r\n`,
    )
    client.write(post('{"messages":[{"role":"user","content":"second"}]}'))
    const text = await client.has('second')
    expect(text.indexOf('echo: first')).toBeGreaterThan(0)
    expect(text.indexOf('echo: first')).toBeLessThan(text.indexOf('echo: second'))
    expect(llm.requests[0]?.body).toBe(body)
    expect(llm.requests[0]?.headers.get('transfer-encoding')).toBe('chunked')
  })

  test('large bodies pass both ways', async () => {
    const llm = startLlmServer({ reply: (prompt) => prompt.toUpperCase() })
    cleanups.push(llm.stop)
    const proxy = bench(urlOf(llm))
    const content = 'abcdefghij klmno pqrstuvwxyz '.repeat(200_000)
    const answer = await fetch(`${urlOf(proxy)}/v1/messages`, {
      method: 'POST',
      body: JSON.stringify({ messages: [{ role: 'user', content }] }),
    })
    const { content: parts } = (await answer.json()) as { content: { text: string }[] }
    expect(parts[0]?.text === content.toUpperCase()).toBe(true)
    expect(llm.requests[0]?.body.includes(content)).toBe(true)
  })

  test('each piece of a stream reaches a running agent before the next one is sent', async () => {
    const server = rawServer()
    cleanups.push(server.stop)
    const proxy = bench(urlOf(server))
    const client = await rawClient(proxy.port)
    client.write(post('{}'))
    await until(() => server.connections[0]?.received.endsWith('{}') ?? false, 'the request arrives')
    const up = server.connections[0]!
    up.write('HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n')
    for (let i = 0; i < 50; i++) {
      const event = `data: ${i}\n\n`
      up.write(`${event.length.toString(16)}\r\n${event}\r\n`)
      await client.has(`\r\n${event}\r\n`)
    }
    expect(client.received).not.toContain('0\r\n\r\n')
    up.write('0\r\n\r\n')
    await client.has('\r\n0\r\n\r\n')
  })

  test('a slow reader slows the upstream down, and loses nothing', async () => {
    const total = 40 * 1024 * 1024
    const server = upstream([`HTTP/1.1 200 OK\r\nContent-Length: ${total}\r\n\r\n`, Buffer.alloc(total, 'z')])
    const proxy = bench(urlOf(server))
    const client = await rawClient(proxy.port)
    client.keep = false
    client.socket.pause()
    client.write(post('{}'))
    await until(() => (server.connections[0]?.socket.bytesWritten ?? 0) > 0, 'the upstream sends')
    let before = -1
    await until(() => {
      const now = server.connections[0]?.socket.bytesWritten ?? 0
      const still = now === before
      before = now
      return still
    }, 'the upstream stops')
    expect(before).toBeLessThan(total)
    client.socket.resume()
    await until(() => client.bytes > total, 'all arrives')
    expect(await proxy.agent.outcome()).toBe('delivered')
  })
})

describe('connections', () => {
  test('an idle upstream connection is used again, a closed one is not, and no request is sent twice', async () => {
    const server = upstream(['HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'])
    const proxy = bench(urlOf(server))
    const client = await rawClient(proxy.port)
    for (let i = 1; i <= 3; i++) {
      client.write(post('{}'))
      await until(() => proxy.agent.calls.filter((call) => call.outcome === 'delivered').length === i, `call ${i}`)
    }
    expect(server.connections.length).toBe(1)
    server.connections[0]?.socket.end()
    await until(() => server.connections[0]?.closed ?? false, 'it closes')
    client.write(post('{}'))
    await until(() => proxy.agent.calls[3]?.outcome === 'delivered', 'call 4')
    expect(server.connections.length).toBe(2)
  })

  test('the agent closing cancels the upstream call', async () => {
    const server = rawServer()
    cleanups.push(server.stop)
    const proxy = bench(urlOf(server))
    const client = await rawClient(proxy.port)
    client.write(post('{}'))
    await until(() => server.connections[0]?.received.endsWith('{}') ?? false, 'the request arrives')
    client.socket.end()
    await until(() => server.connections[0]?.closed ?? false, 'the upstream connection closes')
    expect(await proxy.agent.outcome()).toBe('client_closed')
  })

  test('an unknown peer is closed without a word', async () => {
    const proxy = bench('http://127.0.0.1:9')
    proxy.agent.known = false
    const client = await rawClient(proxy.port)
    await client.isClosed()
    expect(client.received).toBe('')
  })

  test('a process outside the agent tree is forwarded, without freeze and wake', async () => {
    const llm = startLlmServer()
    cleanups.push(llm.stop)
    const proxy = bench(urlOf(llm))
    proxy.agent.agentTree = false
    proxy.agent.sleep()
    const client = await rawClient(proxy.port)
    client.write(post('{"messages":[{"role":"user","content":"hi"}]}'))
    await client.has('echo: hi')
    expect(await proxy.agent.outcome()).toBe('delivered')
    expect(proxy.agent.calls[0]?.log).toEqual(['delivered'])
    expect(proxy.agent.ownCalls).toBe(1)
  })

  test('stop gives an open call its grace and takes no more', async () => {
    const llm = startLlmServer({ firstByteMs: 100 })
    cleanups.push(llm.stop)
    const proxy = bench(urlOf(llm))
    const client = await rawClient(proxy.port)
    client.write(post('{"messages":[{"role":"user","content":"hi"}]}'))
    await until(() => llm.requests.length === 1, 'the request arrives')
    await proxy.stop(5_000)
    await client.has('echo: hi')
    expect(proxy.agent.calls[0]?.outcome).toBe('delivered')
    expect(rawClient(proxy.port)).rejects.toThrow()
  })
})
