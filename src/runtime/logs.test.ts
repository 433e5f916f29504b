import { afterAll, beforeEach, describe, expect, test } from 'bun:test'
import { execFileSync } from 'node:child_process'
import {
  appendFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { appendOrbLine } from './log-file.ts'
import { followLogs, type LogLine, type LogQuery, type LogSource, readLogs, stderrTail } from './logs.ts'

const MIB = 1024 * 1024
const base = mkdtempSync(join(tmpdir(), 'orb-logs-'))
let source: LogSource
let agentLog: string
let number = 0

beforeEach(() => {
  const dir = join(base, String(number++))
  source = { rootDir: join(dir, 'rootfs'), orbLog: join(dir, 'orb.log') }
  mkdirSync(join(source.rootDir, 'var/log/orb'), { recursive: true })
  agentLog = join(source.rootDir, 'var/log/orb/agent.log')
})
afterAll(() => rmSync(base, { recursive: true }))

const ALL: LogQuery = { tail: 100, stream: 'all' }
const texts = async (query: LogQuery = ALL): Promise<string[]> =>
  (await readLogs(source, query)).lines.map(({ line }) => line)
/** What the init of a computer does at 10 MiB. */
const rotate = (): void => {
  if (existsSync(`${agentLog}.1`)) renameSync(`${agentLog}.1`, `${agentLog}.2`)
  renameSync(agentLog, `${agentLog}.1`)
  writeFileSync(agentLog, '')
}

describe('readLogs', () => {
  test('lines of all files and of orb come merged by time, each log in its own order', async () => {
    writeFileSync(`${agentLog}.2`, '1000 1 a\n2000 2 b\n')
    writeFileSync(`${agentLog}.1`, '3000 1 c\n')
    writeFileSync(agentLog, '5000 1 e\n4500 1 clock went back\n1776571500999 2 last\n')
    appendOrbLine(source.orbLog, 'spawned pid 1', 1500)
    appendOrbLine(source.orbLog, 'checkpointed (llm)', 5000)
    const { lines, truncated } = await readLogs(source, ALL)
    expect(truncated).toBe(false)
    expect(lines.map(({ line }) => line)).toEqual([
      'a',
      'spawned pid 1',
      'b',
      'c',
      'e',
      'clock went back',
      'checkpointed (llm)',
      'last',
    ])
    expect(lines.at(-1)).toEqual({ ts: '2026-04-19T04:05:00Z', stream: 'stderr', line: 'last' })
    expect(lines[1]).toEqual({ ts: '1970-01-01T00:00:01Z', stream: 'orb', line: 'spawned pid 1' })
  })

  test.each([
    [{ tail: 2, stream: 'all' }, ['b', 'orb 3'], true],
    [{ tail: 3, stream: 'all' }, ['a', 'b', 'orb 3'], true],
    [{ tail: 4, stream: 'all' }, ['orb 0', 'a', 'b', 'orb 3'], false],
    [{ tail: 1, stream: 'stdout' }, ['a'], false],
    [{ tail: 9, stream: 'stderr' }, ['b'], false],
    [{ tail: 1, stream: 'orb' }, ['orb 3'], true],
    [{ tail: 0, stream: 'all' }, [], true],
  ] as [LogQuery, string[], boolean][])('%p', async (query, expected, truncated) => {
    writeFileSync(agentLog, '1000 1 a\n2000 2 b\n')
    appendOrbLine(source.orbLog, 'orb 0', 0)
    appendOrbLine(source.orbLog, 'orb 3', 3000)
    const answer = await readLogs(source, query)
    expect([answer.lines.map(({ line }) => line), answer.truncated]).toEqual([expected, truncated])
  })

  test('nothing written yet, or no computer any more, is an empty log', async () => {
    expect(await readLogs(source, ALL)).toEqual({ lines: [], truncated: false })
    rmSync(source.rootDir, { recursive: true })
    expect(await readLogs(source, ALL)).toEqual({ lines: [], truncated: false })
  })

  test('whatever bytes a line has', async () => {
    const lines = [
      Buffer.from('1 1 \n'),
      Buffer.from('2 2 caf\xe9 \xff\n', 'latin1'),
      Buffer.from('3 1 \ufeffmark \u0000 ü\n'),
      Buffer.from('no stamp\n\n 4 1 x\n4 3 x\n5 0 not orb\n-5 1 x\n4 1\n9999999999999999999 1 x\n'),
      Buffer.from('999999999999999 1 far away\n'),
      Buffer.from(`7 1 ${'l'.repeat(20_000)}\n`),
      Buffer.from('8 1 unfinis'),
    ]
    writeFileSync(agentLog, Buffer.concat(lines))
    const shown = (await readLogs(source, ALL)).lines
    expect(shown.map(({ line }) => line)).toEqual([
      '',
      'caf\ufffd \ufffd',
      '\ufeffmark \u0000 ü',
      'far away',
      'l'.repeat(16_384),
    ])
    expect(shown[3]?.ts).toBe('9999-12-31T23:59:59Z')
    appendFileSync(agentLog, 'hed\n')
    expect((await texts()).at(-1)).toBe('unfinished')
  })

  test('lines are exact at every alignment to the chunks they are read in', async () => {
    const expected = Array.from({ length: 9000 }, (_, index) => `line ${index} ${'x'.repeat((index * 37) % 300)}`)
    writeFileSync(agentLog, expected.map((line, index) => `${index} 1 ${line}\n`).join(''))
    expect(statSync(agentLog).size).toBeGreaterThan(MIB)
    expect(await texts({ tail: 10_000, stream: 'all' })).toEqual(expected)
    expect(await texts({ tail: 8999, stream: 'stdout' })).toEqual(expected.slice(1))
  })

  test('a short tail of a long log reads little of it', async () => {
    const line = `1000 1 ${'x'.repeat(1000)}\n`
    writeFileSync(agentLog, line.repeat(9000))
    renameSync(agentLog, `${agentLog}.1`)
    writeFileSync(agentLog, line.repeat(9000))
    const before = bytesRead()
    expect(await texts({ tail: 100, stream: 'all' })).toHaveLength(100)
    expect(bytesRead() - before).toBeLessThan(MIB)
  })

  const hostile: [string, (path: string) => void][] = [
    ['a fifo', (path) => void execFileSync('mkfifo', [path])],
    ['a directory', (path) => mkdirSync(path)],
    ['a link out of the computer', (path) => symlinkSync(join(base, 'host-file'), path)],
    ['a link that climbs out', (path) => symlinkSync('../../../../host-file', path)],
    ['a link to itself', (path) => symlinkSync('agent.log', path)],
    [
      'a terabyte of nothing',
      (path) => {
        writeFileSync(path, '')
        truncateSync(path, 1024 * 1024 * MIB)
      },
    ],
  ]
  test.each(hostile)('%s in place of the log shows nothing and blocks nothing', async (_, make) => {
    writeFileSync(join(base, 'host-file'), '1 1 of the server\n')
    appendOrbLine(source.orbLog, 'still here', 1)
    make(agentLog)
    const before = readdirSync('/proc/self/fd').length
    expect(await texts()).toEqual(['still here'])
    expect(await stderrTail(source, 0)).toBe('')
    expect(readdirSync('/proc/self/fd').length).toBeLessThanOrEqual(before)
  })

  test('a second name of the same file, or a link inside, doubles nothing', async () => {
    writeFileSync(agentLog, '1 1 once\n')
    linkSync(agentLog, `${agentLog}.1`)
    symlinkSync('/var/log/orb/agent.log', `${agentLog}.2`)
    expect(await texts()).toEqual(['once'])
  })
})

const bytesRead = (): number => Number(/rchar: (\d+)/.exec(readFileSync('/proc/self/io', 'utf8'))?.[1])

describe('appendOrbLine', () => {
  test('one line each, whatever the text, and two files at most', async () => {
    appendOrbLine(source.orbLog, 'two\r\nlines', 1)
    appendOrbLine(source.orbLog, 'x'.repeat(20_000), 2)
    expect((await texts()).map((line) => line.length)).toEqual([9, 16_384])
    for (let index = 0; index < 1300; index++) appendOrbLine(source.orbLog, `${index} ${'x'.repeat(16_000)}`, 3)
    expect(statSync(source.orbLog).size).toBeLessThan(10 * MIB)
    expect(statSync(`${source.orbLog}.1`).size).toBeLessThanOrEqual(10 * MIB)
    expect(statSync(`${source.orbLog}.1`).size).toBeGreaterThan(10 * MIB - 20_000)
    expect(existsSync(`${source.orbLog}.2`)).toBe(false)
    expect(statSync(source.orbLog).mode & 0o777).toBe(0o600)
    const kept = await texts({ tail: 1000, stream: 'orb' })
    expect(kept.map((line) => Number.parseInt(line, 10))).toEqual(
      Array.from({ length: 1000 }, (_, index) => index + 300),
    )
  })

  test('a log that cannot be written stops nobody', () => {
    expect(() => appendOrbLine(join(base, 'nowhere', 'orb.log'), 'lost', 1)).not.toThrow()
  })
})

describe('stderrTail', () => {
  test.each([
    ['only this run, only stderr', '1 2 before\n5 1 out\n5 2 first\n6 2 second\n', 5, 'first\nsecond\n'],
    ['an empty line is something', '1 2 before\n5 2 \n', 5, '\n'],
    ['nothing was written', '1 2 before\n5 1 out\n', 5, ''],
    ['whole lines up to the limit', `5 2 dropped\n5 2 ${'y'.repeat(4095)}\n`, 5, `${'y'.repeat(4095)}\n`],
    ['the end of a long line in whole characters', `5 2 ${'é'.repeat(3000)}\n`, 5, `${'é'.repeat(2047)}\n`],
  ])('%s', async (_, log, since, expected) => {
    writeFileSync(agentLog, log)
    expect(await stderrTail(source, since)).toBe(expected)
    expect(Buffer.byteLength(await stderrTail(source, since))).toBeLessThanOrEqual(4096)
  })

  test('across a rotation', async () => {
    writeFileSync(`${agentLog}.1`, '4 2 before\n5 2 first\n')
    writeFileSync(agentLog, '6 2 second\n')
    expect(await stderrTail(source, 5)).toBe('first\nsecond\n')
  })
})

describe('followLogs', () => {
  const follow = (query: LogQuery = ALL) => {
    const abort = new AbortController()
    const lines = followLogs(source, query, abort.signal)[Symbol.asyncIterator]()
    const take = async (count: number): Promise<string[]> => {
      const taken: LogLine[] = []
      while (taken.length < count) {
        const next = await lines.next()
        if (next.done) break
        taken.push(next.value)
      }
      return taken.map(({ line }) => line)
    }
    return { abort, take, next: () => lines.next() }
  }

  test('the tail first, then what is written, within a second, also by orb', async () => {
    writeFileSync(agentLog, '1 1 a\n2 1 b\n')
    const { take, abort, next } = follow({ tail: 1, stream: 'all' })
    expect(await take(1)).toEqual(['b'])
    const waiting = take(2)
    const written = performance.now()
    appendFileSync(agentLog, '3 2 c\n')
    appendOrbLine(source.orbLog, 'frozen', 4)
    expect(await waiting).toEqual(['c', 'frozen'])
    expect(performance.now() - written).toBeLessThan(1000)
    abort.abort()
    expect((await next()).done).toBe(true)
  })

  test('a log that does not exist yet is followed from its first line', async () => {
    const { take, abort } = follow()
    const waiting = take(2)
    writeFileSync(agentLog, '1 1 a\n1 1 b\n1 1 unfin')
    expect(await waiting).toEqual(['a', 'b'])
    const rest = take(1)
    appendFileSync(agentLog, 'ished\n')
    expect(await rest).toEqual(['unfinished'])
    abort.abort()
  })

  test('rotation loses and doubles nothing, two of them between two looks neither', async () => {
    writeFileSync(agentLog, '1 1 0\n')
    const { take, abort } = follow()
    expect(await take(1)).toEqual(['0'])
    appendFileSync(agentLog, '1 1 1\n')
    rotate()
    appendFileSync(agentLog, '1 1 2\n')
    rotate()
    appendFileSync(agentLog, '1 1 3\n')
    expect(await take(3)).toEqual(['1', '2', '3'])
    for (let batch = 0; batch < 5; batch++) {
      const expected = Array.from({ length: 20 }, (_, index) => String(100 * batch + index))
      for (const [index, line] of expected.entries()) {
        appendFileSync(agentLog, `1 1 ${line}\n`)
        if (index === 3 * batch) rotate()
      }
      expect(await take(20)).toEqual(expected)
    }
    abort.abort()
  })

  test('a log that is emptied, replaced or removed is followed anew', async () => {
    writeFileSync(agentLog, '1 1 a long first line\n')
    const { take, abort } = follow()
    expect(await take(1)).toEqual(['a long first line'])
    writeFileSync(agentLog, '2 1 emptied\n')
    expect(await take(1)).toEqual(['emptied'])
    writeFileSync(`${agentLog}.new`, '3 1 replaced\n')
    renameSync(`${agentLog}.new`, agentLog)
    expect(await take(1)).toEqual(['replaced'])
    unlinkSync(agentLog)
    execFileSync('mkfifo', [agentLog])
    appendOrbLine(source.orbLog, 'looked at the fifo', 4)
    expect(await take(1)).toEqual(['looked at the fifo'])
    unlinkSync(agentLog)
    writeFileSync(agentLog, '5 1 again\n')
    expect(await take(1)).toEqual(['again'])
    abort.abort()
  })

  test('much at once arrives whole, and only the stream that was asked for', async () => {
    const { take, abort } = follow({ tail: 0, stream: 'stderr' })
    const waiting = take(5000)
    writeFileSync(
      agentLog,
      Array.from({ length: 10_000 }, (_, index) => `1 ${1 + (index % 2)} ${index} ${'x'.repeat(90)}\n`).join(''),
    )
    appendOrbLine(source.orbLog, 'not asked for', 1)
    const lines = await waiting
    expect(lines.map((line) => Number.parseInt(line, 10))).toEqual(
      Array.from({ length: 5000 }, (_, index) => 2 * index + 1),
    )
    abort.abort()
  })

  test('an endless line does not stop what comes after it', async () => {
    writeFileSync(agentLog, '')
    const { take, abort } = follow()
    const waiting = take(1)
    writeFileSync(agentLog, Buffer.alloc(MIB, 'x'))
    appendFileSync(agentLog, '\n1 1 after\n')
    expect(await waiting).toEqual(['after'])
    abort.abort()
  })

  test('an abort ends a waiting follower at once, and one that never began; no file stays open', async () => {
    writeFileSync(agentLog, '1 1 a\n')
    const before = readdirSync('/proc/self/fd').length
    const { take, abort, next } = follow()
    await take(1)
    expect(readdirSync('/proc/self/fd').length).toBeLessThanOrEqual(before)
    const waiting = next()
    abort.abort()
    expect((await waiting).done).toBe(true)
    const never = followLogs(source, ALL, AbortSignal.abort())
    expect((await never.next()).done).toBe(true)
    expect(readdirSync('/proc/self/fd').length).toBeLessThanOrEqual(before)
  })
})
