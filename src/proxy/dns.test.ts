import { afterEach, describe, expect, test } from 'bun:test'
import { type DnsOptions, type NameFilter, startDns } from './dns.ts'

/** A query for the address of `name`. */
function query(id: number, name: string): Buffer {
  const labels = name.split('.').map((label) => Buffer.concat([Buffer.from([label.length]), Buffer.from(label)]))
  const header = Buffer.from([id >> 8, id & 0xff, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0])
  return Buffer.concat([header, ...labels, Buffer.from([0, 0, 1, 0, 1])])
}

/** An answer to a query, with a last byte to know it by. */
function reply(to: Uint8Array, options: { rcode?: number; mark?: number; id?: number } = {}): Buffer {
  const message = Buffer.concat([to, Buffer.from([options.mark ?? 0])])
  message[2] = 0x81
  message[3] = options.rcode ?? 0
  if (options.id !== undefined) message.writeUInt16BE(options.id)
  return message
}

type Behaviour = (query: Buffer, send: (message: Uint8Array) => void) => void

const cleanups: (() => unknown)[] = []
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup()
})

/** Name servers at 127.0.0.x, one for each behaviour, all on the same port; null: nobody listens there. */
async function servers(behaviours: (Behaviour | null)[]): Promise<Pick<DnsOptions, 'upstreams' | 'upstreamPort'>> {
  const upstreams = behaviours.map((_, index) => `127.0.0.${index + 2}`)
  let port = 0
  for (const [index, behave] of behaviours.entries()) {
    if (!behave) continue
    const hostname = upstreams[index] ?? ''
    const udp = await Bun.udpSocket({
      hostname,
      port,
      socket: {
        data: (socket, data, from, address) =>
          behave(Buffer.from(data), (message) => void socket.send(message, from, address)),
      },
    })
    port = udp.port
    const tcp = Bun.listen({
      hostname,
      port,
      socket: {
        data: (socket, data) =>
          behave(Buffer.from(data.subarray(2)), (message) => {
            socket.write(Buffer.from([message.length >> 8, message.length & 0xff]))
            socket.write(message)
          }),
      },
    })
    cleanups.push(
      () => udp.close(),
      () => tcp.stop(true),
    )
  }
  return { upstreams, upstreamPort: port }
}

async function forwarder(options: Pick<DnsOptions, 'upstreams' | 'upstreamPort' | 'filterOf'>): Promise<number> {
  const dns = await startDns({ hostname: '127.0.0.1', port: 0, ...options })
  cleanups.push(() => dns.stop())
  return dns.port
}

async function client(port: number) {
  const received: Buffer[] = []
  const waiting: ((message: Buffer) => void)[] = []
  const socket = await Bun.udpSocket({
    connect: { hostname: '127.0.0.1', port },
    socket: {
      data(_, data) {
        const message = Buffer.from(data)
        received.push(message)
        waiting.shift()?.(message)
      },
    },
  })
  cleanups.push(() => socket.close())
  return {
    received,
    send: (message: Uint8Array) => void socket.send(message),
    next: () => new Promise<Buffer>((resolve) => waiting.push(resolve)),
  }
}

async function askTcp(port: number, bytes: Uint8Array, replies = 1): Promise<Buffer[]> {
  const { promise, resolve } = Promise.withResolvers<void>()
  let received = Buffer.alloc(0)
  const messages = (): Buffer[] => {
    const list: Buffer[] = []
    for (let at = 0; at + 2 <= received.length; ) {
      const end = at + 2 + received.readUInt16BE(at)
      if (end > received.length) break
      list.push(received.subarray(at + 2, end))
      at = end
    }
    return list
  }
  const socket = await Bun.connect({
    hostname: '127.0.0.1',
    port,
    socket: {
      data(_, chunk) {
        received = Buffer.concat([received, chunk])
        if (messages().length >= replies) resolve()
      },
      close: () => resolve(),
    },
  })
  socket.write(bytes)
  await promise
  socket.terminate()
  return messages()
}

const framed = (message: Uint8Array): Buffer =>
  Buffer.concat([Buffer.from([message.length >> 8, message.length & 0xff]), message])

const echo: Behaviour = (asked, send) => send(reply(asked))
const silent: Behaviour = () => {}

const missFirst = (): Behaviour => {
  let asked = 0
  return (message, send) => {
    if (++asked > 1) send(reply(message))
  }
}

describe('over UDP', () => {
  test('passes query and answer on as they are', async () => {
    const { send, next } = await client(await forwarder(await servers([echo])))
    const answered = next()
    send(query(0x1234, 'example.com'))
    expect(await answered).toEqual(reply(query(0x1234, 'example.com')))
  })

  test('answers many at once, each its own', async () => {
    const later: Behaviour = (asked, send) => void setImmediate(() => send(reply(asked, { mark: asked[1] })))
    const { send, received, next } = await client(await forwarder(await servers([later])))
    const all = Promise.all(Array.from({ length: 100 }, () => next()))
    for (let id = 0; id < 100; id++) send(query(id, `host${id}.example.com`))
    await all
    expect(received.map((message) => message.readUInt16BE(0)).sort((a, b) => a - b)).toEqual([...Array(100).keys()])
    for (const message of received) expect(message.at(-1)).toBe(message[1])
  })

  const failovers: [string, (Behaviour | null)[], number][] = [
    ['is silent', [silent, echo], 0],
    ['is the only one and misses the first query', [missFirst()], 0],
    ['is not there', [null, echo], 0],
    ['cannot say', [(asked, send) => send(reply(asked, { rcode: 2 })), echo], 0],
    ['refuses', [(asked, send) => send(reply(asked, { rcode: 5 })), echo], 0],
    [
      'answers something else',
      [(asked, send) => send(reply(query(7, 'evil.test'), { id: asked.readUInt16BE(0) })), echo],
      0,
    ],
    ['answers with another id', [(asked, send) => send(reply(asked, { id: 0xffff })), echo], 0],
    ['knows of no such name', [(asked, send) => send(reply(asked, { rcode: 3 })), echo], 3],
    ['cannot say, and nobody else can', [(asked, send) => send(reply(asked, { rcode: 5 })), silent], 5],
  ]
  test.each(failovers)('when the first server %s', async (_, behaviours, rcode) => {
    const { send, next } = await client(await forwarder(await servers(behaviours)))
    const answered = next()
    send(query(7, 'example.com'))
    expect(((await answered)[3] ?? 0) & 0x0f).toBe(rcode)
  })

  test('says so, in no more bytes than it was asked in, when nobody answers', async () => {
    const { send, next } = await client(await forwarder({ upstreams: [] }))
    const answered = next()
    const asked = Buffer.concat([query(9, 'example.com'), Buffer.alloc(300)])
    send(asked)
    const message = await answered
    expect(message.length).toBe(query(9, 'example.com').length)
    expect(message.readUInt16BE(0)).toBe(9)
    expect((message[2] ?? 0) & 0x80).toBe(0x80)
    expect((message[3] ?? 0) & 0x0f).toBe(2)
  })

  test('never answers an answer or what is no message, and never twice', async () => {
    let asked = 0
    const twice: Behaviour = (message, send) => {
      asked++
      send(reply(message))
      send(reply(message))
    }
    const { send, received, next } = await client(await forwarder(await servers([twice])))
    const answered = next()
    send(reply(query(1, 'example.com')))
    send(Buffer.from([1, 2, 3]))
    send(Buffer.alloc(0))
    send(query(2, 'example.com'))
    await answered
    const again = next()
    send(query(3, 'example.com'))
    await again
    expect(asked).toBe(2)
    expect(received.map((message) => message.readUInt16BE(0))).toEqual([2, 3])
  })

  test('to one client arrives though another left before its own did', async () => {
    const held: { id: number; release(): void }[] = []
    const hold: Behaviour = (asked, send) =>
      void held.push({ id: asked.readUInt16BE(0), release: () => send(reply(asked)) })
    const port = await forwarder(await servers([hold]))
    const patient = await client(port)
    const hasty = await Bun.udpSocket({ connect: { hostname: '127.0.0.1', port } })
    for (let id = 1; id <= 20; id++) hasty.send(query(id, 'example.com'))
    patient.send(query(100, 'example.com'))
    while (held.length < 21) await Bun.sleep(1)
    hasty.close()
    const answered = patient.next()
    for (const { release } of held.sort((a, b) => a.id - b.id)) release()
    expect((await answered).readUInt16BE(0)).toBe(100)
  })

  test('asks for no more of one client at once than it may', async () => {
    const held: (() => void)[] = []
    const hold: Behaviour = (message, send) => void held.push(() => send(reply(message)))
    const { send, received, next } = await client(await forwarder(await servers([hold])))
    for (let id = 0; id < 300; id++) send(query(id, 'example.com'))
    while (held.length < 200) await Bun.sleep(1)
    // The server has seen all that it will: a query of another client comes behind them.
    expect(held.length).toBe(200)
    const answers = Array.from({ length: 200 }, () => next())
    for (const release of held.splice(0)) release()
    await Promise.all(answers)
    const last = next()
    send(query(999, 'example.com'))
    while (held.length === 0) await Bun.sleep(1)
    held.shift()?.()
    expect((await last).readUInt16BE(0)).toBe(999)
    expect(received.length).toBe(201)
  })
})

describe('over TCP', () => {
  test('answers one after the other, however the bytes come', async () => {
    const port = await forwarder(await servers([echo]))
    const bytes = Buffer.concat([framed(query(1, 'a.example.com')), framed(query(2, 'b.example.com'))])
    expect(await askTcp(port, bytes, 2)).toEqual([reply(query(1, 'a.example.com')), reply(query(2, 'b.example.com'))])
  })

  test('fails over to the next server', async () => {
    const port = await forwarder(await servers([silent, echo]))
    expect(await askTcp(port, framed(query(1, 'example.com')))).toEqual([reply(query(1, 'example.com'))])
  })

  test('fails over to the next server where nobody listens', async () => {
    const port = await forwarder(await servers([null, echo]))
    expect(await askTcp(port, framed(query(1, 'example.com')))).toEqual([reply(query(1, 'example.com'))])
  })

  test('ends a connection that sends no query', async () => {
    const port = await forwarder(await servers([echo]))
    expect(await askTcp(port, framed(Buffer.from([1, 2, 3])))).toEqual([])
  })

  test('passes long answers on', async () => {
    const long: Behaviour = (asked, send) => send(Buffer.concat([reply(asked), Buffer.alloc(60_000, 7)]))
    const port = await forwarder(await servers([long]))
    const [message] = await askTcp(port, framed(query(1, 'example.com')))
    expect(message?.length).toBe(query(1, 'example.com').length + 1 + 60_000)
  })
})

describe('a client with a filter', () => {
  const LEAD = { address: 0x01020304, ttlSeconds: 60 }

  /** An address for whatever name is asked. */
  const address: Behaviour = (asked, send) => {
    const message = Buffer.concat([asked, Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 1, 2, 3, 4])])
    message[2] = 0x81
    message[7] = 1
    send(message)
  }

  async function filtered(filter: Partial<NameFilter> = {}) {
    const asked: string[] = []
    const learnt: unknown[][] = []
    const options = await servers([
      (message, send) => {
        asked.push(message.toString('latin1'))
        address(message, send)
      },
    ])
    const port = await forwarder({
      ...options,
      filterOf: (client) =>
        client === '127.0.0.1'
          ? { allows: (name) => name.endsWith('.com'), learn: (...all) => void learnt.push(all), ...filter }
          : null,
    })
    return { asked, learnt, port, ...(await client(port)) }
  }

  test('is told of what it may look up, after the filter was', async () => {
    const { send, next, learnt } = await filtered()
    const answered = next().then((message) => [message[7], learnt.length])
    send(query(1, 'WWW.example.com'))
    expect(await answered).toEqual([1, 1])
    expect(learnt).toEqual([['www.example.com', [LEAD]]])
  })

  test('is told that there is no other name, and nobody is asked for it, over TCP neither', async () => {
    const { send, next, learnt, asked, port } = await filtered()
    const answered = next()
    send(query(1, 'secret-in-a-name.evil.test'))
    expect(((await answered)[3] ?? 0) & 0x0f).toBe(3)
    const [reply] = await askTcp(port, framed(query(2, 'other.test')))
    expect((reply?.[3] ?? 0) & 0x0f).toBe(3)
    const [allowed] = await askTcp(port, framed(query(3, 'b.example.com')))
    expect((allowed?.[3] ?? 0) & 0x0f).toBe(0)
    expect(asked).toHaveLength(1)
    expect(learnt).toEqual([['b.example.com', [LEAD]]])
  })

  test('that breaks gets no answer; others do', async () => {
    const options = await servers([echo])
    let isBroken = true
    const port = await forwarder({
      ...options,
      filterOf() {
        if (isBroken) throw new Error('broken')
        return null
      },
    })
    const { send, received, next } = await client(port)
    send(query(1, 'example.com'))
    expect(await askTcp(port, framed(query(2, 'example.com')))).toEqual([])
    isBroken = false
    const answered = next()
    send(query(3, 'example.com'))
    await answered
    expect(received.map((message) => message.readUInt16BE(0))).toEqual([3])
  })

  test('is not told of an address that could not be opened', async () => {
    const { send, next } = await filtered({
      learn() {
        throw new Error('no room')
      },
    })
    const answered = next()
    send(query(1, 'a.example.com'))
    const message = await answered
    expect([(message[3] ?? 0) & 0x0f, message[7]]).toEqual([2, 0])
  })
})
