import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, readFileSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { directory } from '../../src/api/cloud/schemas.ts'
import type { Computer } from '../support/computer.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

/** Limit of an upload (Orb Cloud contract §14.1). */
const UPLOAD_BYTES = 209_715_200
const RACE_ROUNDS = 300

let orb: Orb
let computer: Computer

beforeAll(async () => {
  orb = await startOrb()
  computer = await orb.computer({ disk_mb: 1024 })
})
afterAll(() => orb?.stop())

const list = async (path: string) => directory.parse((await computer.call('GET', `/files/${path}`)).json)

describe('files of a computer', () => {
  test('are listed, root included, in order, without what orb keeps for itself', async () => {
    const root = await list('')
    const names = root.files.map(({ name }) => name)
    expect(names).toEqual(names.toSorted())
    expect(names).toEqual(expect.arrayContaining(['agent', 'etc', 'home', 'root', 'tmp', 'usr', 'var']))
    expect(names).not.toContain('.')
    expect((await list('agent')).files.map(({ name }) => name)).toEqual(
      expect.arrayContaining(['.orb', 'cache', 'code', 'data', 'packages']),
    )
  })

  test('are the same from inside and from outside', async () => {
    await computer.put('agent/data/from-outside', 'hello from outside\n')
    expect(await computer.sh('cat /agent/data/from-outside; stat -c "%U %a" /agent/data/from-outside')).toBe(
      'hello from outside\nroot 644\n',
    )
    await computer.sh('umask 077; printf "hello from inside" > "/agent/data/from inside é"')
    expect(await computer.get(`agent/data/${encodeURIComponent('from inside é')}`)).toBe('hello from inside')
    const { files } = await list('agent/data')
    expect(files.find(({ name }) => name === 'from inside é')).toMatchObject({ type: 'file', size: 17, mode: '0600' })
  })

  test('that are written anew keep owner and mode, and are replaced at once', async () => {
    await computer.sh(
      'useradd writer; echo old > /agent/data/kept; chown writer /agent/data/kept; chmod 750 /agent/data/kept',
    )
    await computer.put('agent/data/kept', 'new')
    expect(await computer.sh('stat -c "%U %a" /agent/data/kept; cat /agent/data/kept')).toBe('writer 750\nnew')
    expect(
      (await readdir(join(orb.dataDir, 'computers', computer.id))).filter((name) => name.includes('.part')),
    ).toEqual([])
  })

  test('come with their parents, and a range of one is given', async () => {
    await computer.put('root/a/b/c/deep.txt', '0123456789')
    const part = await computer.call('GET', '/files/root/a/b/c/deep.txt', undefined, { range: 'bytes=2-5' })
    expect([part.status, part.text, part.headers.get('content-range')]).toEqual([206, '2345', 'bytes 2-5/10'])
    const beyond = await computer.call('GET', '/files/root/a/b/c/deep.txt', undefined, { range: 'bytes=10-' })
    expect([beyond.status, beyond.json['error']]).toEqual([416, 'range_not_satisfiable'])
  })

  test.each([
    ['GET', 'no/such/file', 404, 'not_found'],
    ['PUT', 'agent/data', 409, 'is_a_directory'],
    ['PUT', 'etc/passwd/below', 409, 'not_a_directory'],
    ['PUT', '', 400, 'invalid_path'],
    ['GET', '..%2f..%2fetc%2fpasswd', 400, 'invalid_path'],
    ['PUT', '..%2f..%2ftmp%2fescaped', 400, 'invalid_path'],
    ['GET', 'etc/passwd%00.txt', 400, 'invalid_path'],
    ['GET', '%ff', 400, 'invalid_path'],
  ])('%s of %s is refused', async (method, path, status, error) => {
    const answer = await computer.call(method, `/files/${path}`, method === 'PUT' ? 'x' : undefined)
    expect([answer.status, answer.json['error']]).toEqual([status, error])
    expect(answer.text).not.toContain(orb.dataDir)
    expect(existsSync('/tmp/escaped')).toBe(false)
  })

  test.each([
    '../../../etc/passwd',
    'agent/../etc/passwd',
    '%2e%2e/etc/passwd',
    'agent/%2E%2e/etc/passwd',
    '.%2e/.%2e/etc/passwd',
  ])('a path of %s is refused as it stands, though most clients resolve it themselves', async (path) => {
    const request = `GET /v1/computers/${computer.id}/files/${path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${orb.key}\r\nConnection: close\r\n\r\n`
    expect(await raw(request)).toStartWith('HTTP/1.1 400')
  })

  test('pipes, devices and sockets are refused, at once', async () => {
    await computer.sh('mkfifo /agent/data/pipe; mknod /agent/data/device c 1 3')
    await computer.sh('python3 -c "import socket; socket.socket(socket.AF_UNIX).bind(\'/agent/data/socket\')"')
    for (const name of ['pipe', 'device', 'socket']) {
      const { status, json } = await computer.call('GET', `/files/agent/data/${name}`)
      expect([name, status, json['error']]).toEqual([name, 400, 'invalid_path'])
    }
  })
})

describe('symbolic links', () => {
  test.each([
    ['an absolute one', '/etc/passwd'],
    ['one that climbs', '../../../../../../etc/passwd'],
    ['one through proc', '/proc/self/root/etc/passwd'],
    ['one to a directory of the server', import.meta.dir],
  ])('are followed as the computer would, never out of it: %s', async (_, target) => {
    await computer.sh(`ln -sfn '${target}' /agent/data/link`)
    const { status, text } = await computer.call('GET', '/files/agent/data/link')
    expect([200, 400, 404]).toContain(status)
    if (status === 200) expect(text).toBe(await computer.sh('cat /etc/passwd'))
    if (target.startsWith('/etc')) expect(status).toBe(200)
  })

  test('in the way of a write lead to a file of the computer', async () => {
    const passwd = readFileSync('/etc/passwd', 'utf8')
    await computer.sh('ln -sfn / /agent/data/root-link')
    await computer.put('agent/data/root-link/etc/written', 'inside')
    expect(await computer.sh('cat /etc/written')).toBe('inside')
    expect(existsSync('/etc/written')).toBe(false)
    expect(readFileSync('/etc/passwd', 'utf8')).toBe(passwd)
  })

  test('that a process swaps while files are read and written never lead out', async () => {
    await computer.sh('mkdir -p /agent/data/race/real && echo inside > /agent/data/race/real/passwd')
    const script =
      'cd /agent/data/race; while :; do rm -rf x; ln -s /etc x 2>/dev/null; rm -f x; ln -s ../../../../../../../../../etc x 2>/dev/null; rm -f x; mkdir x; echo inside > x/passwd; done'
    await computer.sh(`(${script}) >/dev/null 2>&1 & disown`)
    const own = await computer.sh('cat /etc/passwd')
    for (let round = 0; round < RACE_ROUNDS; round++) {
      const { status, text } = await computer.call('GET', '/files/agent/data/race/x/passwd')
      if (status === 200) expect(['inside\n', '', own]).toContain(text)
      else expect([400, 404, 409]).toContain(status)
      const written = await computer.call('PUT', '/files/agent/data/race/x/raced', 'x')
      expect(written.status).toBeLessThan(500)
    }
    expect(existsSync('/etc/raced')).toBe(false)
    await computer.call('POST', '/restart')
  })
})

describe('large files', () => {
  test.each([0, 100, 100_000, 3_000_000])('of %d bytes say how long they are', async (size) => {
    await computer.put('agent/data/sized', new Uint8Array(size))
    const whole = await computer.call('GET', '/files/agent/data/sized')
    expect([whole.status, whole.headers.get('content-length')]).toEqual([200, String(size)])
    if (size === 0) return
    const part = await computer.call('GET', '/files/agent/data/sized', undefined, { range: 'bytes=-99' })
    expect([part.status, part.headers.get('content-length')]).toEqual([206, '99'])
  })

  test('of 200 MB go in and come out whole; a byte more is refused and nothing of it stays', async () => {
    const bytes = new Uint8Array(UPLOAD_BYTES)
    for (let at = 0; at < bytes.length; at += 4096) bytes[at] = (at / 4096) & 0xff
    const hash = Bun.SHA256.hash(bytes, 'hex')
    const du = 'du -sm / --exclude=/proc --exclude=/usr --exclude=/dev 2>/dev/null | cut -f1'
    const usedBefore = Number(await computer.sh(du))
    await computer.put('agent/data/large', bytes)
    expect(await computer.sh('sha256sum < /agent/data/large')).toBe(`${hash}  -\n`)
    const back = await fetch(`${orb.url}/v1/computers/${computer.id}/files/agent/data/large`, {
      headers: { authorization: `Bearer ${orb.key}` },
    })
    expect(Bun.SHA256.hash(await back.bytes(), 'hex')).toBe(hash)

    const announced = await computer.call('PUT', '/files/agent/data/larger', new Uint8Array(UPLOAD_BYTES + 1))
    expect([announced.status, announced.json['error']]).toEqual([413, 'payload_too_large'])
    let sent = 0
    const chunked = await computer.call(
      'PUT',
      '/files/agent/data/larger',
      new ReadableStream<Uint8Array>({
        pull(controller) {
          if (sent > UPLOAD_BYTES) return controller.close()
          sent += 4 << 20
          controller.enqueue(new Uint8Array(4 << 20))
        },
      }),
    )
    expect([chunked.status, chunked.json['error']]).toEqual([413, 'payload_too_large'])
    expect(await computer.sh('ls -A /agent/data | grep -c larger || true')).toBe('0\n')
    const added = Number(await computer.sh(du)) - usedBefore
    expect([added, added >= 199 && added <= 205]).toEqual([added, true])
    await computer.sh('rm /agent/data/large')
  })
})

test('reading and writing, lists, logs, configuration and exec never wake an agent', async () => {
  const asleep = await orb.computer()
  await asleep.deployAgent()
  const before = await asleep.state()
  await asleep.call('POST', '/agents/demote')
  for (const path of ['', '/agents', '/config', '/logs', '/builds', '/files/', '/files/agent/data/lives']) {
    expect([path, (await asleep.call('GET', path)).status]).toEqual([path, 200])
  }
  // A file that the sleeping agent holds open, too.
  await asleep.sh('echo longer >> /agent/data/lives; echo beside > /agent/data/beside')
  await asleep.put('agent/data/upload', 'while it sleeps')
  await asleep.put('agent/code/agent.mjs', '// replaced under it')
  expect((await asleep.agent())?.state).toBe('checkpointed')
  expect(asleep.agentProcesses()).toEqual([])
  expect((await asleep.call('POST', '/agents/promote')).json).toMatchObject({ status: 'promoted' })
  expect(await asleep.state()).toEqual({ life: before.life, count: before.count + 1 })
})

/** What the server says to these bytes, sent as they are. */
function raw(request: string): Promise<string> {
  const { hostname, port } = new URL(orb.url)
  const { promise, resolve, reject } = Promise.withResolvers<string>()
  let text = ''
  Bun.connect({
    hostname,
    port: Number(port),
    socket: {
      open: (socket) => void socket.write(request),
      data: (_, bytes) => {
        text += bytes.toString()
      },
      close: () => resolve(text),
    },
  }).catch(reject)
  return promise
}
