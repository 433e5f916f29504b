import { expect, test } from 'bun:test'
import { readdirSync } from 'node:fs'
import { until } from '../../test/support/sweep.ts'
import { isInTimedSleep, trafficOf } from './idle-signs.ts'

const threads = (pid: number): number[] => {
  try {
    return readdirSync(`/proc/${pid}/task`).map(Number)
  } catch {
    return []
  }
}

const python = (code: string): string[] => ['python3', '-u', '-c', `import select, threading, time\n${code}`]

const PROGRAMS: [string, boolean, string[]][] = [
  ['sleep(1)', true, ['sleep', '100']],
  ['time.sleep', true, python('print(1); time.sleep(100)')],
  ['time.sleep of another thread', true, python('print(1); threading.Thread(target=time.sleep, args=[100]).start()')],
  ['select with a timeout', false, python('print(1); select.select([], [], [], 100)')],
  ['poll with a timeout', false, python('print(1); select.poll().poll(100000)')],
  ['epoll with a timeout', false, python('print(1); select.epoll().poll(100)')],
  ['a lock with a timeout', false, python('print(1); threading.Event().wait(100)')],
  ['timers of Node', false, ['node', '-e', 'console.log(1); setTimeout(() => {}, 100000)']],
]

/** Asks again, for the program may still be on its way into its wait. */
const settled = (pid: number, timed: boolean) => until(() => threads(pid).some(isInTimedSleep) === timed)

test.each(PROGRAMS)('%s is a timed sleep: %p', async (_, timed, command) => {
  const child = Bun.spawn(command, { stdout: 'pipe', stderr: 'inherit' })
  try {
    if (command[0] !== 'sleep') await child.stdout.getReader().read()
    expect(await settled(child.pid, timed)).toBe(true)
    // A stop interrupts the wait, which then goes on under another number.
    child.kill('SIGSTOP')
    child.kill('SIGCONT')
    expect(await settled(child.pid, timed)).toBe(true)
  } finally {
    child.kill('SIGKILL')
    await child.exited
  }
  expect(isInTimedSleep(child.pid)).toBe(false)
})

test('traffic of a link grows with what passes; one that is not there has none', async () => {
  const before = trafficOf('lo', null)
  using server = Bun.serve({ port: 0, hostname: '127.0.0.1', fetch: () => new Response('x'.repeat(100_000)) })
  await (await fetch(server.url)).text()
  const after = trafficOf('lo', before)
  expect(after.packets).toBeGreaterThan(before.packets)
  expect(after.bytes - before.bytes).toBeGreaterThan(100_000)
  const none = trafficOf('orb-nobody', null)
  expect(none).toEqual({ packets: 0, bytes: 0 })
  expect(trafficOf('orb-nobody', none)).toBe(none)
})
