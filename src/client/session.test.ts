import { expect, test } from 'bun:test'
import type { Computer } from './answers.ts'
import { pickComputer } from './session.ts'

const computer = (id: string, name: string): Computer => ({
  id: `${id}-0000-4000-8000-000000000000`,
  name,
  runtime_mb: 1,
  disk_mb: 1,
  status: 'ready',
})
const ALL = [
  computer('aaaaaaaa', 'one'),
  computer('bbbbbbbb', 'twin'),
  computer('cccccccc', 'twin'),
  computer('dddddddd', 'bbbbbbbb'),
]

test.each([
  ['one', 'aaaaaaaa'],
  ['bbbbbbbb', 'bbbbbbbb'],
  ['dddddddd-0000-4000-8000-000000000000', 'dddddddd'],
])('%s means %s', (wanted, id) => {
  expect(pickComputer(ALL, wanted)?.id).toStartWith(id)
})

test('nothing fits, or too much', () => {
  expect(pickComputer(ALL, 'On')).toBeNull()
  expect(() => pickComputer(ALL, 'twin')).toThrow(/bbbbbbbb[\s\S]*cccccccc/)
})
