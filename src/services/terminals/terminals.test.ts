import { afterEach, beforeEach, describe, expect, jest, test } from 'bun:test'
import { OrbError } from '../../errors.ts'
import type { TerminalRequest } from '../../runtime/commands.ts'
import type { ComputerRow } from '../../store/types.ts'
import type { Principal, TerminalClient } from '../types.ts'
import type { Shell } from './session.ts'
import { createTerminals, type TerminalsDeps } from './terminals.ts'

const DETACHED_MS = 10 * 60_000
const WHO: Principal = { orgId: 'o', keyId: 'k', scope: 'full', role: 'admin' }
const OTHER_KEY: Principal = { ...WHO, keyId: 'other' }
const SIZE = { columns: 80, rows: 24 }
const NAMED = { session: 's', size: SIZE }
const UNNAMED = { session: null, size: SIZE }

class FakeShell implements Shell {
  readonly exit = Promise.withResolvers<number>()
  readonly ended = this.exit.promise
  problem = Promise.resolve('')
  waiting = 0
  typed = ''
  sizes: unknown[] = []
  paused = false
  hungUp = false

  constructor(readonly request: TerminalRequest) {}

  says(text: string | Uint8Array): void {
    this.request.onOutput(Buffer.from(text))
  }
  write(bytes: Uint8Array): void {
    this.typed += Buffer.from(bytes).toString()
  }
  resize(size: unknown): void {
    this.sizes.push(size)
  }
  pause(): void {
    this.paused = true
  }
  resume(): void {
    this.paused = false
  }
  hangUp(): void {
    this.hungUp = true
  }
}

class FakeClient implements TerminalClient {
  frames: string[] = []
  closed: unknown[] = []
  takes = true

  show(text: string): boolean {
    this.frames.push(text)
    return this.takes
  }
  close(...ending: unknown[]): void {
    this.closed.push(ending)
  }
}

const computer = (id: string): ComputerRow => ({
  id,
  shortId: id,
  orgId: 'o',
  name: 'n',
  runtimeMb: 64,
  diskMb: 64,
  userId: null,
  swarmId: null,
  replicaIndex: null,
  slot: 1,
  base: 'b',
  createdAt: 0,
  updatedAt: 0,
})

function setUp(openTerminal?: TerminalsDeps['runtime']['openTerminal']) {
  const shells: FakeShell[] = []
  const leased: string[] = []
  const badKeys = new Set<string>()
  const terminals = createTerminals({
    runtime: {
      openTerminal:
        openTerminal ??
        (async (_, request) => {
          const shell = new FakeShell(request)
          shells.push(shell)
          // What Session needs of a Terminal is what a FakeShell is.
          return shell as Shell as never
        }),
    },
    findComputer: (_, id) => {
      if (id === 'unknown') throw new OrbError('not_found', 'no such computer')
      return computer(id)
    },
    environment: () => ({ PATH: '/agent:/bin', SECRET: 's', TERM: 'xterm-kitty' }),
    isGood: (keyId) => !badKeys.has(keyId),
    lease: ({ id }) => {
      leased.push(id)
      return () => void leased.splice(leased.indexOf(id), 1)
    },
  })
  async function connect(options = NAMED as { session: string | null; size: typeof SIZE }, who = WHO, id = 'c') {
    const visit = await terminals.open(who, id, options)
    const client = new FakeClient()
    visit.attach(client)
    return { visit, client }
  }
  return { terminals, shells, leased, badKeys, connect }
}

const settled = () => Promise.resolve().then(() => Promise.resolve())

beforeEach(() => void jest.useFakeTimers())
afterEach(() => void jest.useRealTimers())

test('a login shell is started with the environment of the agent, and what a terminal needs', async () => {
  const { shells, connect } = setUp()
  await connect()
  expect(shells[0]?.request).toMatchObject({
    argv: ['bash', '-l'],
    cwd: '/root',
    size: SIZE,
    env: {
      PATH: '/agent:/bin',
      ORB_LOGIN_PATH: '/agent:/bin',
      SECRET: 's',
      TERM: 'xterm-kitty',
      COLORTERM: 'truecolor',
      SHELL: '/bin/bash',
    },
  })
})

test('characters come whole, bytes that are none as U+FFFD, a byte order mark too', async () => {
  const { shells, connect } = setUp()
  const { client } = await connect(UNNAMED)
  const bytes = Buffer.from('\ufeffaü€🙂z')
  for (const byte of bytes) shells[0]?.says(Uint8Array.of(byte))
  expect(client.frames).toEqual(['\ufeff', 'a', 'ü', '€', '🙂', 'z'])
  shells[0]?.says(Uint8Array.of(0x61, 0xff, 0x62, 0xe2, 0x82))
  expect(client.frames.at(-1)).toBe('a\ufffdb')
  shells[0]?.exit.resolve(0)
  await settled()
  expect(client.frames.at(-1)).toBe('\ufffd')
})

test('what is shown before the client is there is not lost', async () => {
  const { terminals, shells } = setUp()
  const visit = await terminals.open(WHO, 'c', UNNAMED)
  shells[0]?.says('prompt')
  const client = new FakeClient()
  visit.attach(client)
  expect(client.frames).toEqual(['prompt'])
})

test('the exit code of the shell closes the client', async () => {
  const { shells, connect, leased } = setUp()
  const { client, visit } = await connect(UNNAMED)
  expect(leased).toEqual(['c'])
  visit.type(Buffer.from('exit 3\n'))
  expect(shells[0]?.typed).toBe('exit 3\n')
  shells[0]?.exit.resolve(3)
  await settled()
  expect(client.closed).toEqual([[1000, 'exit:3']])
  expect(leased).toEqual([])
  visit.leave()
  expect(client.closed).toHaveLength(1)
})

test('a shell that could not be started is told from one that ended with 125', async () => {
  const { shells, connect } = setUp()
  const first = await connect(UNNAMED)
  const second = await connect(UNNAMED)
  shells[0]!.problem = Promise.resolve('open a terminal: No space left on device')
  shells[0]?.exit.resolve(125)
  shells[1]?.exit.resolve(125)
  await settled()
  await settled()
  expect(first.client.closed).toEqual([[1011, 'the shell could not be started']])
  expect(second.client.closed).toEqual([[1000, 'exit:125']])
})

test('a client that takes no more makes the shell wait', async () => {
  const { shells, connect } = setUp()
  const { client, visit } = await connect(UNNAMED)
  client.takes = false
  shells[0]?.says('much')
  expect(shells[0]?.paused).toBe(true)
  visit.drained()
  expect(shells[0]?.paused).toBe(false)
})

test('more input than the programs read closes the client', async () => {
  const { shells, connect } = setUp()
  const { client, visit } = await connect(UNNAMED)
  shells[0]!.waiting = 2 * 1024 * 1024
  visit.type(Buffer.from('x'))
  expect(shells[0]?.typed).toBe('')
  expect(client.closed).toEqual([[1009, 'more input than the programs read']])
})

describe('without a name', () => {
  test('the shell goes with its client', async () => {
    const { shells, connect, leased } = setUp()
    const { visit } = await connect(UNNAMED)
    visit.leave()
    expect(shells[0]?.hungUp).toBe(true)
    expect(leased).toEqual([])
  })

  test('each client has a shell of its own', async () => {
    const { shells, connect } = setUp()
    const [first, second] = [await connect(UNNAMED), await connect(UNNAMED)]
    shells[0]?.says('one')
    shells[1]?.says('two')
    expect([first.client.frames, second.client.frames]).toEqual([['one'], ['two']])
  })

  test('a client that does not come after all leaves no shell', async () => {
    const { terminals, shells } = setUp()
    const visit = await terminals.open(WHO, 'c', UNNAMED)
    visit.leave()
    expect(shells[0]?.hungUp).toBe(true)
  })
})

describe('with a name', () => {
  test('the shell stays for ten minutes, and shows again what it showed', async () => {
    const { shells, connect, leased } = setUp()
    const first = await connect()
    expect(first.client.frames).toEqual([''])
    shells[0]?.says('before ')
    first.visit.leave()
    expect(leased).toEqual([])
    shells[0]?.says('meanwhile')
    jest.advanceTimersByTime(DETACHED_MS - 1)
    const second = await connect({ session: 's', size: { columns: 100, rows: 30 } })
    expect(shells).toHaveLength(1)
    expect(shells[0]?.sizes.at(-1)).toEqual({ columns: 100, rows: 30 })
    expect(second.client.frames).toEqual(['before meanwhile'])
    expect(leased).toEqual(['c'])
    jest.advanceTimersByTime(2 * DETACHED_MS)
    expect(shells[0]?.hungUp).toBe(false)
    second.visit.leave()
    jest.advanceTimersByTime(DETACHED_MS)
    expect(shells[0]?.hungUp).toBe(true)
    await connect()
    expect(shells).toHaveLength(2)
  })

  test('256 KiB are shown again', async () => {
    const { shells, connect } = setUp()
    const first = await connect()
    const piece = `${'x'.repeat(1023)}\n`
    for (let count = 0; count < 300; count++) shells[0]?.says(piece)
    first.visit.leave()
    const { client } = await connect()
    expect(client.frames.join('')).toBe(piece.repeat(256))
  })

  test('the newest client takes over', async () => {
    const { shells, connect, leased } = setUp()
    const [first, second] = [await connect(), await connect()]
    expect(first.client.closed).toEqual([[4409, 'another client has taken over']])
    first.visit.type(Buffer.from('a'))
    first.visit.resize({ columns: 1, rows: 1 })
    second.visit.type(Buffer.from('b'))
    expect(shells[0]?.typed).toBe('b')
    expect(shells[0]?.sizes).not.toContainEqual({ columns: 1, rows: 1 })
    first.visit.leave()
    shells[0]?.says('for the second')
    expect(first.client.frames).toEqual([''])
    expect(second.client.frames).toEqual(['', 'for the second'])
    expect(leased).toEqual(['c'])
    expect(second.client.closed).toEqual([])
  })

  test('a client that was too slow does not stop the shell once it is gone', async () => {
    const { shells, connect } = setUp()
    const { client, visit } = await connect()
    client.takes = false
    shells[0]?.says('much')
    visit.leave()
    expect(shells[0]?.paused).toBe(false)
  })

  test('two that come at once share one shell', async () => {
    const { shells, connect } = setUp()
    await Promise.all([connect(), connect()])
    expect(shells).toHaveLength(1)
  })

  test('computers do not share', async () => {
    const { shells, connect } = setUp()
    await connect()
    await connect(NAMED, WHO, 'd')
    expect(shells).toHaveLength(2)
  })
})

describe('all terminals', () => {
  test.each([
    ['deleted', 4404],
    ['restarted', 1012],
  ] as const)('of a computer that is %s end at once with %i', async (why, code) => {
    const { terminals, shells, connect, leased } = setUp()
    const clients = [await connect(UNNAMED), await connect(), await connect(UNNAMED, WHO, 'd')]
    terminals.end('c', why)
    expect(clients.map(({ client }) => client.closed.map((ending) => (ending as unknown[])[0]))).toEqual([
      [code],
      [code],
      [],
    ])
    expect(shells.map(({ hungUp }) => hungUp)).toEqual([true, true, false])
    expect(leased).toEqual(['d'])
  })

  test('that were used with a key end when it is revoked, those without a client too', async () => {
    const { terminals, shells, connect } = setUp()
    const mine = await connect(UNNAMED)
    const detached = await connect()
    detached.visit.leave()
    const theirs = await connect(UNNAMED, OTHER_KEY)
    const handedOn = await connect({ ...NAMED, session: 'shared' })
    const taken = await connect({ ...NAMED, session: 'shared' }, OTHER_KEY)
    terminals.revoked('k')
    expect(mine.client.closed).toEqual([[4401, 'the key was revoked']])
    expect(theirs.client.closed).toEqual([])
    expect(handedOn.client.closed).toMatchObject([[4409, expect.any(String)]])
    expect(taken.client.closed).toEqual([])
    expect(shells.map(({ hungUp }) => hungUp)).toEqual([true, true, false, false])
  })

  test('of a key that was revoked while the shell was started are closed', async () => {
    const { terminals, shells, badKeys } = setUp()
    const visit = await terminals.open(WHO, 'c', UNNAMED)
    badKeys.add('k')
    const client = new FakeClient()
    visit.attach(client)
    expect(client.closed).toEqual([[4401, 'the key was revoked']])
    expect(shells[0]?.hungUp).toBe(true)
  })

  test('are sixteen at most, named ones without a client counted', async () => {
    const { terminals, shells, connect } = setUp()
    const first = await connect()
    first.visit.leave()
    for (let count = 1; count < 16; count++) await connect(UNNAMED)
    expect(() => terminals.check(WHO, 'c', null)).toThrow(expect.objectContaining({ code: 'too_many_sessions' }))
    expect(terminals.open(WHO, 'c', { ...NAMED, session: 'new' })).rejects.toMatchObject({ status: 429 })
    expect(shells).toHaveLength(16)
    await connect()
    await connect(UNNAMED, WHO, 'd')
    shells[3]?.exit.resolve(0)
    await settled()
    await connect(UNNAMED)
    expect(() => terminals.check(WHO, 'unknown', null)).toThrow(expect.objectContaining({ code: 'not_found' }))
  })

  test('that cannot be opened leave nothing', async () => {
    const { terminals } = setUp(() => Promise.reject(new Error('the computer is being taken down')))
    for (let count = 0; count < 20; count++) {
      expect(terminals.open(WHO, 'c', UNNAMED)).rejects.toThrow('taken down')
      await settled()
      await settled()
    }
    expect(() => terminals.check(WHO, 'c', null)).not.toThrow()
  })

  test('of a computer that is deleted while they are opened are closed with that', async () => {
    const shell = Promise.withResolvers<never>()
    const { terminals } = setUp(() => shell.promise)
    const opening = terminals.open(WHO, 'c', NAMED)
    terminals.end('c', 'deleted')
    const fake = new FakeShell({ argv: [], env: {}, cwd: '', size: SIZE, onOutput: () => undefined })
    shell.resolve(fake as Shell as never)
    const client = new FakeClient()
    const visit = await opening
    visit.attach(client)
    expect(client.closed).toEqual([[4404, 'the computer was deleted']])
    expect(fake.hungUp).toBe(true)
  })
})
