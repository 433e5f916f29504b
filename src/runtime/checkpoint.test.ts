/* Agents to disk and back. Needs root. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { cpSync, existsSync, readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { z } from 'zod'
import { TestServer, tableOf } from '../../test/support/network.ts'
import { allHeld, noneHeld, shell, startRuntime, type TestRuntime } from '../../test/support/runtime.ts'
import { isCriu, processesIn, until } from '../../test/support/sweep.ts'
import type { ComputerRow } from '../store/types.ts'
import { Cgroups } from './cgroup.ts'
import { CriuError } from './criu.ts'
import { runningCriu } from './criu-processes.ts'
import { ImageError } from './image-manifest.ts'
import { objectName } from './paths.ts'
import { Runtime } from './runtime.ts'

setDefaultTimeout(60_000)

const WAIT_MS = 10_000
const MIB = 1024 * 1024
const IMAGE = '1'
const MAPPED_MIB = 48

/**
 * Counts the lines that come over its connection to the LLM proxy and says what it still has: its memory, a deleted file
 * that is open, a child behind a pipe, a watched directory.
 */
const AGENT = `
const { connect } = require('node:net'), fs = require('node:fs'), { spawn } = require('node:child_process')
const [port, host, megabytes] = process.argv.slice(2)
const memory = Buffer.alloc(megabytes << 20, 7)
const intact = () => {
  for (let at = 0; at < memory.length; at += 4096) if (memory[at] !== 7) return false
  return true
}
const deleted = fs.openSync('/tmp/deleted', 'w+')
fs.writeSync(deleted, 'still readable')
fs.unlinkSync('/tmp/deleted')
const child = spawn('sh', ['-c', 'cat | cat'])
const watched = []
fs.watch('/agent/data', (_, name) => watched.push(name))
let count = 0
const socket = connect(port, host, () => socket.write('"ready"\\n'))
socket.on('error', (error) => console.log(error.code))
socket.on('data', (data) => {
  const told = data.toString().trim()
  child.stdout.once('data', (piped) => {
    const buffer = Buffer.alloc(14)
    fs.readSync(deleted, buffer, 0, 14, 0)
    socket.write(JSON.stringify({
      told, count: ++count, memory: intact(), deleted: String(buffer),
      piped: String(piped), watched: [...new Set(watched.splice(0))], pid: process.pid,
    }) + '\\n')
  })
  child.stdin.write(told)
})
`
const Answer = z.object({
  told: z.string(),
  count: z.number(),
  memory: z.boolean(),
  deleted: z.string(),
  piped: z.string(),
  watched: z.array(z.string()),
  pid: z.number(),
})

let proxy: TestServer
let orb: TestRuntime
let computer: ComputerRow

beforeAll(async () => {
  proxy = new TestServer()
  orb = await startRuntime(proxy.port)
})
beforeEach(async () => {
  computer = await orb.computer()
})
afterEach(async () => {
  await orb.runtime.down(computer)
  await orb.runtime.erase(computer)
})
afterAll(async () => {
  await orb?.[Symbol.asyncDispose]()
  proxy[Symbol.dispose]()
})

async function eventually(done: () => boolean | Promise<boolean>, what: string): Promise<void> {
  if (!(await until(done, WAIT_MS))) throw new Error(`did not come in time: ${what}`)
}

/** Starts the agent; what comes back tells it something and gives its answer. */
async function startAgent(megabytes = 40) {
  writeFileSync(join(orb.runtime.paths(computer).rootfs, 'agent/code/agent.js'), AGENT)
  const known = proxy.peers.length
  await orb.runtime.spawnAgent(computer, {
    argv: ['node', 'agent.js', String(proxy.port), orb.runtime.network.gateway, String(megabytes)],
    env: { PATH: '/usr/bin:/bin', UV_USE_IO_URING: '0' },
    cwd: '/agent/code',
  })
  await eventually(() => proxy.peers[known]?.received === '"ready"\n', 'the agent’s connection')
  const peer = proxy.peers[known]
  if (!peer) throw new Error('no connection')
  return {
    peer,
    tell: (text: string) => {
      peer.received = ''
      peer.write(`${text}\n`)
    },
    answer: async () => {
      await eventually(() => peer.received.endsWith('\n'), 'the agent’s answer')
      return Answer.parse(JSON.parse(peer.received))
    },
  }
}

/** Bytes of the computer's page cache. */
function pageCache(): number {
  const name = objectName(computer.shortId)
  const v1 = `/sys/fs/cgroup/memory/orb/${name}/memory.stat`
  const file = existsSync(v1) ? v1 : join(Cgroups.detect().freezerDir(name), '../memory.stat')
  return Number(/^(?:cache|file) (\d+)$/m.exec(readFileSync(file, 'utf8'))?.[1])
}

/** Begins a dump, and holds criu up in it. */
async function beginDump() {
  const dir = orb.runtime.checkpoints.imageDir(computer, IMAGE)
  const workers = () => runningCriu(orb.dataDir).filter((one) => one.dir === dir)
  const criu = () => workers().find(({ pid }) => isCriu(pid))
  const isOurs = (pid: number) => readFileSync(`/proc/${pid}/status`, 'utf8').includes(`PPid:\t${process.pid}\n`)
  await orb.runtime.freezeAgent(computer)
  const dumped = orb.runtime.checkpoints.dump(computer, IMAGE)
  dumped.catch(() => undefined)
  const deadline = performance.now() + WAIT_MS
  while (!criu() && performance.now() < deadline) await Bun.sleep(1)
  const [working, messenger] = [criu()?.pid, workers().find(({ pid }) => isOurs(pid))?.pid]
  if (!working || !messenger) throw new Error('no dump is under way')
  process.kill(working, 'SIGSTOP')
  return { dumped, messenger, goOn: () => process.kill(working, 'SIGCONT') }
}

const processes = () => processesIn(`orb-${computer.shortId}/agent`)
const locked = async () =>
  (await Bun.$`nft list set inet ${tableOf(orb.runtime.network.gateway)} locked`.text()).includes('elements')

async function sleep(image = IMAGE): Promise<number> {
  await orb.runtime.freezeAgent(computer)
  return (await orb.runtime.checkpoints.dump(computer, image)).bytes
}

describe('to disk and back', () => {
  test('it keeps its memory, files, pipes, watches and its connection, again and again', async () => {
    const { peer, tell, answer } = await startAgent()
    tell('first')
    const { pid } = await answer()
    for (const [index, image] of ['1', '2', '3'].entries()) {
      const bytes = await sleep(image)
      expect(bytes).toBeGreaterThan(40 * MIB)
      expect([processes(), orb.runtime.agentAlive(computer), await locked()]).toEqual([[], false, true])
      expect(orb.runtime.agentMemory(computer)).toBeLessThan(4 * MIB)
      // What comes while it sleeps.
      tell(image)
      await orb.runtime.checkpoints.restore(computer, image, false, allHeld)
      const same = { told: image, piped: image, memory: true, deleted: 'still readable', pid }
      expect(await answer()).toMatchObject({ ...same, count: 2 * index + 2 })
      await shell(orb.runtime, computer, `touch /agent/data/new-${image}`)
      tell('watched?')
      const { watched, count } = await answer()
      expect(watched).toContain(`new-${image}`)
      expect(count).toBe(2 * index + 3)
      expect(await orb.runtime.checkpoints.drained(computer)).toBe(true)
      await orb.runtime.checkpoints.removeImage(computer, image)
      expect(existsSync(orb.runtime.checkpoints.imageDir(computer, image))).toBe(false)
    }
    expect([peer.closed, await locked()]).toEqual([false, false])
  })

  test('pages of files that it maps and has not changed are not in its image', async () => {
    const source = `
import json, mmap, socket
with open('/tmp/large', 'w+b') as file:
    for index in range(${MAPPED_MIB}): file.write(bytes([index]) * ${MIB})
    file.flush()
    private = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    shared = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
read = lambda: [sum(private[::4096]), sum(shared[::4096])]
before = read()
private[:7] = b'changed'
connection = socket.create_connection(('${orb.runtime.network.gateway}', ${proxy.port}))
connection.sendall(b'"ready"\\n')
while connection.recv(100):
    changed = private[:7].decode()
    private[:7] = bytes(7)
    connection.sendall((json.dumps([read() == before, changed]) + '\\n').encode())
    private[:7] = b'changed'
`
    writeFileSync(join(orb.runtime.paths(computer).rootfs, 'agent/code/agent.py'), source)
    const known = proxy.peers.length
    const argv = ['python3', '-B', 'agent.py']
    await orb.runtime.spawnAgent(computer, { argv, env: { PATH: '/usr/bin:/bin' }, cwd: '/agent/code' })
    await eventually(() => proxy.peers[known]?.received === '"ready"\n', 'the agent’s connection')
    expect(await sleep()).toBeLessThan((MAPPED_MIB / 2) * MIB)
    const peer = proxy.peers[known]
    if (!peer) throw new Error('no connection')
    peer.received = ''
    await orb.runtime.checkpoints.restore(computer, IMAGE, false, allHeld)
    peer.write('read\n')
    await eventually(() => peer.received.endsWith('\n'), 'the agent’s answer')
    expect(JSON.parse(peer.received)).toEqual([true, 'changed'])
  })

  test('what was mounted read-only stays so, above all what it shares with other computers', async () => {
    await startAgent(1)
    const mounts = () => {
      const table = readFileSync(`/proc/${orb.runtime.agentPid(computer)}/mountinfo`, 'utf8')
        .trim()
        .split('\n')
      // The place and the flags, proc_pid_mountinfo(5).
      return table.map((line) => line.split(' ').slice(4, 6).join(' ')).sort()
    }
    const before = mounts()
    await sleep()
    await orb.runtime.checkpoints.restore(computer, IMAGE, false, allHeld)
    expect(mounts()).toEqual(before)
  })

  test('an image that the kernel let go of is in memory again after a read-ahead', async () => {
    await startAgent(1)
    await sleep()
    const dir = orb.runtime.checkpoints.imageDir(computer, IMAGE)
    const pages = readdirSync(dir).filter((name) => name.startsWith('pages-'))
    const inMemory = async () =>
      (
        await Promise.all(
          pages.map((name) => Bun.$`fincore --bytes --noheadings --output RES ${join(dir, name)}`.text()),
        )
      )
        .map(Number)
        .reduce((sum, bytes) => sum + bytes, 0)
    await orb.runtime.checkpoints.syncImage(computer, IMAGE)
    for (const name of pages) await Bun.$`dd if=${join(dir, name)} iflag=nocache count=0 status=none`
    expect(await inMemory()).toBe(0)
    orb.runtime.checkpoints.readAhead(computer, IMAGE)
    await eventually(async () => (await inMemory()) > 4 * MIB, 'the image in memory')
    orb.runtime.checkpoints.readAhead(computer, 'none')
  })

  test('what was written before is stored with the image, and its file system keeps next to nothing in memory', async () => {
    const { tell, answer } = await startAgent(1)
    const write = 'cd /agent/data && seq 3000 | while read n; do echo $n > $n; done && cat $(seq 3000) > /agent/all'
    expect((await shell(orb.runtime, computer, write)).exitCode).toBe(0)
    await sleep()
    await orb.runtime.checkpoints.syncImage(computer, IMAGE)
    expect(pageCache()).toBeLessThan(MIB / 4)
    // As a power cut would leave the disk: without what is still in memory of its file system, or in its journal.
    const stored = await Bun.$`debugfs -R "cat /root/agent/all" ${orb.runtime.paths(computer).disk}`.quiet().text()
    expect(stored.trimEnd().split('\n')).toHaveLength(3000)
    await orb.runtime.checkpoints.restore(computer, IMAGE, false, allHeld)
    tell('awake')
    expect(await answer()).toMatchObject({ told: 'awake', memory: true })
  })

  test('the pages that it touched at a wake are there at once at the next', async () => {
    const { tell, answer } = await startAgent(1)
    const touchedAt = async (image: string): Promise<string[]> => {
      await sleep(image)
      await orb.runtime.checkpoints.restore(computer, image, false, allHeld)
      tell(image)
      expect(await answer()).toMatchObject({ told: image, memory: true })
      expect(await orb.runtime.checkpoints.drained(computer)).toBe(true)
      const log = readFileSync(join(orb.runtime.checkpoints.imageDir(computer, image), 'lazy-pages.log'), 'latin1')
      return [...log.matchAll(/uffd: (\d+)-\d+: #PF at (\S+)/g)].map(([, pid, page]) => `${pid} ${page}`)
    }
    const first = await touchedAt('1')
    expect(first.length).toBeGreaterThan(0)
    const second = await touchedAt('2')
    // Memory that it gave back meanwhile is not in the image.
    expect(first.filter((page) => second.includes(page)).length).toBeLessThan(first.length / 2)
  })

  test('restored twice it is there once', async () => {
    await orb.runtime.spawnAgent(computer, { argv: ['sleep', '1000'], env: { PATH: '/usr/bin' }, cwd: '/' })
    await sleep()
    await orb.runtime.checkpoints.restore(computer, IMAGE, false, allHeld)
    const once = processes()
    await orb.runtime.checkpoints.restore(computer, IMAGE, false, allHeld)
    expect(processes()).toHaveLength(once.length)
    expect(once.filter((pid) => processes().includes(pid))).toEqual([])
  })

  test('its end is known also after it was restored', async () => {
    await startAgent(1)
    await sleep()
    await orb.runtime.checkpoints.restore(computer, IMAGE, false, allHeld)
    const pid = orb.runtime.agentPid(computer)
    process.kill(pid ?? 0, 'SIGTERM')
    await eventually(() => !orb.runtime.agentAlive(computer), 'the end')
    expect(orb.runtime.readExit(computer)?.code).toBe(143)
  })

  test('commands beside it go on while it sleeps, with their network', async () => {
    await startAgent(1)
    const beside = shell(
      orb.runtime,
      computer,
      'until [ -e /tmp/go ]; do sleep 0.02; done; ps axo args | grep -c "[a]gent.js"',
    )
    await sleep()
    const { gateway } = orb.runtime.network
    const call = `exec 3<>/dev/tcp/${gateway}/${proxy.port} && echo connected; touch /tmp/go`
    expect((await shell(orb.runtime, computer, call)).stdout).toBe('connected\n')
    expect((await beside).stdout).toBe('0\n')
    expect(orb.runtime.agentAlive(computer)).toBe(false)
  })

  test('a reset proxy connection is told to the agent at once', async () => {
    await startAgent(1)
    await sleep()
    await orb.runtime.checkpoints.restore(computer, IMAGE, true, noneHeld)
    const log = join(orb.runtime.paths(computer).rootfs, 'var/log/orb/agent.log')
    await eventually(() => readFileSync(log, 'utf8').includes('ECONNABORTED'), 'the reset')
  })

  test('an agent that is not there cannot be checkpointed', async () => {
    expect(await orb.runtime.checkpoints.dump(computer, IMAGE).catch((thrown) => thrown.message)).toBe(
      'the agent has no process',
    )
    expect(existsSync(orb.runtime.checkpoints.imageDir(computer, IMAGE))).toBe(false)
  })
})

describe('what fails', () => {
  test('a dump: the agent is as it was, frozen, its connection open, nothing of the image left', async () => {
    // A Unix socket whose other end is outside of the tree cannot be dumped.
    const rootfs = orb.runtime.paths(computer).rootfs
    writeFileSync(join(rootfs, 'tmp/listen.js'), "require('net').createServer().listen('/tmp/socket')")
    await shell(
      orb.runtime,
      computer,
      'node /tmp/listen.js >/dev/null 2>&1 & until [ -e /tmp/socket ]; do sleep 0.02; done',
    )
    writeFileSync(
      join(rootfs, 'tmp/held.js'),
      "require('net').connect('/tmp/socket', () => console.log('held')); setInterval(() => console.log('alive'), 50)",
    )
    await orb.runtime.spawnAgent(computer, { argv: ['node', '/tmp/held.js'], env: { PATH: '/usr/bin' }, cwd: '/' })
    const log = join(rootfs, 'var/log/orb/agent.log')
    await eventually(() => readFileSync(log, 'utf8').includes('held'), 'the socket')
    const before = processes()
    await orb.runtime.freezeAgent(computer)
    const thrown = await orb.runtime.checkpoints.dump(computer, IMAGE).catch((error) => error)
    expect(thrown).toBeInstanceOf(CriuError)
    expect(thrown.reason).not.toBe('criu gave no reason')
    expect([processes(), Cgroups.detect().isFrozen(objectName(computer.shortId)), await locked()]).toEqual([
      before,
      true,
      false,
    ])
    expect(existsSync(orb.runtime.checkpoints.imageDir(computer, IMAGE))).toBe(false)
    const said = readFileSync(log, 'utf8').length
    orb.runtime.thawAgent(computer)
    await eventually(() => readFileSync(log, 'utf8').length > said, 'that it goes on')
  })

  test.each([
    ['core-1.img', 'cut'],
    ['pages-2.img', 'cut'],
    ['pagemap-2.img', 'flipped'],
    ['pages-2.img', 'flipped'],
    ['orb.json', 'removed'],
    ['mm-1.img', 'removed'],
  ] as const)('an image whose %s is %s: criu is not even asked, the image stays', async (name, damage) => {
    const { tell, answer } = await startAgent(1)
    await sleep()
    await orb.runtime.checkpoints.syncImage(computer, IMAGE)
    const dir = orb.runtime.checkpoints.imageDir(computer, IMAGE)
    const whole = `${dir}.whole`
    cpSync(dir, whole, { recursive: true })
    const file = join(dir, name)
    if (damage === 'cut') truncateSync(file, 20)
    if (damage === 'removed') rmSync(file)
    if (damage === 'flipped') {
      const bytes = readFileSync(file)
      bytes[bytes.length - 9] = (bytes[bytes.length - 9] ?? 0) ^ 1
      writeFileSync(file, bytes)
    }
    const left = readdirSync(dir)
    const thrown = await orb.runtime.checkpoints.restore(computer, IMAGE, true, noneHeld).catch((error) => error)
    expect(thrown).toBeInstanceOf(ImageError)
    expect(thrown.message).toContain(name)
    expect([processes(), orb.runtime.agentAlive(computer), await locked()]).toEqual([[], false, true])
    expect(readdirSync(dir)).toEqual(left)
    // And once the image is whole again, so is the agent.
    cpSync(whole, dir, { recursive: true })
    rmSync(whole, { recursive: true })
    await orb.runtime.checkpoints.restore(computer, IMAGE, false, allHeld)
    tell('again')
    expect(await answer()).toMatchObject({ told: 'again', count: 1, memory: true })
  })

  test('a restore that criu refuses: no process, the image kept, and it may be tried again', async () => {
    const { tell, answer } = await startAgent(1)
    await sleep()
    // Without a manifest nobody looks before criu does.
    const dir = orb.runtime.checkpoints.imageDir(computer, IMAGE)
    rmSync(join(dir, 'manifest.json'))
    const core = readFileSync(join(dir, 'core-1.img'))
    truncateSync(join(dir, 'core-1.img'), 20)
    const thrown = await orb.runtime.checkpoints.restore(computer, IMAGE, false, allHeld).catch((error) => error)
    expect(thrown).toBeInstanceOf(CriuError)
    await eventually(() => runningCriu(orb.dataDir).length === 0, 'the end of criu')
    expect([processes(), orb.runtime.agentAlive(computer), await locked()]).toEqual([[], false, true])
    writeFileSync(join(dir, 'core-1.img'), core)
    await orb.runtime.checkpoints.restore(computer, IMAGE, false, allHeld)
    tell('again')
    expect(await answer()).toMatchObject({ told: 'again', count: 1, memory: true })
  })

  test('a page daemon that dies before all pages are in is noticed', async () => {
    await startAgent(300)
    await sleep()
    await orb.runtime.checkpoints.restore(computer, IMAGE, false, allHeld)
    const drained = orb.runtime.checkpoints.drained(computer)
    const daemons = runningCriu(orb.dataDir)
    expect(new Set(daemons.map(({ operation }) => operation))).toEqual(new Set(['lazy-pages']))
    for (const { pid } of daemons) if (isCriu(pid)) process.kill(pid, 'SIGKILL')
    expect(await drained).toBe(false)
    await eventually(() => runningCriu(orb.dataDir).length === 0, 'the end of criu')
  })

  test('the process that brings word of a dump: it counts all the same', async () => {
    const { peer, tell, answer } = await startAgent()
    const { dumped, messenger, goOn } = await beginDump()
    process.kill(messenger, 'SIGKILL')
    await eventually(() => !existsSync(`/proc/${messenger}`), 'its end')
    goOn()
    expect((await dumped).bytes).toBeGreaterThan(40 * MIB)
    expect([processes(), await locked()]).toEqual([[], true])
    await orb.runtime.checkpoints.restore(computer, IMAGE, false, allHeld)
    tell('again')
    expect(await answer()).toMatchObject({ told: 'again', count: 1, memory: true })
    expect(peer.closed).toBe(false)
  })

  test('an image that is not there', async () => {
    await expect(orb.runtime.checkpoints.restore(computer, 'none', false, allHeld)).rejects.toThrow()
    expect(orb.runtime.agentAlive(computer)).toBe(false)
    await orb.runtime.checkpoints.removeImage(computer, 'none')
  })
})

describe('an orb that is killed in the middle of a dump', () => {
  test('leaves an image that the next one finds whole, with its connection locked', async () => {
    const { peer, tell, answer } = await startAgent(300)
    tell('before')
    await answer()
    const request = JSON.stringify({ options: orb.options, spec: computer, image: IMAGE })
    const script = join(import.meta.dir, '../../test/support/checkpoint-child.ts')
    const child = Bun.spawn([process.execPath, script, request], { stdout: 'pipe', stderr: 'inherit' })
    const dir = orb.runtime.checkpoints.imageDir(computer, IMAGE)
    while (
      child.exitCode === null &&
      !(existsSync(dir) && readdirSync(dir).some((name) => name.startsWith('pages-')))
    ) {
      await Bun.sleep(1)
    }
    child.kill('SIGKILL')
    await child.exited
    expect(await new Response(child.stdout).text()).toBe('')
    const working = new Set(runningCriu(orb.dataDir).map((criu) => `${criu.operation} ${criu.dir}`))
    expect([...working]).toEqual([`dump ${dir}`])
    tell('while nobody is there')

    const next = await Runtime.start(orb.options, [{ spec: computer, image: IMAGE }])
    try {
      expect(await next.checkpoints.settle(computer, IMAGE, false)).toEqual({ imageComplete: true, restored: false })
      expect(next.checkpoints.times(computer, IMAGE)).toEqual({ dumpedAt: expect.any(Number), restoredAt: undefined })
      expect([next.agentAlive(computer), await locked()]).toEqual([false, true])
      await next.checkpoints.restore(computer, IMAGE, false, allHeld)
      expect(await answer()).toMatchObject({ told: 'while nobody is there', count: 2, memory: true })
      expect(await next.checkpoints.settle(computer, IMAGE, false)).toEqual({ imageComplete: true, restored: true })
      const { dumpedAt = 0, restoredAt = 0 } = next.checkpoints.times(computer, IMAGE)
      expect([dumpedAt > 0, restoredAt > dumpedAt, restoredAt <= Date.now()]).toEqual([true, true, true])
      expect(await next.checkpoints.drained(computer)).toBe(true)
      expect(peer.closed).toBe(false)
    } finally {
      next.close()
    }
  })

  test('nothing to settle is nothing', async () => {
    const nothing = { imageComplete: false, restored: false }
    expect(await orb.runtime.checkpoints.settle(computer, null, false)).toEqual(nothing)
    expect(await orb.runtime.checkpoints.settle(computer, 'none', false)).toEqual(nothing)
  })
})
