import { describe, expect, test } from 'bun:test'
import type { AgentPhase, AgentState } from '../../store/types.ts'
import { type Decision, decide, type Facts, type Recovery, recover, type Wish } from './machine.ts'

const action = (decision: Decision): string => (decision.kind === 'step' ? decision.step.action : decision.kind)

describe('decide', () => {
  const table: [AgentState, Wish, string][] = [
    ['running', 'freeze', 'freeze'],
    // It must stand still, and be written down as frozen, before its memory goes.
    ['running', 'reclaim', 'freeze'],
    ['running', 'checkpoint', 'checkpoint'],
    ['running', 'wake', 'nothing'],
    ['frozen', 'freeze', 'nothing'],
    ['frozen', 'reclaim', 'reclaim'],
    ['frozen', 'checkpoint', 'checkpoint'],
    ['frozen', 'wake', 'thaw'],
    ['checkpointed', 'freeze', 'nothing'],
    ['checkpointed', 'reclaim', 'nothing'],
    ['checkpointed', 'checkpoint', 'nothing'],
    ['checkpointed', 'wake', 'restore'],
    ['failed', 'freeze', 'failed'],
    ['failed', 'reclaim', 'failed'],
    ['failed', 'checkpoint', 'failed'],
    ['failed', 'wake', 'failed'],
  ]
  test.each(table)('%s, asked to %s: %s', (state, wish, expected) => {
    expect(action(decide(state, wish, false))).toBe(expected)
  })

  test('a step that stays in memory leads to frozen, never to a state of its own', () => {
    for (const wish of ['freeze', 'reclaim'] as const) {
      for (const state of ['running', 'frozen'] as const) {
        const decision = decide(state, wish, false)
        if (decision.kind === 'step') expect(decision.step).toMatchObject({ to: 'frozen' })
      }
    }
  })

  test('a kept image of a failed restore may be tried again, and only by a wake', () => {
    expect(action(decide('failed', 'wake', true))).toBe('restore')
    expect(action(decide('failed', 'checkpoint', true))).toBe('failed')
    expect(action(decide('failed', 'freeze', true))).toBe('failed')
    expect(action(decide('failed', 'reclaim', true))).toBe('failed')
  })
})

const PHASES: AgentPhase[] = [
  'running',
  'frozen',
  'checkpointed',
  'failed',
  'starting',
  'checkpointing',
  'restoring',
  'stopping',
]
const BOOLEANS = [false, true]

/** Every phase with every combination of facts. */
const EVERY: [AgentPhase, Facts][] = PHASES.flatMap((phase) =>
  BOOLEANS.flatMap((alive) =>
    BOOLEANS.flatMap((imageComplete) =>
      BOOLEANS.flatMap((restored) =>
        BOOLEANS.flatMap((exited) =>
          BOOLEANS.map((rebooted): [AgentPhase, Facts] => [
            phase,
            { alive, imageComplete, restored, exited, rebooted },
          ]),
        ),
      ),
    ),
  ),
)

const some = (phase: AgentPhase, facts: Partial<Facts>, expected: Recovery) => {
  const matching = EVERY.filter(
    ([other, all]) =>
      other === phase &&
      Object.entries(facts).every(([name, value]) => Object.entries(all).some(([n, v]) => n === name && v === value)),
  )
  expect(matching.length).toBeGreaterThan(0)
  for (const [, all] of matching) expect([phase, all, recover(phase, all)]).toEqual([phase, all, expected])
}

describe('recover', () => {
  test('processes and an image are never both taken for the agent', () => {
    for (const [phase, facts] of EVERY) {
      const recovery = recover(phase, facts)
      // Sleeping on means that the image is the agent: nothing of it may run.
      if (recovery === 'sleep') expect(facts.alive).toBe(false)
      // Going on means that the tree is the agent: it must be there.
      if (recovery === 'adopt') expect(facts.alive).toBe(true)
    }
  })

  test('a whole image is never given up for a fresh start', () => {
    for (const phase of ['checkpointed', 'restoring'] as const) {
      for (const [other, facts] of EVERY) {
        if (other === phase && facts.imageComplete) expect(recover(phase, facts)).not.toBe('respawn')
      }
    }
  })

  test('without a reboot an image that is not whole is a failure, never a fresh start', () => {
    for (const phase of ['checkpointed', 'restoring'] as const) {
      some(phase, { alive: false, imageComplete: false, rebooted: false, restored: false }, 'lost')
      some(phase, { alive: false, imageComplete: false, rebooted: true, restored: false }, 'respawn')
    }
  })

  test('an image that is not whole is never slept on', () => {
    for (const [phase, facts] of EVERY) {
      const recovery = recover(phase, facts)
      if (recovery === 'sleep' || recovery === 'kill_and_sleep') {
        expect([phase, facts.imageComplete]).toEqual([phase, true])
      }
    }
  })

  test('what lives in RAM goes on', () => {
    some('running', { alive: true }, 'adopt')
    some('frozen', { alive: true }, 'adopt')
    some('checkpointing', { alive: true, imageComplete: false }, 'adopt')
    some('restoring', { alive: true, restored: true }, 'adopt')
  })

  test('a half restored tree is taken away and the image kept', () => {
    some('restoring', { alive: true, restored: false, imageComplete: true }, 'kill_and_sleep')
  })

  test('a dump that was cut off after its end counts, before it does not', () => {
    some('checkpointing', { alive: false, imageComplete: true }, 'sleep')
    some('checkpointing', { alive: true, imageComplete: true }, 'kill_and_sleep')
    some('checkpointing', { alive: false, imageComplete: false, rebooted: true, exited: false }, 'respawn')
    some('checkpointing', { alive: false, imageComplete: false, rebooted: false }, 'ended')
  })

  test('only a reboot makes an agent start afresh; one that ended by itself has ended', () => {
    some('running', { alive: false, rebooted: true, exited: false }, 'respawn')
    some('running', { alive: false, rebooted: false }, 'ended')
    some('running', { alive: false, exited: true }, 'ended')
  })

  test('a deploy that was cut off is done again, whatever runs', () => {
    some('starting', { alive: true }, 'respawn')
    some('starting', { alive: false, exited: false }, 'respawn')
  })

  test('a removal that was cut off is finished, a failure stays one', () => {
    some('stopping', {}, 'remove')
    some('failed', {}, 'keep')
  })
})
