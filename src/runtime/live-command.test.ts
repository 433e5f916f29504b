import { describe, expect, test } from 'bun:test'
import { LiveCommand, type Output } from './live-command.ts'

const MIB = 1024 * 1024

function start(script: string, options: { stdin?: Uint8Array | 'open'; timeoutMs?: number } = {}) {
  const child = Bun.spawn(['bash', '--norc', '-c', script], {
    stdio: [options.stdin ? 'pipe' : 'ignore', 'pipe', 'pipe'],
    detached: true,
  })
  const kill = () => process.kill(-child.pid, 'SIGKILL')
  const command = new LiveCommand(child, { timeoutMs: 60_000, ...options, kill })
  return { command, child }
}

async function read(output: AsyncIterable<Output>, stream = 'stdout'): Promise<string> {
  const parts: Uint8Array[] = []
  for await (const part of output) if (part.stream === stream) parts.push(part.bytes)
  return Buffer.concat(parts).toString()
}

test('all that a command has written comes, however late it is read', async () => {
  const { command } = start('head -c 60000 /dev/zero | tr "\\0" x; exit 4')
  expect(await command.ended).toMatchObject({ exitCode: 4, timedOut: false })
  expect(await read(command.output())).toBe('x'.repeat(60_000))
})

test('a command that writes more than is read has to wait', async () => {
  const { command, child } = start('yes "$(head -c 4095 /dev/zero | tr "\\0" y)"')
  const written = () =>
    Number(/^wchar: (\d+)$/m.exec(Bun.spawnSync(['cat', `/proc/${child.pid}/io`]).stdout.toString())?.[1])
  const output = command.output()
  await output.next()
  // It stands still once the pipe is full.
  let [before, now] = [-1, written()]
  while (before !== now) {
    await Bun.sleep(300)
    ;[before, now] = [now, written()]
  }
  expect(now).toBeLessThan(4 * MIB)
  let taken = 0
  for (let next = await output.next(); !next.done && taken < 8 * MIB; next = await output.next())
    taken += next.value.bytes.length
  expect(written()).toBeGreaterThan(now)
  command.kill()
  await output.return(undefined)
  expect(await command.ended).toMatchObject({ exitCode: 137 })
})

describe('children that hold the pipes', () => {
  test('do not hold up the end, and are not ended by a full pipe', async () => {
    const { command, child } = start('(sleep 0.3; head -c 300000 /dev/zero; sleep 1000) & echo $!; disown')
    const pid = Number(await read(command.output()))
    expect(await command.ended).toMatchObject({ exitCode: 0 })
    const children = () =>
      Bun.spawnSync(['ps', '--ppid', String(pid), '-p', String(pid), '-o', 'args=']).stdout.toString()
    while (!children().includes('sleep 1000')) await Bun.sleep(20)
    // Who comes too late to end the command does not end what it left.
    command.kill()
    expect(children()).toContain('sleep 1000')
    process.kill(-child.pid, 'SIGKILL')
  })

  test('that write without end do not hold it up either', async () => {
    const { command, child } = start('echo begun; yes & disown; sleep 0.1')
    expect(await read(command.output())).toStartWith('begun\n')
    process.kill(-child.pid, 'SIGKILL')
  })
})

test('a command that runs out of time is ended with its children, and what it said before is told', async () => {
  const { command } = start('echo said; sleep 1000 & sleep 1000', { timeoutMs: 200 })
  expect(await read(command.output())).toBe('said\n')
  expect(await command.ended).toMatchObject({ exitCode: 124, timedOut: true })
})

describe('standard input', () => {
  test('comes whole, and ends', async () => {
    const { command } = start('wc -c', { stdin: new Uint8Array(3 * MIB) })
    expect((await read(command.output())).trim()).toBe(String(3 * MIB))
  })

  test('comes in the order in which it was written, and waits for who reads it', async () => {
    const { command } = start('read -r first; echo "$first"; wc -c', { stdin: 'open' })
    const output = read(command.output())
    const writes = [
      command.write(Buffer.from('one\n'), false),
      command.write(new Uint8Array(MIB), false),
      command.write(Buffer.from('end'), true),
    ]
    expect(await Promise.all(writes)).toEqual([true, true, true])
    expect((await output).split(/\s+/)).toEqual(['one', String(MIB + 3), ''])
    expect(await command.write(Buffer.from('late'), false)).toBe(false)
  })

  test('that nobody reads is given up when the command ends, and does not hold it up', async () => {
    const { command } = start('sleep 0.2', { stdin: 'open' })
    expect(await command.write(new Uint8Array(MIB), true)).toBe(false)
    expect(await command.ended).toMatchObject({ exitCode: 0 })
    const closed = start('exec 0<&-; echo fine', { stdin: new Uint8Array(MIB) })
    expect(await read(closed.command.output())).toBe('fine\n')
    const none = start('cat')
    expect(await none.command.write(Buffer.from('x'), true)).toBe(false)
    expect(await read(none.command.output())).toBe('')
  })
})
