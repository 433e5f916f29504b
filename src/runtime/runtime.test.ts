/* Real computers: disks, namespaces, commands in them. Needs root. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, statSync } from 'node:fs'
import { shell, startRuntime, type TestRuntime } from '../../test/support/runtime.ts'
import { processesIn, remains, until } from '../../test/support/sweep.ts'
import type { ComputerRow } from '../store/types.ts'
import type { ExecRequest } from './commands.ts'
import { mountPoints } from './disk.ts'

setDefaultTimeout(60_000)

const MB = 1024 * 1024

let orb: TestRuntime
let computer: ComputerRow
beforeAll(async () => {
  orb = await startRuntime()
  computer = await orb.computer()
})
afterAll(async () => {
  await orb?.[Symbol.asyncDispose]()
})

const sh = (command: string, over: Partial<ExecRequest> = {}) => shell(orb.runtime, computer, command, over)
const objectName = (spec: ComputerRow) => `orb-${spec.shortId}`
const initOf = (spec: ComputerRow) => processesIn(`${objectName(spec)}/init`)

describe('a computer', () => {
  test('that is up stays as it is, however often it is asked for', async () => {
    const before = [initOf(computer), await mountPoints()]
    await Promise.all([orb.runtime.up(computer), orb.runtime.up(computer), orb.runtime.up(computer)])
    expect([initOf(computer), await mountPoints()]).toEqual(before)
    expect(initOf(computer)).toHaveLength(1)
  })

  test('asked for by several at once is made once', async () => {
    const other = await orb.computer()
    await orb.runtime.down(other)
    await Promise.all([orb.runtime.up(other), orb.runtime.up(other), shell(orb.runtime, other, 'true')])
    expect(initOf(other)).toHaveLength(1)
  })

  test('whose pid 1 was killed comes back with its files', async () => {
    const other = await orb.computer()
    await shell(orb.runtime, other, 'echo kept > /agent/data/f; sleep 1234 &')
    const [init = 0] = initOf(other)
    process.kill(init, 'SIGKILL')
    expect(await until(() => processesIn(objectName(other)).length === 0)).toBe(true)
    expect(orb.runtime.hasVanished(other)).toBe(true)
    const { stdout } = await shell(orb.runtime, other, 'cat /agent/data/f; ps axo args')
    expect(orb.runtime.hasVanished(other)).toBe(false)
    expect(stdout).toStartWith('kept\n')
    expect(stdout).not.toContain('sleep 1234')
    expect(initOf(other)).not.toEqual([init])
  })

  test('that is down leaves nothing but its disk, and comes up again from it', async () => {
    const other = await orb.computer()
    await shell(orb.runtime, other, 'echo kept > /root/f; sleep 1234 &')
    await orb.runtime.down(other)
    expect(remains(orb.runtime.paths(other).dir, [objectName(other)])).toEqual([])
    await orb.runtime.down(other)
    await orb.runtime.up(other)
    expect((await shell(orb.runtime, other, 'cat /root/f')).stdout).toBe('kept\n')
  })

  test('that is erased is gone, and so is what belongs to nobody', async () => {
    const [erased, stray] = [await orb.computer(), await orb.computer()]
    await orb.runtime.down(erased)
    await orb.runtime.erase(erased)
    expect(existsSync(orb.runtime.paths(erased).dir)).toBe(false)
    // As a crash between its two halves leaves it: no row, but a disk that is mounted.
    await orb.runtime.killAll(stray)
    for (const pid of initOf(stray)) process.kill(pid, 'SIGKILL')
    await until(() => initOf(stray).length === 0)
    await orb.runtime.removeStrays(() => new Set([computer.id]))
    expect(remains(orb.runtime.paths(stray).dir, [objectName(stray)])).toEqual([])
    expect(existsSync(orb.runtime.paths(stray).disk)).toBe(true)
    await orb.runtime.markDeleted(stray)
    // One that never came to have a directory.
    await orb.runtime.markDeleted({ ...stray, id: crypto.randomUUID() })
    await orb.runtime.removeStrays(() => new Set([computer.id]))
    expect(existsSync(orb.runtime.paths(stray).dir)).toBe(false)
    expect(existsSync(orb.runtime.paths(computer).disk)).toBe(true)
  })

  test('writes no more than its disk holds, and goes on', async () => {
    const small = await orb.computer({ diskMb: 64 })
    const run = (command: string) => shell(orb.runtime, small, command)
    const full = await run('head -c 200M /dev/zero > /agent/data/big')
    expect(full.stderr).toContain('No space left on device')
    expect(full.exitCode).not.toBe(0)
    const { blocks } = statSync(orb.runtime.paths(small).disk)
    expect(blocks * 512).toBeLessThanOrEqual(64 * MB)
    expect((await run('rm big && echo again > f && cat f')).stdout).toBe('again\n')
  })

  test('of its own is told from the server: name, processes, files', async () => {
    const { stdout } = await sh('hostname; ps axo comm= | head -1; ls /root /home; cat /proc/1/cmdline | tr -d "\\0"')
    expect(stdout.split('\n').slice(0, 2)).toEqual([objectName(computer), 'orb-computer'])
    expect(stdout).not.toContain(orb.dataDir)
    expect(process.pid.toString()).not.toBe((await sh('echo $$')).stdout.trim())
  })
})

describe('a command', () => {
  test('gives back what it said and how it ended', async () => {
    const result = await sh('echo out; echo err >&2; exit 3')
    expect(result).toMatchObject({ exitCode: 3, stdout: 'out\n', stderr: 'err\n', truncated: false, timedOut: false })
  })

  test.each([
    ['a signal', 'kill -TERM $$', 143],
    ['the absence of its program', 'exec no-such-program', 127],
    ['success', 'true', 0],
  ])('tells of %s', async (_, command, exitCode) => {
    expect((await sh(command)).exitCode).toBe(exitCode)
  })

  test('has the environment and the directory that it was given, and nothing of the server’s', async () => {
    const { stdout } = await sh('pwd; env', { env: { PATH: '/usr/bin:/bin', X: 'a b\nc' }, cwd: '/tmp' })
    const lines = stdout.trim().split('\n')
    expect(lines[0]).toBe('/tmp')
    const given = lines.slice(1).filter((line) => !/^(PWD|SHLVL|_|OLDPWD)=/.test(line))
    expect(given.toSorted()).toEqual(['PATH=/usr/bin:/bin', 'X=a b', 'c'])
  })

  test('runs in / where its directory is gone', async () => {
    expect((await sh('pwd', { cwd: '/no/such/place' })).stdout).toBe('/\n')
  })

  test('that takes too long is killed with all of its children', async () => {
    const result = await sh('echo begun; setsid sleep 4321 & (sleep 4321 &) ; sleep 4321', { timeoutMs: 300 })
    expect(result).toMatchObject({ exitCode: 124, timedOut: true, stdout: 'begun\n' })
    expect(result.durationMs).toBeLessThan(3000)
    expect((await sh('ps axo args')).stdout).not.toContain('sleep 4321')
  })

  test('that leaves a child behind, which holds its output, has ended all the same; the child lives on', async () => {
    const result = await sh('(while :; do echo noise; sleep 0.05; done) & disown; sleep 2345 & echo done')
    expect(result.exitCode).toBe(0)
    expect(result.stdout).toContain('done\n')
    expect(result.durationMs).toBeLessThan(2000)
    expect((await sh('ps axo args')).stdout).toContain('sleep 2345')
    await orb.runtime.killCommands(computer, ['exec'])
    expect((await sh('ps axo args')).stdout).not.toContain('sleep 2345')
  })

  test('keeps the last of what it said', async () => {
    const result = await sh('seq 1 200000; echo last', { maxBytes: 1000 })
    expect(result.stdout).toHaveLength(1000)
    expect(result.stdout).toEndWith('199999\n200000\nlast\n')
    expect([result.truncated, (await sh('head -c 1000 /dev/zero', { maxBytes: 1000 })).truncated]).toEqual([
      true,
      false,
    ])
  })

  test('does not wait for another', async () => {
    const slow = sh('until [ -e /tmp/go ]; do sleep 0.02; done; echo slow')
    expect((await sh('touch /tmp/go; echo quick')).stdout).toBe('quick\n')
    expect((await slow).stdout).toBe('slow\n')
  })

  test('is one of many at once, and all of them run', async () => {
    const results = await Promise.all(Array.from({ length: 12 }, (_, index) => sh(`echo ${index}`)))
    expect(results.map(({ stdout, stderr }) => stdout + stderr)).toEqual(results.map((_, index) => `${index}\n`))
  })

  test('that runs orb’s own program, as `#!/proc/self/exe` does, cannot change its file', async () => {
    const { init } = orb.options.files
    const before = statSync(init)
    const attempt = [
      'exe=/proc/$PPID/exe',
      'exec 9<$exe',
      'chmod 000 $exe; chown 1:1 $exe; : >/proc/self/fd/9',
      'cmp $exe /proc/self/exe',
    ].join('; ')
    const argv = ['/proc/self/exe', 'pid1', 'bash', '--norc', '-c', `{ ${attempt}; } >/tmp/attempt 2>&1`]
    await shell(orb.runtime, computer, '', { argv })
    const after = statSync(init)
    expect([after.mode, after.uid, after.size, after.mtimeMs]).toEqual([
      before.mode,
      before.uid,
      before.size,
      before.mtimeMs,
    ])
    const said = await shell(orb.runtime, computer, 'cat /tmp/attempt')
    // The last line tells that the file was there to be had.
    expect(said.stdout).toMatch(/^(.*Read-only file system\n){3}.* differ: .*\n$/)
  })

  test('shares /dev/shm, terminals and a read-only /proc with the others, from the very first ones on', async () => {
    const fresh = await orb.computer()
    const mounts = 'grep -E " /(proc|dev/pts|dev/shm) " /proc/self/mounts | cut -d " " -f 2,3 | sort; touch /dev/shm/$$'
    const results = await Promise.all(Array.from({ length: 8 }, () => shell(orb.runtime, fresh, mounts)))
    const expected = '/dev/pts devpts\n/dev/shm tmpfs\n/proc proc\n'
    expect(results.map(({ stdout, stderr }) => stdout + stderr)).toEqual(results.map(() => expected))
    const { stdout } = await shell(
      orb.runtime,
      fresh,
      'ls /dev/shm | wc -l; wc -c < /proc/keys; (echo 1 > /proc/sys/kernel/panic) 2>&1 | grep -c Read-only',
    )
    expect(stdout).toBe('8\n0\n1\n')
  })

  test('can take no terminals from other computers: it may have 256', async () => {
    const { stdout } = await sh('n=0; while [ $n -lt 300 ] && exec {fd}<>/dev/ptmx; do n=$((n + 1)); done; echo $n')
    expect(stdout).toBe('256\n')
  })

  test('has next to no rights over the machine', async () => {
    const { stdout } = await sh(
      'mount -t tmpfs x /mnt || echo no mount; unshare -m true || echo no unshare; echo 1 > /proc/sys/kernel/panic || echo no sysctl; mknod /tmp/disk b 7 0 && cat /tmp/disk || echo no device',
    )
    expect(stdout).toBe('no mount\nno unshare\nno sysctl\nno device\n')
  })
})
