import { expect, test } from 'bun:test'
import type { AgentRow } from '../../store/types.ts'
import { isExitOf } from './record.ts'

const STARTED = 1_700_000_000_000
const HOUR = 3_600_000
const row = { startedAt: STARTED } as AgentRow

test.each([
  ['its own', { code: 1, at: STARTED + 5, life: STARTED }, true],
  ['its own, the clock set back meanwhile', { code: 1, at: STARTED - HOUR, life: STARTED }, true],
  [
    'that of the one before, which ended when this was being started',
    { code: 137, at: STARTED + 5, life: STARTED - HOUR },
    false,
  ],
  [
    'that of the one before, written when the clock was ahead',
    { code: 0, at: STARTED + HOUR, life: STARTED - HOUR },
    false,
  ],
  ['of a pid 1 that does not tell, after its start', { code: 0, at: STARTED + 1, life: null }, true],
  ['of a pid 1 that does not tell, before its start', { code: 0, at: STARTED - 1, life: null }, false],
  ['none', null, false],
])('an exit: %s', (_, exit, expected) => {
  expect(isExitOf(row, exit)).toBe(expected)
})
