/** Terminals of Orb Cloud contract §14.2, against real computers. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { readdirSync, readFileSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import type { Computer } from '../support/computer.ts'
import { Gates, timesAsked } from '../support/gates.ts'
import { type LlmServer, startLlmServer } from '../support/llm-server.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'
import { processesIn, until } from '../support/sweep.ts'
import { openSocket, type TestSocket } from '../support/terminal.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

const gates = new Gates()
let orb: Orb
let llm: LlmServer
let computer: Computer
beforeAll(async () => {
  llm = startLlmServer({ answerWhen: gates.answerWhen })
  orb = await startOrb({ env: { ORB_IDLE_TIMEOUT: '2s' } })
  computer = await orb.computer()
})
afterAll(async () => {
  gates.openAll()
  await orb?.stop()
  await llm?.stop()
})

const url = (of = computer, query = '') => `${orb.url}/v1/computers/${of.id}/terminal?key=${orb.key}${query}`

/** A terminal whose prompt is there. */
async function open(query = '', of = computer): Promise<TestSocket> {
  const socket = await openSocket(url(of, query))
  await socket.shows(/# $/)
  return socket
}

/** Host pids of what was started on terminals. */
const onTerminals = (of: Computer): number[] =>
  processesIn(of.name).filter((pid) => {
    try {
      return readFileSync(`/proc/${pid}/cgroup`, 'utf8').includes('/terminal-')
    } catch {
      return false
    }
  })

describe('a terminal', () => {
  test('is a login shell in /root with a prompt, colours and line editing', async () => {
    const socket = await open('&cols=100&rows=30')
    socket.send('echo $0 $PWD $TERM $(stty size) $(tty) $- ; shopt -q login_shell && echo log""in\r')
    await socket.shows(/\rbash \/root xterm-256color 30 100 \/dev\/pts\/\d+ \S*i\S*m\S*\r\nlogin\r\n/)
    socket.send('tput setaf 1 | od -An -c | head -1; echo wrong\x7f\x7f\x7f\x7f\x7fright\r')
    await socket.shows('033   [   3   1   m')
    await socket.shows('\r\nright\r\n')
    socket.close()
    expect(await until(() => onTerminals(computer).length === 0)).toBe(true)
  })

  test('takes a new size', async () => {
    const socket = await open()
    socket.send('{"type":"resize","cols":120,"rows":40}')
    socket.send('stty size\r')
    await socket.shows('\r40 120\r\n')
    socket.send('{"cols":121,"rows":41}')
    socket.send('stty size\r')
    await socket.shows('\r41 121\r\n')
    socket.close()
  })

  test('closes with the exit code of its shell', async () => {
    const socket = await open()
    socket.send('exit 42\r')
    expect(await socket.closed).toEqual({ code: 1000, reason: 'exit:42' })
  })

  test('shows every character whole and in order, however much it is', async () => {
    const socket = await open()
    socket.send(`stty -opost; python3 -c "print('<' + 'ü€🙂' * 300000 + '>')"; echo en""d\r`)
    await socket.shows('>\nend\n')
    const shown = socket.text.slice(socket.text.lastIndexOf('<'), socket.text.lastIndexOf('>') + 1)
    expect(Bun.hash(shown)).toBe(Bun.hash(`<${'ü€🙂'.repeat(300_000)}>`))
    for (const frame of socket.frames) expect(frame.isWellFormed() && !frame.includes('\ufffd')).toBe(true)
    socket.close()
  })

  test('has the environment of the agent, its secrets and the proxy, and outlasts a deploy', async () => {
    const other = await orb.computer()
    await other.call('POST', '/config', {
      agent: {
        name: 'a',
        lang: 'node',
        entry: 'x.mjs',
        env: { GREETING: 'hi there', TOKEN: '$' + '{THE_TOKEN}', PATH: '/agent/mine:/usr/bin:/bin' },
      },
    })
    // Before secrets are sent a terminal opens all the same.
    const early = await open('', other)
    early.send('echo "[$GREETING][$TOKEN]"\r')
    await early.shows('\r[hi there][]\r\n')
    await other.deployAgent({
      env: { GREETING: 'deployed', TOKEN: '$' + '{THE_TOKEN}', PATH: '/agent/mine:/usr/bin:/bin' },
      secrets: { THE_TOKEN: 'top secret' },
    })
    const socket = await open('', other)
    socket.send('echo "[$GREETING][$TOKEN][$PATH][$ORB_PROXY_URL][$ANTHROPIC_BASE_URL][$ORB_COMPUTER_ID]"\r')
    const proxy = `http://${orb.gateway}:10000`
    await socket.shows(`[deployed][top secret][/agent/mine:/usr/bin:/bin][${proxy}][${proxy}][${other.id}]\r\n`)
    early.send('echo still $((40 + 2))\r')
    await early.shows('still 42')
    for (const one of [early, socket]) one.close()
    expect(orb.log).not.toContain('top secret')
  })

  test('runs programs that take the whole screen', async () => {
    const socket = await open()
    socket.send('seq 500 >/root/long; less /root/long\r')
    await socket.shows(/\[\?1049h[\s\S]*\n23\r\n/)
    socket.send('G')
    await socket.shows(/500\r\n/)
    socket.send('q')
    await socket.shows(/\[\?1049l[\s\S]*# $/)
    socket.close()
  })

  test('is refused for a wrong key, an unknown computer and another organisation', async () => {
    const refusals = [
      [`/v1/computers/${computer.id}/terminal`, {}, 401, 'unauthorized'],
      [`/v1/computers/${computer.id}/terminal?key=orb_wrong`, {}, 401, 'unauthorized'],
      [`/v1/computers/00000000/terminal?key=${orb.key}`, {}, 404, 'not_found'],
      [`/v1/computers/${computer.shortId}/terminal?key=${orb.key}`, {}, 400, 'invalid_request'],
    ] as const
    for (const [path, headers, status, error] of refusals) {
      const answer = await fetch(orb.url + path, { headers })
      expect([path, answer.status, await answer.json()]).toEqual([path, status, expect.objectContaining({ error })])
    }
    const { key } = orb
    await orb.register()
    const foreign = await orb.call('GET', `/v1/computers/${computer.id}/terminal`)
    expect([foreign.status, foreign.json['error']]).toEqual([404, 'not_found'])
    orb.key = key
  })

  test('leaves no key in the log', async () => {
    const socket = await open()
    socket.close()
    await socket.closed
    expect(orb.log).toContain(`/v1/computers/${computer.id}/terminal`)
    expect(orb.log).not.toContain(orb.key)
    expect(orb.log).not.toContain('key=')
  })
})

describe('a session with a name', () => {
  test('survives a disconnect, is shown again, and belongs to the newest client', async () => {
    const first = await open('&session=kept')
    expect(first.frames[0]).toBe('')
    first.send('kept=yes; echo be""fore; sleep 1; echo mean""while\r')
    await first.shows('\rbefore')
    first.close()
    await first.closed
    await until(async () => (await computer.sh('ps axo args')).includes('sleep 1') === false, 10_000)
    const second = await openSocket(url(computer, '&session=kept'))
    await second.shows(/before\r\nmeanwhile/)
    expect(second.frames[0]).toContain('be""fore')
    const third = await openSocket(url(computer, '&session=kept'))
    expect((await second.closed).code).toBe(4409)
    third.send('echo kept=$kept\r')
    await third.shows('kept=yes')
    third.send('exit\r')
    expect(await third.closed).toEqual({ code: 1000, reason: 'exit:0' })
    expect(await until(() => onTerminals(computer).length === 0)).toBe(true)
  })

  test('is one of sixteen at most', async () => {
    const other = await orb.computer()
    const sockets = await Promise.all(
      Array.from({ length: 16 }, (_, index) => openSocket(url(other, `&session=s${index}`))),
    )
    const answer = await other.call('GET', '/terminal')
    expect([answer.status, answer.json['error'], answer.headers.get('retry-after')]).toEqual([
      429,
      'too_many_sessions',
      '5',
    ])
    await expect(openSocket(url(other))).rejects.toThrow()
    const again = await openSocket(url(other, '&session=s3'))
    again.send('exit\r')
    await again.closed
    const another = await open('', other)
    for (const socket of [...sockets, another]) socket.close()
  })
})

describe('terminals are closed', () => {
  test('with 4401 as soon as their key is revoked', async () => {
    const { json } = await orb.call('POST', '/v1/keys', { name: 'short-lived' })
    const path = `${orb.url}/v1/computers/${computer.id}/terminal`
    const socket = await openSocket(path, { authorization: `Bearer ${json['api_key']}` })
    const { json: login } = await orb.call('POST', '/v1/auth/login', { api_key: json['api_key'] })
    const byToken = await openSocket(`${path}?session=token&key=${login['token']}`)
    const other = await open()
    await orb.call('DELETE', `/v1/keys/${json['key_id']}`)
    expect((await socket.closed).code).toBe(4401)
    expect((await byToken.closed).code).toBe(4401)
    other.send('echo still $((40 + 2))\r')
    await other.shows('still 42')
    other.close()
    expect(await until(() => onTerminals(computer).length === 0)).toBe(true)
  })

  test('with 1012 by a restart, with 4404 when the computer is deleted, and leave nothing', async () => {
    const other = await orb.computer()
    const sockets = [await open('', other), await open('&session=a', other)]
    sockets[1]?.send('sleep 1234\r')
    await other.call('POST', '/restart')
    for (const socket of sockets) expect((await socket.closed).code).toBe(1012)
    expect(onTerminals(other)).toEqual([])
    const last = await open('&session=a', other)
    expect((await other.call('DELETE', '')).status).toBe(200)
    expect((await last.closed).code).toBe(4404)
    expect(processesIn(other.name)).toEqual([])
  })
})

describe('beside an agent', () => {
  let beside: Computer
  beforeAll(async () => {
    beside = await orb.computer()
    await beside.deployAgent({ llmPort: llm.port })
  })

  test('a terminal keeps it from falling asleep as idle while somebody is there', async () => {
    const socket = await open('', beside)
    expect(await beside.statesDuring(5_000)).toEqual(['running'])
    socket.close()
    expect((await beside.waitForState('checkpointed')).sleep_reason).toBe('idle')
  })

  test('a terminal does not wake it, nor is it ended by its sleep and wake, nor in their way', async () => {
    expect((await beside.agent())?.state).toBe('checkpointed')
    const socket = await open('&session=night', beside)
    socket.send('cd /agent/data; x=1; ps axo args\r')
    await socket.shows('ps axo args\r\n')
    expect((await beside.agent())?.state).toBe('checkpointed')
    await beside.call('POST', '/agents/promote')
    const before = await beside.state()
    gates.shut('held')
    await beside.ask({ id: 'held', prompt: 'held' })
    await until(() => timesAsked(llm.requests, 'held') === 1)
    await beside.waitForState('checkpointed')
    socket.send('echo $x $PWD\r')
    await socket.shows('\r1 /agent/data\r\n')
    expect((await beside.agent())?.state).toBe('checkpointed')
    gates.open('held')
    expect(await beside.outcome('held')).toMatchObject({ answer: 'echo: held', intact: true })
    expect((await beside.state()).life).toBe(before.life)
    socket.send('echo again $((x + 1))\r')
    await socket.shows('again 2')
    socket.close()
  })

  test('a call of the terminal to the LLM is answered without a sleep', async () => {
    await beside.call('POST', '/agents/promote')
    const socket = await open('', beside)
    socket.send(
      `curl -sS $OPENAI_BASE_URL/v1/chat/completions -H 'content-type: application/json' -d '{"model":"m","messages":[{"role":"user","content":"from the terminal"}]}'\r`,
    )
    await socket.shows('echo: from the terminal')
    socket.close()
  })
})

describe('a client that reads slowly', () => {
  /** A WebSocket that does not read before it is told to. */
  async function openRaw(path: string): Promise<Socket> {
    const { hostname, port } = new URL(orb.url)
    const socket = connect(Number(port), hostname)
    const head = await new Promise<string>((resolve, reject) => {
      socket.once('error', reject)
      socket.once('data', (bytes: Buffer) => {
        socket.pause()
        resolve(bytes.toString('latin1'))
      })
      const key = Buffer.alloc(16, 1).toString('base64')
      socket.write(
        `GET ${path} HTTP/1.1\r\nHost: ${hostname}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${key}\r\n\r\n`,
      )
    })
    expect(head).toStartWith('HTTP/1.1 101 ')
    return socket
  }

  /** A text frame, masked with zeros (RFC 6455 §5.2). */
  const frame = (text: string) =>
    Buffer.concat([Buffer.from([0x81, 0x80 | text.length, 0, 0, 0, 0]), Buffer.from(text)])

  /** What unmasked frames hold; a frame may end anywhere in what the program wrote. */
  function payloads(bytes: Buffer): string {
    const parts: Buffer[] = []
    for (let at = 0; at + 2 <= bytes.length; ) {
      const short = (bytes[at + 1] ?? 0) & 0x7f
      const start = at + 2 + (short === 126 ? 2 : short === 127 ? 8 : 0)
      const length = short === 126 ? bytes.readUInt16BE(at + 2) : short === 127 ? bytes.readUInt32BE(at + 6) : short
      parts.push(bytes.subarray(start, start + length))
      at = start + length
    }
    return Buffer.concat(parts).toString('latin1')
  }

  const residentMb = () =>
    Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${orb.pid}/status`, 'utf8'))?.[1] ?? 0) / 1024

  test('stops the program, not orb, and misses nothing', async () => {
    const other = await orb.computer()
    await other.put(
      'root/p',
      `i=0; pad=${'.'.repeat(2_000)}; while [ ! -e /root/stop ]; do echo "<$((i += 1))>$pad"; printf . >>/root/n; done; echo over`,
    )
    const socket = await openRaw(`/v1/computers/${other.id}/terminal?key=${orb.key}`)
    socket.write(frame('sh /root/p\r'))
    const written = async () => Number((await other.exec('stat -c %s /root/n')).stdout)
    let last = 0
    let unchanged = 0
    const stands = async () => {
      const now = await written()
      unchanged = now > 0 && now === last ? unchanged + 1 : 0
      last = now
      return unchanged === 20
    }
    const memory = residentMb()
    expect(await until(stands, 60_000)).toBe(true)
    expect(residentMb() - memory).toBeLessThan(64)
    let received = Buffer.alloc(0)
    socket.on('data', (bytes: Buffer) => {
      received = Buffer.concat([received, bytes])
    })
    socket.resume()
    expect(await until(async () => (await written()) > last + 100, 30_000)).toBe(true)
    await other.sh('touch /root/stop')
    expect(await until(() => received.includes('over\r\n'), 30_000)).toBe(true)
    const numbers = [...payloads(received).matchAll(/<(\d+)>/g)].map(([, number]) => Number(number))
    const total = await written()
    expect(numbers).toEqual(Array.from({ length: total }, (_, index) => index + 1))
    socket.destroy()
    expect(await until(() => onTerminals(other).length === 0)).toBe(true)
  })
})

describe('orb ends, and its shells with it:', () => {
  const lines = () => readdirSync(join(orb.dataDir, 'computers')).length

  test('stopped, it says 1012', async () => {
    const socket = await open('&session=a')
    socket.send('sleep 4321\r')
    expect(await orb.terminate()).toBe(0)
    expect((await socket.closed).code).toBe(1012)
    expect(await until(() => onTerminals(computer).length === 0, 10_000)).toBe(true)
    await orb.restart()
    expect(lines()).toBeGreaterThan(0)
  })

  test('killed, it leaves none, not even one that hears no hang-up', async () => {
    const sockets = [await open('&session=a'), await open()]
    sockets[0]?.send(`trap '' HUP TERM; while :; do sleep 1; done\r`)
    sockets[1]?.send('nohup sleep 4321 >/dev/null 2>&1 & disown; sleep 1234\r')
    await until(async () => (await computer.sh('ps axo args')).includes('sleep 1234'))
    await orb.kill9()
    expect(await until(() => onTerminals(computer).length === 1, 20_000)).toBe(true)
    await orb.restart()
    // What was to live on does, as what exec leaves behind.
    expect(await computer.sh('ps axo args')).toContain('sleep 4321')
    const socket = await open('&session=a')
    socket.send('echo anew $((40 + 2))\r')
    await socket.shows('anew 42')
    socket.close()
    await computer.call('POST', '/restart')
    expect(onTerminals(computer)).toEqual([])
  })
})
