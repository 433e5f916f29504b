/* An agent below its own pid 1: its log, its end, its signals. Needs root. */
import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, readFileSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { shell, startRuntime, type TestRuntime } from '../../test/support/runtime.ts'
import { processesIn, until } from '../../test/support/sweep.ts'
import type { ComputerRow } from '../store/types.ts'
import { namespacePids } from './launcher.ts'

setDefaultTimeout(60_000)

const MIB = 1024 * 1024
const WAIT_MS = 10_000

let orb: TestRuntime
let computer: ComputerRow
beforeAll(async () => {
  orb = await startRuntime()
  computer = await orb.computer()
})
afterEach(async () => {
  await orb.runtime.killAll(computer)
  for (const name of ['', '.1', '.2']) rmSync(logFile(name), { force: true })
})
afterAll(async () => {
  await orb?.[Symbol.asyncDispose]()
})

const logFile = (suffix = '') => join(orb.runtime.paths(computer).rootfs, 'var/log/orb', `agent.log${suffix}`)

async function spawn(script: string): Promise<void> {
  const argv = ['bash', '--norc', '-c', script]
  await orb.runtime.spawnAgent(computer, { argv, env: { PATH: '/usr/bin:/bin', TOKEN: 't' }, cwd: '/agent/code' })
}

/** What the log holds by stream, `1` or `2`, without the times. */
const lines = (digit: '1' | '2', suffix = ''): string[] =>
  existsSync(logFile(suffix))
    ? [...readFileSync(logFile(suffix), 'latin1').matchAll(/^\d{13} ([12]) (.*)$/gm)]
        .filter(([, stream]) => stream === digit)
        .map(([, , text = '']) => text)
    : []

async function eventually(done: () => boolean, what: string): Promise<void> {
  if (!(await until(done, WAIT_MS))) throw new Error(`did not come in time: ${what}`)
}

const ended = () => eventually(() => !orb.runtime.agentAlive(computer), 'the end of the agent')

/** Host pid of the agent's pid 1. */
function pid1(): number {
  const pid = processesIn(`orb-${computer.shortId}/agent`).find((one) => namespacePids(one).at(-1) === 1)
  if (pid === undefined) throw new Error('the agent has no pid 1')
  return pid
}

describe('the log', () => {
  test('has both streams, line by line, in the order of each', async () => {
    await spawn('echo a; echo e >&2; echo b; echo; printf "no newline"')
    await ended()
    expect(lines('1')).toEqual(['a', 'b', '', 'no newline'])
    expect(lines('2')).toEqual(['e'])
  })

  test('has the time of each line', async () => {
    const from = Date.now()
    await spawn('echo a')
    await ended()
    const stamp = Number(readFileSync(logFile(), 'utf8').split(' ')[0])
    expect(stamp).toBeGreaterThanOrEqual(from)
    expect(stamp).toBeLessThanOrEqual(Date.now())
  })

  test('splits a line at 16 KiB, and loses nothing of it', async () => {
    await spawn("printf short; head -c 40000 /dev/zero | tr '\\0' x; echo; head -c 16384 /dev/zero | tr '\\0' y; echo")
    await ended()
    const all = lines('1')
    expect(all.map((line) => line.length)).toEqual([16_384, 16_384, 40_005 - 2 * 16_384, 16_384])
    expect(all.slice(0, 3).join('')).toBe(`short${'x'.repeat(40_000)}`)
  })

  test('shows an unfinished line soon, and its rest as a line of its own', async () => {
    await spawn('printf "name? "; until [ -e /tmp/answer ]; do sleep 0.02; done; echo done; sleep 60')
    await eventually(() => lines('1').length === 1, 'the unfinished line')
    await shell(orb.runtime, computer, 'touch /tmp/answer')
    await eventually(() => lines('1').length === 2, 'the rest')
    expect(lines('1')).toEqual(['name? ', 'done'])
  })

  test('is three files of 10 MiB at most, the newest lines kept', async () => {
    await spawn(`yes "$(head -c 1000 /dev/zero | tr '\\0' z)" | head -n 45000; echo last`)
    await ended()
    for (const suffix of ['', '.1', '.2']) expect(statSync(logFile(suffix)).size).toBeLessThanOrEqual(10 * MIB)
    for (const suffix of ['.1', '.2']) expect(statSync(logFile(suffix)).size).toBeGreaterThan(10 * MIB - 2000)
    expect(existsSync(logFile('.3'))).toBe(false)
    expect(lines('1').at(-1)).toBe('last')
  })

  test('is whole when a program writes much and ends', async () => {
    await spawn('seq 1 20000; seq 1 20000 >&2')
    await ended()
    expect([lines('1').length, lines('2').length]).toEqual([20_000, 20_000])
    expect([lines('1').at(-1), lines('2').at(-1)]).toEqual(['20000', '20000'])
  })

  test('that cannot be written does not stop the agent', async () => {
    await shell(orb.runtime, computer, 'rm -rf /var/log/orb; ln -s /nowhere /var/log/orb')
    try {
      await spawn('seq 1 100000; exit 4')
      await ended()
      expect(orb.runtime.readExit(computer)?.code).toBe(4)
    } finally {
      await shell(orb.runtime, computer, 'rm /var/log/orb; mkdir /var/log/orb')
    }
  })
})

describe('the end', () => {
  test.each([
    ['an exit code', 'exit 7', 7],
    ['success', 'true', 0],
    ['a signal', 'kill -9 $$', 137],
    ['a crash', 'kill -SEGV $$', 139],
  ])('by %s is written down', async (_, script, code) => {
    const from = Date.now()
    await spawn(script)
    await ended()
    const exit = orb.runtime.readExit(computer)
    expect(exit?.code).toBe(code)
    expect(exit?.at).toBeGreaterThanOrEqual(from)
    expect(orb.runtime.agentPid(computer)).toBeNull()
  })

  test('of a former agent is not that of the next one', async () => {
    await spawn('exit 7')
    await ended()
    await spawn('sleep 60')
    expect(orb.runtime.readExit(computer)).toBeNull()
    await orb.runtime.killAgent(computer)
    expect(orb.runtime.readExit(computer)).toBeNull()
  })

  test('takes everything that the agent started with it', async () => {
    await spawn('setsid sleep 3456 & sleep 3456 & exit 1')
    await ended()
    expect((await shell(orb.runtime, computer, 'ps axo args')).stdout).not.toContain('sleep 3456')
  })

  test('is heard of by who watches', async () => {
    await spawn('until [ -e /tmp/end ]; do sleep 0.02; done')
    let heard = false
    const watcher = orb.runtime.watchAgent(computer, () => {
      heard ||= !orb.runtime.agentAlive(computer)
    })
    try {
      await shell(orb.runtime, computer, 'touch /tmp/end')
      await eventually(() => heard, 'word of the end')
    } finally {
      watcher.close()
    }
  })

  test.each([
    ['that does not exist', ['no-such-program'], 'no-such-program: no such file or directory'],
    ['that is a directory', ['/tmp'], '/tmp: permission denied'],
    ['that is no program', ['/agent/code/text'], '/agent/code/text: permission denied'],
  ])('a program %s is refused with the reason', async (_, argv, message) => {
    await shell(orb.runtime, computer, 'echo text > /agent/code/text')
    const starting = orb.runtime.spawnAgent(computer, { argv, env: { PATH: '/usr/bin' }, cwd: '/agent/code' })
    expect(await starting.catch((thrown) => thrown.message)).toBe(message)
    await ended()
  })
})

describe('the agent', () => {
  test('has its environment and directory, and sees its own processes and no other', async () => {
    await spawn('pwd; echo $TOKEN $$; ls /proc | grep -c "^[0-9]"; sleep 60')
    await eventually(() => lines('1').length === 3, 'what it says')
    const [cwd, token, count] = lines('1')
    expect([cwd, token]).toEqual(['/agent/code', 't 2'])
    // Its pid 1, itself, ls and grep.
    expect(Number(count)).toBeLessThanOrEqual(4)
  })

  test('is seen and can be signalled by commands beside it', async () => {
    await spawn('exec sleep 5678')
    const kill = 'until pkill -TERM -f "^sleep 5678"; do sleep 0.02; done; echo found'
    expect((await shell(orb.runtime, computer, kill)).stdout).toBe('found\n')
    await ended()
    expect(orb.runtime.readExit(computer)?.code).toBe(143)
  })

  test.each(['TERM', 'INT', 'HUP', 'USR1', 'USR2'] as const)('gets SIG%s that its pid 1 gets', async (name) => {
    await spawn(`trap 'echo got; exit 9' ${name}; echo ready; while :; do sleep 0.02; done`)
    await eventually(() => lines('1').includes('ready'), 'the trap')
    process.kill(pid1(), `SIG${name}`)
    await ended()
    expect(lines('1')).toEqual(['ready', 'got'])
    expect(orb.runtime.readExit(computer)?.code).toBe(9)
  })

  test('gets every one of several signals at once', async () => {
    await spawn(`for s in HUP USR1 USR2; do trap "echo $s" $s; done; echo ready; while :; do sleep 0.02; done`)
    await eventually(() => lines('1').includes('ready'), 'the traps')
    const pid = pid1()
    process.kill(pid, 'SIGSTOP')
    for (const signal of ['SIGHUP', 'SIGUSR1', 'SIGUSR2'] as const) process.kill(pid, signal)
    process.kill(pid, 'SIGCONT')
    await eventually(() => lines('1').length === 4, `all three, not ${lines('1')}`)
    expect(lines('1').toSorted()).toEqual(['HUP', 'USR1', 'USR2', 'ready'])
  })

  test('leaves no zombies', async () => {
    await spawn('for i in $(seq 50); do (sleep 0.01 &) ; done; echo made; exec sleep 60')
    await eventually(() => lines('1').includes('made'), 'the orphans')
    const list = async () => (await shell(orb.runtime, computer, 'ps axo stat,args')).stdout
    await eventually(() => processesIn(`orb-${computer.shortId}/agent`).length === 2, 'the end of the orphans')
    expect(await list()).not.toMatch(/^Z/m)
  })

  test('is charged for its memory, and gives it back when it is killed', async () => {
    await spawn("x=$(head -c 40000000 /dev/zero | tr '\\0' x); echo full; sleep 60; :")
    await eventually(() => lines('1').includes('full'), 'its memory')
    expect(orb.runtime.agentMemory(computer)).toBeGreaterThan(40_000_000)
    expect(orb.runtime.agentCpuUs(computer)).toBeGreaterThan(0)
    await orb.runtime.killAgent(computer)
    expect(orb.runtime.agentAlive(computer)).toBe(false)
  })
})
