/** The commands of the client as a user runs them, against a real `orb serve`. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from 'bun:test'
import { chmod, cp, mkdir, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'
import { until } from '../support/sweep.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

const EXAMPLE = join(import.meta.dir, '../../examples/python-agent')
const MAIN = join(import.meta.dir, '../../src/main.ts')
const COMMAND_TIMEOUT_MS = 60_000
const BINARY_BYTES = 300_000
const POLL_MS = 100

let orb: Orb
let home: string
let work: string

beforeAll(async () => {
  orb = await startOrb()
  home = await mkdtemp(join(tmpdir(), 'orb-test-'))
  work = join(home, 'work')
  await mkdir(work)
})
afterAll(async () => {
  await orb?.stop()
  await rm(home, { recursive: true, force: true })
})

const command = (args: string[]): string[] => {
  const binary = process.env['ORB_TEST_BINARY']
  return [...(binary ? [binary] : [process.execPath, MAIN]), ...args]
}

/** A user's environment: whatever orb itself is started with is none of it. */
const environment = (more: Record<string, string> = {}) => ({
  PATH: process.env['PATH'] ?? '',
  HOME: home,
  TERM: 'xterm',
  ORB_URL: orb.url,
  ...more,
})

async function run(args: string[], options: { env?: Record<string, string>; stdin?: string; cwd?: string } = {}) {
  const child = Bun.spawn(command(args), {
    cwd: options.cwd ?? work,
    env: environment(options.env),
    stdin: new Blob([options.stdin ?? '']),
    stdout: 'pipe',
    stderr: 'pipe',
    timeout: COMMAND_TIMEOUT_MS,
  })
  const [stdout, stderr, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  return { stdout, stderr, code }
}

/** With the key that the orb under test was started with, so that its computers are taken away with it. */
async function ask(...args: string[]) {
  const { stdout, stderr, code } = await run([...args, '--json'], { env: { ORB_API_KEY: orb.key } })
  expect([code, code === 0 ? '' : stderr]).toEqual([0, ''])
  return JSON.parse(stdout)
}

/** A command in a terminal of its own. */
function inTerminal(args: string[]) {
  let text = ''
  const decoder = new TextDecoder()
  const data = (_: unknown, bytes: Uint8Array) => {
    text += decoder.decode(bytes, { stream: true })
  }
  const child = Bun.spawn(command(args), {
    env: environment({ ORB_API_KEY: orb.key }),
    terminal: { cols: 100, rows: 30, data },
  })
  const { terminal } = child
  if (!terminal) throw new Error('there is no terminal')
  return {
    child,
    terminal,
    text: () => text,
    async shows(what: string): Promise<void> {
      if (!(await until(() => text.includes(what), COMMAND_TIMEOUT_MS)))
        throw new Error(`no ${what} in ${JSON.stringify(text)}`)
    },
  }
}

test('login keeps the key of a new account for its user alone, logout forgets it', async () => {
  const email = `${crypto.randomUUID()}@example.com`
  const made = await run(['login', '--email', email])
  expect([made.code, made.stdout]).toEqual([0, expect.stringContaining(email)])
  expect((await stat(join(home, '.orb/credentials'))).mode & 0o777).toBe(0o600)
  expect((await run(['computers'])).stdout).toContain('no computers yet')
  const again = await run(['login', '--email', email])
  expect([again.code, again.stderr]).toEqual([1, expect.stringContaining('orb login --key')])
  expect((await run(['logout'])).code).toBe(0)
  const out = await run(['computers'])
  expect([out.code, out.stderr]).toEqual([1, expect.stringContaining('orb login')])
  const given = await run(['login', '--key', '-'], { stdin: `${orb.key}\n` })
  expect([given.code, (await run(['keys'])).stdout]).toEqual([0, expect.stringContaining(orb.key.slice(0, 12))])
  expect((await run(['login', '--key', `${orb.key}x`])).code).toBe(1)
})

test('an example goes from a folder to a running agent by one command, and again into the same computer', async () => {
  const env = { ANTHROPIC_API_KEY: 'none', ORB_API_KEY: orb.key }
  const folder = join(work, 'counter')
  await cp(EXAMPLE, folder, { recursive: true })
  await writeFile(
    join(folder, 'agent.py'),
    `print("hello from the agent", flush=True)\nimport time\ntime.sleep(3600)\n`,
  )
  await writeFile(join(folder, '.gitignore'), '*.log\n')
  await writeFile(join(folder, 'noise.log'), 'x')
  const missing = await run(['deploy', folder], { env: { ORB_API_KEY: orb.key } })
  expect([missing.code, missing.stderr]).toEqual([1, expect.stringContaining('ANTHROPIC_API_KEY')])
  expect((await ask('computers')).total).toBe(0)

  const first = await run(['deploy', folder, '--json'], { env })
  expect([first.code, first.code === 0 ? '' : first.stderr]).toEqual([0, ''])
  const made = JSON.parse(first.stdout)
  expect(made).toMatchObject({ name: 'counter', created: true, state: 'running' })
  expect(first.stderr).toContain('hello from the agent')
  const listed = await ask('files', 'ls', 'counter', '/agent/code')
  expect(listed.files.map(({ name }: { name: string }) => name)).not.toContain('noise.log')

  // The secret is the computer's by now.
  const second = await run(['deploy', '--json'], { cwd: folder, env: { ORB_API_KEY: orb.key } })
  expect(JSON.parse(second.stdout)).toMatchObject({ computer_id: made.computer_id, created: false, state: 'running' })
  expect((await ask('computers')).total).toBe(1)

  const table = await run(['computers'], { env })
  expect(table.stdout).toMatch(new RegExp(`${made.short_id} +counter +active +running`))
  const log = await run(['logs', 'counter'], { env })
  expect(log.stdout.match(/^hello from the agent$/gm)).toHaveLength(2)
})

test('a build that fails and an agent that ends say why', async () => {
  const folder = join(work, 'broken')
  await mkdir(folder)
  const agent = '[agent]\nname = "broken"\nlang = "python"\nentry = "agent.py"\n'
  await writeFile(
    join(folder, 'orb.toml'),
    `${agent}[build]\nsteps = ["echo fine", "echo no such thing >&2; exit 3"]\n`,
  )
  await writeFile(join(folder, 'agent.py'), 'raise SystemExit("I give up")\n')
  const env = { ORB_API_KEY: orb.key }
  const unbuilt = await run(['deploy', folder], { env })
  expect([unbuilt.code, unbuilt.stderr]).toEqual([
    1,
    expect.stringMatching(/✓ echo fine[\s\S]*no such thing[\s\S]*exit code 3/),
  ])
  const ended = await run(['deploy', folder, '--no-build'], { env })
  expect([ended.code, ended.stderr]).toEqual([1, expect.stringMatching(/I give up[\s\S]*ended with exit code 1/)])
  await writeFile(join(folder, 'orb.toml'), '[agent]\nname = "broken"\nlang = "cobol"\nentry = "x"\n')
  const refused = await run(['deploy', folder], { env })
  expect([refused.code, refused.stderr]).toEqual([1, expect.stringContaining('invalid lang: cobol')])
})

test('exec passes on output, input and the exit code', async () => {
  const { shortId } = await orb.computer({ name: 'exec' })
  const env = { ORB_API_KEY: orb.key }
  const line = await run(['exec', shortId, 'echo out; echo err >&2; exit 7'], { env })
  expect(line).toEqual({ code: 7, stdout: 'out\n', stderr: 'err\n' })
  expect((await run(['exec', 'exec', 'printf', '%s|', 'a b', "it's", '--json'], { env })).stdout).toBe(
    "a b|it's|--json|",
  )
  const input = 'line\n'.repeat(50_000)
  expect(await run(['exec', '-i', 'exec', 'cat'], { env, stdin: input })).toEqual({
    code: 0,
    stdout: input,
    stderr: '',
  })
  expect((await run(['exec', '--timeout', '1', 'exec', 'sleep 60'], { env })).code).toBe(124)
  expect((await run(['exec', 'no-such-computer', 'true'], { env })).code).toBe(255)
  const asJson = await run(['exec', '--json', 'exec', 'exit 4'], { env })
  expect([asJson.code, JSON.parse(asJson.stdout)]).toEqual([4, expect.objectContaining({ exit_code: 4 })])
})

test('a folder that is pushed and pulled is the same', async () => {
  await orb.computer({ name: 'files' })
  const folder = join(work, 'data')
  await mkdir(join(folder, 'below'), { recursive: true })
  const bytes = crypto.getRandomValues(new Uint8Array(65_536))
  const binary = Buffer.concat(Array.from({ length: Math.ceil(BINARY_BYTES / bytes.length) }, () => bytes))
  await writeFile(join(folder, 'below/a b#?%.bin'), binary)
  await writeFile(join(folder, 'run.sh'), '#!/bin/sh\n')
  await chmod(join(folder, 'run.sh'), 0o755)
  await ask('files', 'push', 'files', folder, '/agent/data/in')
  await ask('files', 'pull', 'files', '/agent/data/in', join(work, 'back'))
  expect(Buffer.compare(await readFile(join(work, 'back/below/a b#?%.bin')), binary)).toBe(0)
  expect((await stat(join(work, 'back/run.sh'))).mode & 0o111).toBe(0o111)
  expect((await stat(join(work, 'back/below/a b#?%.bin'))).mode & 0o111).toBe(0)
  const out = await run(['files', 'pull', 'files', 'agent/data/in/run.sh', '-'], { env: { ORB_API_KEY: orb.key } })
  expect(out.stdout).toBe('#!/bin/sh\n')
  await ask('files', 'push', 'files', join(folder, 'run.sh'), '/agent/data')
  expect((await ask('files', 'ls', 'files', '/agent/data')).files).toContainEqual(
    expect.objectContaining({ name: 'run.sh', mode: '0755' }),
  )
})

test('a link that a computer made leads nowhere on this machine', async () => {
  const computer = await orb.computer({ name: 'links' })
  await computer.sh('mkdir -p /agent/data/l && cd /agent/data/l && ln -s /etc/passwd p && ln -s / r && echo f > f')
  const pulled = await ask('files', 'pull', 'links', '/agent/data/l', join(work, 'links'))
  expect(pulled).toMatchObject({ files: 1, skipped: ['p', 'r'] })
})

test('sleep and wake', async () => {
  const computer = await orb.computer({ name: 'sleeper' })
  await computer.deployAgent()
  const { count } = await computer.state()
  await ask('sleep', 'sleeper')
  expect(await ask('computers', 'show', 'sleeper')).toMatchObject({ agents: [{ state: 'checkpointed' }] })
  await ask('wake', 'sleeper')
  expect((await computer.state()).count).toBe(count + 1)
})

test('logs -f shows what comes, and ends with its reader', async () => {
  const computer = await orb.computer({ name: 'talker' })
  await computer.deployScript('python', 'import time\nwhile True:\n  print("tick", flush=True)\n  time.sleep(0.2)\n')
  const child = Bun.spawn(['sh', '-c', '"$@" | head -2', 'sh', ...command(['logs', '-f', '--tail', '0', 'talker'])], {
    env: environment({ ORB_API_KEY: orb.key }),
    stdout: 'pipe',
    timeout: COMMAND_TIMEOUT_MS,
  })
  expect(await new Response(child.stdout).text()).toBe('tick\ntick\n')
  expect(await child.exited).toBe(0)
})

test('ssh is a shell in the own terminal: its size, its exit code, and a way out', async () => {
  await orb.computer({ name: 'shell' })
  const shell = inTerminal(['ssh', 'shell'])
  await shell.shows('#')
  shell.terminal.write('echo size $(stty size)\r')
  await shell.shows('size 30 100')
  shell.terminal.resize(120, 40)
  // The news of it takes its time.
  await until(async () => {
    shell.terminal.write('echo size $(stty size)\r')
    await Bun.sleep(POLL_MS)
    return shell.text().includes('size 40 120')
  })
  await shell.shows('size 40 120')
  shell.terminal.write('exit 9\r')
  expect(await shell.child.exited).toBe(9)

  const other = inTerminal(['ssh', 'shell'])
  await other.shows('#')
  other.terminal.write('\r')
  other.terminal.write('~.')
  await other.shows('left')
  expect(await other.child.exited).toBe(0)

  const refused = inTerminal(['ssh', 'no-such-computer'])
  await refused.shows('no computer no-such-computer')
  expect(await refused.child.exited).toBe(255)
})

test.each(['deleted', 'killed'])('ssh gives the terminal back when it is over: %s', async (how) => {
  await orb.computer({ name: how })
  const shell = inTerminal(['ssh', how])
  const asItWas = shell.terminal.localFlags
  await shell.shows('#')
  expect(shell.terminal.localFlags).not.toBe(asItWas)
  if (how === 'killed') shell.child.kill('SIGTERM')
  else await ask('computers', 'delete', how, '--yes')
  expect(await shell.child.exited).toBe(how === 'killed' ? 143 : 255)
  expect(shell.terminal.localFlags).toBe(asItWas)
  if (how === 'deleted') await shell.shows('the computer was deleted')
})

test('a swarm goes up and down', async () => {
  const folder = join(work, 'workers')
  await mkdir(folder)
  const steps = `["printf 'import time\\ntime.sleep(3600)\\n' > agent.py"]`
  const toml = `[agent]\nname = "w"\nlang = "python"\nentry = "agent.py"\n[build]\nsteps = ${steps}\n[resources]\nruntime = "64MB"\n`
  await writeFile(join(folder, 'orb.toml'), toml)
  const env = { ORB_API_KEY: orb.key }
  const up = await run(['swarm', 'up', folder, '--replicas', '2'], { env })
  expect([up.code, up.stdout]).toEqual([0, expect.stringMatching(/^0 +\w{8} +active[\s\S]*^1 +\w{8} +active/m)])
  expect(await ask('swarm', 'show', 'workers')).toMatchObject({ replicas: 2 })
  expect(await ask('computers', 'show', 'workers-replica-1')).toMatchObject({ runtime_mb: 64 })
  const again = await run(['swarm', 'up', folder, '--replicas', '2'], { env })
  expect([again.code, again.stderr]).toEqual([1, expect.stringContaining('workers')])
  expect(await ask('swarm', 'down', 'workers', '--yes')).toMatchObject({ deleted: 2 })
  expect((await ask('swarm', 'list')).total).toBe(0)
})

test('cron, stats and usage', async () => {
  const computer = await orb.computer({ name: 'clock' })
  const jobs = [{ name: 'count', schedule: '0 0 1 1 *', command: 'echo counted; exit 5' }]
  await computer.put('agent/.orb/cron.json', JSON.stringify({ jobs }))
  const env = { ORB_API_KEY: orb.key }
  expect((await run(['cron', 'list', 'clock'], { env })).stdout).toMatch(/^count +0 0 1 1 \* +yes/m)
  expect(await run(['cron', 'trigger', 'clock', 'count'], { env })).toEqual({
    code: 5,
    stdout: 'counted\n',
    stderr: '',
  })
  expect((await run(['cron', 'runs', 'clock'], { env })).stdout).toMatch(/count +failure +5 /)
  expect(await ask('stats', 'clock', '--window', 'lifetime')).toMatchObject({ computer_id: computer.id, llm_calls: 0 })
  expect(await ask('usage', '--computer', 'clock')).toMatchObject({ computer_id: computer.id, checkpoint_cycles: 0 })
})

test('a name that two computers have is refused with both, and deletes neither', async () => {
  const [one, two] = [await orb.computer({ name: 'twin' }), await orb.computer({ name: 'twin' })]
  const { code, stderr } = await run(['computers', 'delete', 'twin', '--yes'], { env: { ORB_API_KEY: orb.key } })
  expect(code).toBe(1)
  for (const { shortId } of [one, two]) expect(stderr).toContain(shortId)
  const unasked = await run(['computers', 'delete', one.shortId], { env: { ORB_API_KEY: orb.key } })
  expect([unasked.code, unasked.stderr]).toEqual([1, expect.stringContaining('--yes')])
  expect(await ask('computers', 'show', two.shortId)).toMatchObject({ id: two.id })
})

test.each([
  [['deploy', '--nmae', 'x'], '--nmae'],
  [['computers', 'shwo'], 'shwo'],
  [['sleep'], 'COMPUTER is missing'],
  [['logs', 'x', '--tail', 'many'], '--tail'],
])('orb %p is refused with code 2 and one line', async (args, named) => {
  const { code, stderr } = await run(args)
  expect([code, stderr]).toEqual([2, expect.stringContaining(named)])
  expect(stderr.trimEnd().split('\n')).toHaveLength(1)
})
