/** Needs root, as sockets in other network namespaces do; here they are in the namespace of the test. */
import { afterEach, describe, expect, test } from 'bun:test'
import { closeSync, openSync, writeFileSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { OrbError } from '../errors.ts'
import { AppSocket } from '../runtime/app-socket.ts'
import { type FrontOptions, startFront } from './ingress.ts'
import type { PublicComputer, PublicDirectory } from './ingress-types.ts'
import { type RawConnection, type RawServer, rawClient, rawServer, settle, until } from './testing.ts'

const HOST = 'Host: abc12345.orb.test'
const GET = `GET /x HTTP/1.1\r\n${HOST}\r\n\r\n`
const UPGRADE = `GET /ws HTTP/1.1\r\n${HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n`
const SWITCHED = 'HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n'
const OK = 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok'

/** A computer whose agent sleeps and wakes when told, and whose programs are this process's. */
class FakeComputer implements PublicComputer, PublicDirectory {
  ports: number[] = []
  /** What was said of the visits, in order. */
  log: string[] = []
  wakes = 0
  /** Whom its host name is closed to. */
  limited: string | null = null
  /** What breaks when it is asked whether it runs. */
  broken: Error | null = null
  private gate: PromiseWithResolvers<void> | null = null
  private later: (() => void)[] = []
  private readonly netns = openSync('/proc/self/ns/net', 'r')

  find(label: string): PublicComputer | null {
    return label === 'abc12345' ? this : null
  }

  mayReach(address: string, host: string): boolean {
    return address !== this.limited || host !== 'abc12345.orb.test'
  }

  wake(): Promise<void> | undefined {
    if (this.broken !== null) throw this.broken
    if (this.gate !== null) this.wakes++
    return this.gate?.promise
  }

  running(): boolean {
    return this.gate === null
  }

  whenRunning(callback: () => void): void {
    this.later.push(callback)
  }

  socket(port: number, family: 4 | 6): AppSocket {
    return new AppSocket({ fd: this.netns, own: this.netns }, family, port, () => undefined)
  }

  begin() {
    this.log.push('begin')
    return {
      touch: () => void this.log.push('touch'),
      upgraded: () => void this.log.push('upgraded'),
      end: () => void this.log.push('end'),
    }
  }

  sleep(): void {
    this.gate = Promise.withResolvers()
    this.gate.promise.catch(() => undefined)
  }

  wakeUp(error?: OrbError): void {
    const { gate } = this
    if (error !== undefined) {
      gate?.reject(error)
      return
    }
    this.gate = null
    gate?.resolve()
    for (const callback of this.later.splice(0)) callback()
  }

  close(): void {
    closeSync(this.netns)
  }
}

interface Bench {
  computer: FakeComputer
  app: RawServer
  port: number
  stop(graceMs: number): Promise<void>
}

const open: { end(): Promise<void> | void }[] = []
afterEach(async () => {
  for (const one of open.splice(0)) await one.end()
})

/** A front door before an app that does as it is told. */
function bench(onData?: (connection: RawConnection) => void, over: Partial<FrontOptions> = {}): Bench {
  const computer = new FakeComputer()
  const app = rawServer(onData)
  computer.ports = [app.port]
  const front = startFront({
    listen: { kind: 'tcp', host: '127.0.0.1', port: 0 },
    tls: null,
    domain: 'orb.test',
    directory: computer,
    api: { path: '\0orb-nobody', peerHeader: 'x-orb-peer', secret: 's' },
    trustProxy: false,
    wakeTimeoutMs: 10_000,
    ...over,
  })
  open.push({
    async end() {
      await front.stop(0)
      app.stop()
      computer.close()
    },
  })
  return { computer, app, port: front.port ?? 0, stop: front.stop }
}

const answers =
  (answer: string) =>
  (connection: RawConnection): void => {
    if (!connection.received.endsWith('\r\n\r\n')) return
    connection.write(answer)
  }

async function upgraded({ app, port }: Bench): Promise<{ client: RawConnection; inside: RawConnection }> {
  const client = await rawClient(port)
  client.write(UPGRADE)
  await client.has('101')
  const inside = app.connections.at(-1)
  if (!inside) throw new Error('the app has no connection')
  return { client, inside }
}

const echoUpgrade = (connection: RawConnection): void => {
  if (connection.received.endsWith('Upgrade: websocket\r\n\r\n')) connection.write(SWITCHED)
}

describe('while the agent sleeps', () => {
  test('no connection is made before it runs, and then one', async () => {
    const { computer, app, port } = bench(answers(OK))
    computer.sleep()
    const client = await rawClient(port)
    client.write(GET)
    await until(() => computer.wakes > 0, 'the wake')
    await settle()
    expect(app.connections).toHaveLength(0)
    computer.wakeUp()
    await client.has('ok')
    expect(app.connections).toHaveLength(1)
  })

  test('not a byte is written to an open connection, and it stays open', async () => {
    const made = bench(echoUpgrade)
    const { client, inside } = await upgraded(made)
    made.computer.sleep()
    await settle()
    expect(made.computer.wakes).toBe(0)
    const before = inside.bytes
    client.write('one')
    await until(() => made.computer.wakes > 0, 'the wake')
    client.write('two')
    await settle()
    expect(inside.bytes).toBe(before)
    made.computer.wakeUp()
    expect(await inside.has('two')).toEndWith('onetwo')
    expect(made.computer.log).toEqual(['begin', 'upgraded', 'touch', 'touch'])
  })

  test('a client that leaves is told of when it runs again', async () => {
    const made = bench(echoUpgrade)
    const { client, inside } = await upgraded(made)
    made.computer.sleep()
    client.reset()
    await until(() => made.computer.log.includes('end'), 'the end of the visit')
    await settle()
    expect([inside.closed, made.computer.wakes]).toEqual([false, 0])
    made.computer.wakeUp()
    await inside.isClosed()
  })

  test('a client’s last bytes still wake it', async () => {
    const made = bench(echoUpgrade)
    const { client, inside } = await upgraded(made)
    made.computer.sleep()
    client.write('bye')
    client.socket.end()
    await until(() => made.computer.wakes > 0, 'the wake')
    made.computer.wakeUp()
    expect(await inside.has('bye')).toEndWith('bye')
    await inside.isClosed()
  })

  test('a client that leaves while it is held leaves nothing', async () => {
    const { computer, app, port } = bench()
    computer.sleep()
    const client = await rawClient(port)
    client.write(GET)
    await until(() => computer.wakes > 0, 'the wake')
    client.reset()
    await until(() => computer.log.includes('end'), 'the end of the visit')
    computer.wakeUp()
    await until(() => app.connections.every((connection) => connection.closed), 'no connection')
    expect(app.connections.map(({ received }) => received)).toEqual(app.connections.map(() => ''))
    expect(computer.log).toEqual(['begin', 'end'])
  })

  test('504 when the wake takes too long; the connection is good for more', async () => {
    const { computer, port } = bench(answers(OK), { wakeTimeoutMs: 50 })
    computer.sleep()
    const client = await rawClient(port)
    client.write(GET)
    expect(await client.has('wake_timeout')).toStartWith('HTTP/1.1 504 ')
    computer.wakeUp()
    client.write(GET)
    await client.has('ok')
  })

  test('the reason when it cannot be woken; an open WebSocket ends', async () => {
    const made = bench(echoUpgrade)
    const { client: socket } = await upgraded(made)
    made.computer.sleep()
    const client = await rawClient(made.port)
    client.write(GET)
    socket.write('x')
    await until(() => made.computer.wakes > 1, 'the wakes')
    made.computer.wakeUp(new OrbError('wake_failed', 'no'))
    expect(await client.has('wake_failed')).toContain('Retry-After: 5\r\n')
    await socket.isClosed()
  })
})

describe('odd ends', () => {
  test('what breaks when it is woken costs that request alone', async () => {
    const made = bench(echoUpgrade)
    made.computer.sleep()
    const client = await rawClient(made.port)
    client.write(GET)
    await until(() => made.computer.wakes > 0, 'the wake')
    made.computer.broken = new Error('the disk is gone')
    made.computer.wakeUp()
    await client.has('"error":"internal"')

    made.computer.broken = null
    const tunnel = await upgraded(made)
    made.computer.sleep()
    const before = made.computer.wakes
    tunnel.client.write('one')
    await until(() => made.computer.wakes > before, 'the wake')
    made.computer.broken = new Error('the disk is gone')
    made.computer.wakeUp()
    await tunnel.client.isClosed()
  })

  test('an answer before the request is whole: it arrives, and the connection closes', async () => {
    const { port } = bench((connection) => connection.received.includes('part') && connection.write(OK))
    const client = await rawClient(port)
    client.write(`POST /x HTTP/1.1\r\n${HOST}\r\nContent-Length: 100\r\n\r\npart`)
    await client.has('ok')
    client.write('rest')
    await client.isClosed()
  })

  test('an answer that breaks off breaks off', async () => {
    const { port } = bench((connection) => {
      connection.write('HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\npart')
      connection.socket.end()
    })
    const client = await rawClient(port)
    client.write(GET)
    await client.isClosed()
    expect(client.received).toEndWith('part')
  })

  test('a body that breaks the rules half way is not passed on', async () => {
    const { app, port } = bench()
    const client = await rawClient(port)
    client.write(`POST /x HTTP/1.1\r\n${HOST}\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n`)
    await until(() => app.connections[0]?.received.includes('abc') === true, 'the first chunk')
    client.write('zz\r\n')
    expect(await client.has('invalid_request')).toStartWith('HTTP/1.1 400 ')
    await until(() => app.connections[0]?.closed === true, 'the app hears of it')
    expect(app.connections[0]?.received).not.toContain('0\r\n\r\n')
  })

  test('interim answers pass, and to old clients they do not', async () => {
    const early = 'HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n'
    const { port } = bench(answers(early + OK))
    const client = await rawClient(port)
    client.write(GET)
    expect(await client.has('ok')).toStartWith(early)
    const old = await rawClient(port)
    old.write(GET.replace('1.1', '1.0'))
    expect(await old.has('ok')).toStartWith('HTTP/1.1 200 ')
  })

  test('bytes that follow the upgrade at once are for the WebSocket', async () => {
    const made = bench((connection) => connection.received.includes('\r\n\r\n') && connection.write(`${SWITCHED}hello`))
    const client = await rawClient(made.port)
    client.write(`${UPGRADE}early`)
    expect(await client.has('hello')).toContain('101 Switching Protocols')
    await until(() => made.app.connections[0]?.received.endsWith('\r\n\r\nearly') === true, 'the early bytes')
  })
})

test('whoever may not reach a host gets 403 and no computer is asked; the API is open to him', async () => {
  const { computer, app, port } = bench(answers(OK))
  const ask = async (head: string): Promise<string> => {
    const client = await rawClient(port)
    client.write(head)
    return await client.has('}')
  }
  computer.limited = '127.0.0.1'
  for (const host of ['abc12345.orb.test', 'ABC12345.orb.test.:80']) {
    const refused = await ask(`GET / HTTP/1.1\r\nHost: ${host}\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n`)
    expect(refused).toStartWith('HTTP/1.1 403 ')
    expect(refused).toContain('"error":"forbidden"')
    expect(refused).toContain('abc12345.orb.test is not in network.outbound of this computer.')
  }
  expect(await ask('GET http://abc12345.orb.test/ HTTP/1.1\r\nHost: orb.test\r\n\r\n')).toContain('forbidden')
  // There is no API behind this door.
  expect(await ask('GET / HTTP/1.1\r\nHost: api.orb.test\r\n\r\n')).toContain('shutting_down')
  expect([app.connections.length, computer.log]).toEqual([0, []])
  computer.limited = '127.0.0.2'
  const client = await rawClient(port)
  client.write(GET)
  await client.has('ok')
})

test('over TLS', async () => {
  const dir = `/tmp/orb-front-${process.pid}`
  const files = { key: `${dir}.key`, cert: `${dir}.crt` }
  const command = ['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes']
  const made = Bun.spawnSync([...command, '-keyout', files.key, '-out', files.cert, '-subj', '/CN=orb', '-days', '1'])
  expect(made.exitCode).toBe(0)
  const [key, cert] = await Promise.all(
    [files.key, files.cert].map(async (file) => Buffer.from(await Bun.file(file).bytes())),
  )
  await Promise.all([files.key, files.cert].map((file) => rm(file)))
  const { app, port } = bench(answers(OK), { tls: { key: key ?? Buffer.alloc(0), cert: cert ?? Buffer.alloc(0) } })
  const answer = await fetch(`https://127.0.0.1:${port}/x`, {
    headers: { host: 'abc12345.orb.test' },
    tls: { rejectUnauthorized: false },
  })
  expect(await answer.text()).toBe('ok')
  expect(app.connections[0]?.received).toContain('X-Forwarded-Proto: https\r\n')
})

test('on a unix socket: a former one is replaced, a file is not', async () => {
  const path = `/tmp/orb-front-${process.pid}.sock`
  const former = Bun.listen({ unix: path, socket: { data() {} } })
  const { stop } = bench(answers(OK), { listen: { kind: 'unix', path } })
  const answer = await fetch('http://abc12345.orb.test/x', { unix: path })
  expect(await answer.text()).toBe('ok')
  await stop(0)
  former.stop(true)
  writeFileSync(path, 'precious')
  expect(() => bench(undefined, { listen: { kind: 'unix', path } })).toThrow()
  expect(await Bun.file(path).text()).toBe('precious')
  await rm(path)
})

test('stop: open requests end, WebSockets and idle connections at once, new ones are not taken', async () => {
  const made = bench(echoUpgrade)
  const { client: socket } = await upgraded(made)
  const [idle, busy] = await Promise.all([rawClient(made.port), rawClient(made.port)])
  busy.write(GET.replace('/x', '/slow').replace('\r\n\r\n', '\r\nContent-Length: 1\r\n\r\n'))
  await until(() => made.app.connections.length === 2, 'the request reaches the app')
  const stopped = made.stop(10_000)
  await Promise.all([socket.isClosed(), idle.isClosed()])
  expect(rawClient(made.port)).rejects.toThrow()
  expect(busy.closed).toBe(false)
  busy.write('1')
  made.app.connections[1]?.write(OK)
  expect(await busy.has('ok')).toContain('Connection: close\r\n')
  await stopped
})
