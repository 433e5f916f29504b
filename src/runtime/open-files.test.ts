/* What happens to the files of a sleeping agent. Needs root. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { cpSync, existsSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { z } from 'zod'
import { allHeld, noneHeld, shell, startRuntime, type TestRuntime } from '../../test/support/runtime.ts'
import { until } from '../../test/support/sweep.ts'
import type { ComputerRow } from '../store/types.ts'
import { prepareOpenFiles } from './open-files.ts'

setDefaultTimeout(60_000)

const IMAGE = '1'

/** Says on request what it still has of its files; each look writes a line to the log and reads four bytes on. */
const AGENT = `
const fs = require('node:fs'), http = require('node:http')
fs.mkdirSync('/agent/data/work/deep', { recursive: true })
fs.writeFileSync('/agent/data/read', 'aaaabbbbccccddddeeee')
fs.writeFileSync('/agent/data/work/watched', '')
const log = fs.openSync('/agent/data/log', 'a')
const read = fs.openSync('/agent/data/read', 'r')
const config = fs.openSync('/etc/passwd', 'r+')
const deleted = fs.openSync('/agent/data/deleted', 'w+')
fs.writeSync(deleted, 'gone')
fs.unlinkSync('/agent/data/deleted')
const seen = []
fs.watch('/agent/data/work/watched', () => {})
fs.watch('/agent/data/work/deep', () => {})
fs.watch('/agent/data', (_, name) => seen.push(name))
process.chdir('/agent/data/work/deep')
const take = (fd, length, at) => { const b = Buffer.alloc(length); return b.toString('utf8', 0, fs.readSync(fd, b, 0, length, at)) }
let count = 0
http.createServer((_, answer) => {
  fs.writeSync(log, 'line ' + ++count + '\\n')
  answer.end(JSON.stringify({
    count, read: take(read, 4, null), deleted: take(deleted, 4, 0), config: take(config, 4, 0),
    logBytes: fs.fstatSync(log).size, seen: seen.splice(0),
  }))
}).listen(8000)
`
const Answer = z.object({
  count: z.number(),
  read: z.string(),
  deleted: z.string(),
  config: z.string(),
  logBytes: z.number(),
  seen: z.array(z.string()),
})

let orb: TestRuntime
let computer: ComputerRow

beforeAll(async () => {
  orb = await startRuntime()
})
beforeEach(async () => {
  computer = await orb.computer()
})
afterEach(async () => {
  await orb.runtime.down(computer)
  await orb.runtime.erase(computer)
})
afterAll(() => orb?.[Symbol.asyncDispose]())

const rootfs = () => orb.runtime.paths(computer).rootfs

/** Output of a command beside the agent that must succeed. */
async function sh(command: string): Promise<string> {
  const { exitCode, stdout, stderr } = await shell(orb.runtime, computer, command)
  if (exitCode !== 0) throw new Error(`${command}: ${exitCode} ${stdout}${stderr}`)
  return stdout
}

const look = async () => Answer.parse(JSON.parse(await sh('curl -sS --fail --max-time 10 http://127.0.0.1:8000/')))

async function startAgent(argv = ['node', 'agent.js']): Promise<void> {
  writeFileSync(join(rootfs(), 'agent/code/agent.js'), AGENT)
  const env = { PATH: '/agent/packages/bin:/usr/bin:/bin', UV_USE_IO_URING: '0' }
  await orb.runtime.spawnAgent(computer, { argv, env, cwd: '/agent/code' })
  if (!(await until(() => look().then(Boolean, () => false)))) throw new Error('the agent does not answer')
}

async function sleep(image = IMAGE): Promise<void> {
  await orb.runtime.freezeAgent(computer)
  await orb.runtime.checkpoints.dump(computer, image)
}

async function wake(image = IMAGE): Promise<void> {
  await orb.runtime.checkpoints.restore(computer, image, false, allHeld)
  expect(await orb.runtime.checkpoints.drained(computer)).toBe(true)
  await orb.runtime.checkpoints.removeImage(computer, image)
}

/** Nothing of what a restore needed is left. */
const leftovers = () => [
  ...readdirSync(rootfs()).filter((name) => name.startsWith('.orb-held')),
  ...readdirSync(join(orb.runtime.paths(computer).mount, 'held')),
]

const refusal = (): Promise<string> =>
  orb.runtime.checkpoints.restore(computer, IMAGE, false, allHeld).then(
    () => 'it was restored',
    (thrown) => String(thrown.message),
  )

describe('while an agent sleeps', () => {
  test('what a command puts into the place of a lent file neither stops the wake nor the next start', async () => {
    await startAgent()
    await sleep()
    await sh('cp read other && mv other read')
    const layers = { paths: orb.runtime.paths(computer), base: orb.runtime.base }
    const tidyUp = await prepareOpenFiles(layers, orb.runtime.checkpoints.imageDir(computer, IMAGE), IMAGE)
    const [lent] = readdirSync(rootfs()).filter((name) => name.startsWith('.orb-held'))
    await sh(`rm /${lent} && mkdir -p /${lent}/mine`)
    tidyUp()
    await orb.runtime.checkpoints.removeOtherImages(computer, IMAGE)
    expect(await sh(`ls /${lent} && rm -r /${lent}`)).toBe('mine\n')
    await wake()
    expect(await look()).toMatchObject({ count: 2, read: 'bbbb' })
  })

  test('a large file of the base that is gone is lent from there, and orb does other things meanwhile', async () => {
    const argv = ['bash', '-c', 'exec 5</usr/bin/node; touch /agent/data/open; sleep 1000']
    await orb.runtime.spawnAgent(computer, { argv, env: { PATH: '/usr/bin' }, cwd: '/' })
    await sh('until [ -e /agent/data/open ]; do sleep 0.02; done')
    await sleep()
    await sh('rm /usr/bin/node')
    const layers = { paths: orb.runtime.paths(computer), base: orb.runtime.base }
    let others = 0
    const other = setInterval(() => others++)
    const tidyUp = await prepareOpenFiles(layers, orb.runtime.checkpoints.imageDir(computer, IMAGE), IMAGE)
    clearInterval(other)
    expect(others).toBeGreaterThan(0)
    const [lent] = readdirSync(rootfs()).filter((name) => name.startsWith('.orb-held'))
    expect(readFileSync(join(rootfs(), lent ?? '')).equals(readFileSync('/usr/bin/node'))).toBe(true)
    tidyUp()
    expect(readdirSync(rootfs()).filter((name) => name.startsWith('.orb-held'))).toEqual([])
    await wake()
  })

  test('a file that is left alone is the one that it had', async () => {
    await startAgent()
    await sleep()
    await wake()
    expect(await look()).toMatchObject({ count: 2, read: 'bbbb', deleted: 'gone', config: 'root', logBytes: 14 })
    expect(leftovers()).toEqual([])
  })

  test('files that grow, shrink and change their mode are the same files afterwards', async () => {
    await startAgent()
    await sleep()
    await sh('echo from beside >> log; printf ffff >> read; chmod 600 read; printf x >> /etc/passwd')
    await wake()
    expect(await look()).toMatchObject({ count: 2, read: 'bbbb', logBytes: 26 })
    expect(await sh('cat log')).toBe('line 1\nfrom beside\nline 2\n')
    await sleep('2')
    await sh('truncate -s 2 read')
    await wake('2')
    expect(await look()).toMatchObject({ count: 3, read: '' })
    expect(leftovers()).toEqual([])
  })

  test('files that are replaced or deleted are to the agent the ones that it had, sleep after sleep', async () => {
    await startAgent()
    for (const image of ['1', '2', '3']) {
      await sleep(image)
      await sh('rm -f log; echo new > read.new; mv read.new read; printf fake > passwd; mv passwd /etc/passwd')
      await sh('echo somebody elses > deleted')
      await wake(image)
    }
    expect(await look()).toMatchObject({ count: 2, read: 'bbbb', deleted: 'gone', config: 'root', logBytes: 14 })
    expect(await sh('cat read deleted /etc/passwd; ls log || true')).toBe('new\nsomebody elses\nfake')
    expect(leftovers()).toEqual([])
  })

  test('its working directory and what it watches may go, and it goes on', async () => {
    await startAgent()
    await sleep()
    await sh('rm -rf work')
    await wake()
    await sh('touch appeared')
    expect((await look()).seen).toContain('appeared')
    expect(await sh('ls')).toBe('appeared\nlog\nread\n')
    await sleep('2')
    await wake('2')
    expect(await look()).toMatchObject({ count: 3, read: 'cccc' })
  })

  test('a program of its own that is replaced goes on as it was', async () => {
    await sh('mkdir -p /agent/packages/bin && cp /usr/bin/node /agent/packages/bin/node')
    await startAgent(['/agent/packages/bin/node', 'agent.js'])
    await sleep()
    await sh('cp /usr/bin/env /agent/packages/bin/new && mv /agent/packages/bin/new /agent/packages/bin/node')
    await wake()
    expect(await look()).toMatchObject({ count: 2, read: 'bbbb' })
  })

  test('a program of the base that a command in the computer replaces goes on as it was', async () => {
    await startAgent()
    await sleep()
    await sh('cp /usr/bin/env /usr/bin/new && mv /usr/bin/new /usr/bin/node')
    await wake()
    expect(await look()).toMatchObject({ count: 2, read: 'bbbb' })
    expect(leftovers()).toEqual([])
  })

  test('a directory in the place of its file does not matter, a file in the place of its directory is said', async () => {
    await startAgent()
    await sleep()
    await sh('rm read && mkdir read')
    await sh('mv work away && touch work')
    expect(await refusal()).toContain('/agent/data/work/deep, a directory that the agent is in, is gone')
    expect(orb.runtime.agentAlive(computer)).toBe(false)
    await sh('rm work && mv away work')
    await wake()
    expect(await look()).toMatchObject({ count: 2, read: 'bbbb' })
    expect(leftovers()).toEqual([])
  })
})

describe('the ports of a sleeping agent', () => {
  const inNetns = (command: string) => {
    const netns = orb.runtime.network.netnsFile(computer.shortId)
    const { exitCode, stdout, stderr } = Bun.spawnSync(['nsenter', `--net=${netns}`, 'sh', '-ec', command])
    if (exitCode !== 0) throw new Error(stderr.toString())
    return stdout.toString().trim()
  }
  const RESERVED = 'cat /proc/sys/net/ipv4/ip_local_reserved_ports'

  test('are given to nobody by chance, and free again afterwards', async () => {
    // All that there is to give, the agent's among them.
    inNetns('echo 7999 8003 > /proc/sys/net/ipv4/ip_local_port_range')
    await startAgent()
    await sleep()
    expect(inNetns(RESERVED)).toBe('8000')
    const takeAll = `
import socket, time
taken = []
for _ in range(10):
    one = socket.socket()
    try: one.bind(('', 0))
    except OSError: break
    taken.append(one.getsockname()[1])
    globals()['keep%d' % _] = one
print(*sorted(taken), flush=True)
open('/tmp/taken', 'w').close()
time.sleep(30)
`
    writeFileSync(join(rootfs(), 'tmp/take.py'), takeAll)
    await sh('python3 /tmp/take.py > /tmp/out & until [ -e /tmp/taken ]; do sleep 0.02; done')
    // Others may wait for the last of curl's connections.
    const taken = (await sh('cat /tmp/out')).trim().split(' ')
    expect(taken.length).toBeGreaterThan(1)
    expect(taken).not.toContain('8000')
    // As with a reboot.
    await orb.runtime.down(computer)
    await orb.runtime.up(computer)
    expect(inNetns(RESERVED)).toBe('8000')
    await wake()
    expect(inNetns(RESERVED)).toBe('')
    expect(await look()).toMatchObject({ count: 2 })
  })

  test('one that a command takes on purpose is named; once it is given back the agent wakes', async () => {
    await startAgent()
    await sleep()
    await sh(
      'python3 -m http.server 8000 >/dev/null 2>&1 & until curl -s 127.0.0.1:8000 >/dev/null; do sleep 0.05; done',
    )
    expect(await refusal()).toContain('port 8000 of the agent is in use by another program in its computer')
    expect(orb.runtime.agentAlive(computer)).toBe(false)
    await sh('pkill -f [h]ttp.server; while curl -s 127.0.0.1:8000 >/dev/null; do sleep 0.05; done')
    await wake()
    expect(await look()).toMatchObject({ count: 2, read: 'bbbb' })
  })
})

describe('a base directory that changes under a sleeping agent', () => {
  const COUNTER = ['bash', '-c', 'for ((n = 1; ; n++)); do echo $n; sleep 0.05; done']
  let base: string
  let own: TestRuntime
  let counter: ComputerRow

  /** What a shell needs of the server, with times of its own. */
  beforeAll(async () => {
    base = join(orb.dataDir, 'base')
    const script = `
      cp -a "$1" "$2"
      for program in /usr/bin/bash /usr/bin/sleep; do echo $program; ldd $program | grep -o '/[^ ]*'; done | sort -u |
        while read -r file; do
          target=$2/usr/\${file#/usr/}; mkdir -p "\${target%/*}"; cp -L --preserve=mode $file "$target" || exit 1
        done`
    const made = Bun.spawnSync(['bash', '-ec', script, 'bash', orb.runtime.base.dir, base])
    if (made.exitCode !== 0) throw new Error(made.stderr.toString())
    own = await startRuntime(undefined, base)
  })
  beforeEach(async () => {
    counter = await own.computer()
    await own.runtime.spawnAgent(counter, { argv: COUNTER, env: { PATH: '/usr/bin' }, cwd: '/' })
    if (!(await until(() => counted() > 1))) throw new Error('the counter does not count')
    await own.runtime.freezeAgent(counter)
    await own.runtime.checkpoints.dump(counter, IMAGE)
    // As with a reboot: what the kernel still has of the old files is gone.
    await own.runtime.down(counter)
  })
  afterEach(async () => {
    await own.runtime.down(counter)
    await own.runtime.erase(counter)
  })
  afterAll(() => own?.[Symbol.asyncDispose]())

  const counted = (): number => {
    const log = join(own.runtime.paths(counter).rootfs, 'var/log/orb/agent.log')
    return existsSync(log) ? Number(readFileSync(log, 'utf8').trimEnd().split(' ').at(-1)) : 0
  }
  const goesOn = async () => {
    const before = counted()
    return (await until(() => counted() > before)) && before > 0
  }

  test('in a file that it does not use: it wakes', async () => {
    writeFileSync(join(base, 'usr/bin/sleep.new'), 'another program')
    writeFileSync(join(base, 'etc/motd'), 'changed')
    await own.runtime.checkpoints.restore(counter, IMAGE, true, noneHeld)
    expect(await goesOn()).toBe(true)
  })

  test('in a program that it runs: that is said, and it wakes once the program is back', async () => {
    const program = join(base, 'usr/bin/bash')
    renameSync(program, `${program}.old`)
    // The same size: criu alone would not see it.
    cpSync(`${program}.old`, program)
    const restored = () => own.runtime.checkpoints.restore(counter, IMAGE, true, noneHeld)
    expect(await restored().catch((thrown) => thrown.message)).toMatch(
      /^\/usr\/bin\/bash, which the agent uses, has changed on the server/,
    )
    expect(own.runtime.agentAlive(counter)).toBe(false)
    await own.runtime.down(counter)
    renameSync(`${program}.old`, program)
    await restored()
    expect(await goesOn()).toBe(true)
  })
})
