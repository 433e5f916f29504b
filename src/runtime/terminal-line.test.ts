/* A terminal's line to an orb-init that does not read, played by the other ends of its sockets. */
import { expect, spyOn, test } from 'bun:test'
import { closeSync, readSync } from 'node:fs'
import { until } from '../../test/support/sweep.ts'
import { socketPair } from './launcher.ts'
import { errnoCode } from './libc.ts'
import { Terminal } from './terminal.ts'

const SOCK_STREAM = 1
const SOCK_SEQPACKET = 5

async function line() {
  const [socket, input] = socketPair(SOCK_STREAM)
  const [sizes, sizesInside] = socketPair(SOCK_SEQPACKET)
  const process = Bun.spawn(['true'], { stdio: [0, 'ignore', 'pipe'] })
  const terminal = await Terminal.open({ process, socket, sizes }, () => undefined)
  return { terminal, input, sizesInside }
}

/** What can be read now, null for nothing. */
function read(fd: number): Buffer | null {
  const buffer = Buffer.alloc(64 * 1024)
  try {
    return buffer.subarray(0, readSync(fd, buffer))
  } catch (thrown) {
    if (errnoCode(thrown) === 'EAGAIN') return null
    throw thrown
  }
}

test('of more sizes than there is room for the newest one arrives', async () => {
  const { terminal, input, sizesInside } = await line()
  for (let columns = 1; columns <= 1000; columns++) terminal.resize({ columns, rows: 24 })
  let last = 0
  const isNewest = () => {
    for (let packet = read(sizesInside); packet; packet = read(sizesInside)) last = packet.readUInt16LE(0)
    return last === 1000
  }
  expect(await until(isNewest, 10_000)).toBe(true)
  terminal.hangUp()
  closeSync(input)
  closeSync(sizesInside)
  await terminal.ended
})

test('input behind input that waits is kept for the drain, byte by byte', async () => {
  const { terminal, input, sizesInside } = await line()
  const first = Buffer.alloc(2_000_000, 'a line that is typed. ')
  terminal.write(first)
  expect(terminal.waiting).toBeGreaterThan(0)
  const before = terminal.waiting
  const sent = spyOn(terminal['socket']!, 'write')
  for (let count = 0; count < 1000; count++) terminal.write(Uint8Array.of(count % 256))
  expect(sent).not.toHaveBeenCalled()
  expect(terminal.waiting).toBe(before + 1000)
  const pieces: Buffer[] = []
  const isAll = () => {
    for (let piece = read(input); piece; piece = read(input)) pieces.push(piece)
    return terminal.waiting === 0
  }
  expect(await until(isAll, 10_000)).toBe(true)
  isAll()
  const wanted = Buffer.concat([first, Uint8Array.from({ length: 1000 }, (_, count) => count % 256)])
  expect(Buffer.concat(pieces).equals(wanted)).toBe(true)
  terminal.hangUp()
  closeSync(input)
  closeSync(sizesInside)
  await terminal.ended
})
