/* Real terminals in real computers. Needs root. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { readFileSync } from 'node:fs'
import { shell, startRuntime, type TestRuntime } from '../../test/support/runtime.ts'
import { processesIn, until } from '../../test/support/sweep.ts'
import type { ComputerRow } from '../store/types.ts'
import type { Terminal } from './terminal.ts'

setDefaultTimeout(60_000)

const ENV = { PATH: '/usr/bin:/bin', HOME: '/root', LC_ALL: 'C.UTF-8', TERM: 'xterm', PS1: '> ' }

let orb: TestRuntime
let computer: ComputerRow
beforeAll(async () => {
  orb = await startRuntime()
  computer = await orb.computer()
})
afterAll(async () => {
  await orb?.[Symbol.asyncDispose]()
})

interface Screen {
  terminal: Terminal
  bytes(): Buffer
  text(): string
  /** Waits for it on the screen. */
  shows(what: string | RegExp): Promise<void>
  type(text: string): void
}

async function open(argv = ['bash', '--norc'], size = { columns: 80, rows: 24 }, spec = computer): Promise<Screen> {
  const pieces: Uint8Array[] = []
  const onOutput = (bytes: Uint8Array) => void pieces.push(Buffer.from(bytes))
  const terminal = await orb.runtime.openTerminal(spec, { argv, env: ENV, cwd: '/root', size, onOutput })
  const bytes = () => Buffer.concat(pieces)
  const text = () => bytes().toString()
  return {
    terminal,
    bytes,
    text,
    async shows(what) {
      const there = () => (typeof what === 'string' ? text().includes(what) : what.test(text()))
      if (!(await until(there, 20_000)))
        throw new Error(`${what} does not come: ${JSON.stringify(text().slice(-2_000))}`)
    },
    type: (typed) => terminal.write(Buffer.from(typed)),
  }
}

const commands = (spec = computer) =>
  processesIn(`orb-${spec.shortId}`).filter((pid) => /terminal-/.test(readFileSync(`/proc/${pid}/cgroup`, 'utf8')))

describe('a terminal', () => {
  test('is a real one of the computer, with the size that was asked for, and no tty of the server', async () => {
    const screen = await open([
      'bash',
      '-c',
      'tty; stty size; test -t 2 && test -O /dev/tty && echo all; ps -o tty= $$',
    ])
    expect(await screen.terminal.ended).toBe(0)
    expect(screen.text()).toMatch(/^\/dev\/pts\/\d+\r\n24 80\r\nall\r\npts\/\d+ *\r\n$/)
    expect(await screen.terminal.problem).toBe('')
  })

  test('runs a shell with job control, passes on what is typed, and ends with its exit code', async () => {
    const screen = await open()
    screen.type('echo $((6 * 7)); sleep 1000\r')
    await screen.shows('42\r\n')
    screen.type('\x1a')
    await screen.shows(/Stopped.*sleep 1000/)
    screen.type('fg\r')
    await screen.shows(/fg\r\n.*\rsleep 1000\r\n$/)
    screen.type('\x03exit 7\r')
    expect(await screen.terminal.ended).toBe(7)
    expect(await until(() => commands().length === 0)).toBe(true)
  })

  test('tells its programs of a new size', async () => {
    const screen = await open()
    screen.type(`trap 'echo now $(stty size)' WINCH; echo set\r`)
    await screen.shows('\rset\r\n')
    screen.terminal.resize({ columns: 132, rows: 50 })
    screen.type('\r')
    await screen.shows('now 50 132')
    screen.terminal.hangUp()
    await screen.terminal.ended
  })

  test('keeps every byte, the last ones of a program that ends at once too', async () => {
    const screen = await open(['bash', '-c', 'stty -opost; seq 200000'])
    expect(await screen.terminal.ended).toBe(0)
    const wanted = Array.from({ length: 200_000 }, (_, index) => `${index + 1}\n`).join('')
    expect(Bun.hash(screen.bytes())).toBe(Bun.hash(wanted))
  })

  test('that nobody reads makes its program wait', async () => {
    const source = 'i=0; while :; do echo line $((++i)); printf . >>/root/written; done'
    const screen = await open(['bash', '-c', source])
    await screen.shows('line 100')
    screen.terminal.pause()
    const written = async () => Number((await shell(orb.runtime, computer, 'stat -c %s /root/written')).stdout)
    let last = 0
    let unchanged = 0
    const stands = async () => {
      const now = await written()
      unchanged = now === last ? unchanged + 1 : 0
      last = now
      return unchanged === 20
    }
    expect(await until(stands, 30_000)).toBe(true)
    screen.terminal.resume()
    expect(await until(async () => (await written()) > last + 1000, 30_000)).toBe(true)
    screen.terminal.hangUp()
    await screen.terminal.ended
    const numbers = [...screen.text().matchAll(/line (\d+)\r\n/g)].map(([, number]) => Number(number))
    expect(numbers.every((number, index) => number === index + 1)).toBe(true)
  })

  test('keeps what is typed for a program that does not read', async () => {
    const bytes = 3_000_000
    const screen = await open([
      'bash',
      '-c',
      `stty raw -echo; echo ready; until [ -e /root/go ]; do sleep 0.05; done
      head -c ${bytes} | sha256sum`,
    ])
    await screen.shows('ready')
    const input = Buffer.alloc(bytes, 'all that is typed comes through. ')
    screen.terminal.write(input)
    expect(screen.terminal.waiting).toBeGreaterThan(1_000_000)
    await shell(orb.runtime, computer, 'touch /root/go')
    await screen.shows(new Bun.CryptoHasher('sha256').update(input).digest('hex'))
    expect(screen.terminal.waiting).toBe(0)
    await screen.terminal.ended
  })

  test('that is hung up ends its shell and what runs in front, not what is to live on', async () => {
    const screen = await open()
    screen.type('(trap "" HUP; exec nohup sleep 4321) >/dev/null 2>&1 &\r')
    screen.type('sleep 1234\r')
    const running = async () => (await shell(orb.runtime, computer, 'ps axo args')).stdout
    expect(await until(async () => /sleep 1234/.test(await running()), 20_000)).toBe(true)
    screen.terminal.hangUp()
    expect(await screen.terminal.ended).toBeGreaterThan(0)
    expect(await until(async () => !(await running()).includes('sleep 1234'))).toBe(true)
    expect(await running()).toContain('sleep 4321')
    expect(await running()).not.toContain('bash --norc')
    await orb.runtime.killCommands(computer, ['terminal'])
    expect(commands()).toEqual([])
  })

  test('that is hung up ends a shell that does not want to', async () => {
    const screen = await open(['bash', '-c', 'trap "" HUP TERM; echo set; while :; do sleep 0.1; done'])
    await screen.shows('set')
    screen.terminal.hangUp()
    expect(await screen.terminal.ended).toBe(128 + 9)
  })

  test('goes with everything in the computer', async () => {
    const screen = await open()
    screen.type('echo here\r')
    await screen.shows('\rhere\r\n')
    await orb.runtime.killAll(computer)
    expect(await screen.terminal.ended).toBe(128 + 9)
    expect(commands()).toEqual([])
  })

  test('in a computer without the program says so', async () => {
    const screen = await open(['/no/such/shell'])
    expect(await screen.terminal.ended).toBe(125)
    expect(screen.text()).toContain('/no/such/shell: No such file or directory')
  })

  test('can be the first thing that a computer is asked for, many times at once', async () => {
    const fresh = await orb.computer()
    const screens = await Promise.all(Array.from({ length: 8 }, () => open(['bash', '-c', 'tty'], undefined, fresh)))
    const codes = await Promise.all(screens.map(({ terminal }) => terminal.ended))
    expect(codes).toEqual(codes.map(() => 0))
    for (const screen of screens) expect(screen.text()).toMatch(/^\/dev\/pts\/\d+\r\n$/)
    expect(await until(() => commands(fresh).length === 0)).toBe(true)
  })
})
