import { expect, test } from 'bun:test'
import type { AgentRow } from '../../store/types.ts'
import { type Circumstances, newsOf } from './news.ts'

const row = (more: Partial<AgentRow>): AgentRow => ({
  computerId: 'c',
  phase: 'running',
  generation: 1,
  pid: 4211,
  image: null,
  imageBytes: null,
  startedAt: 5,
  exitCode: null,
  stderrTail: null,
  failureReason: null,
  failureMessage: null,
  sleepReason: null,
  codeVersion: '1a2b3c4',
  llmOutstanding: false,
  lastWakeMs: null,
  ...more,
})

type Case = [string, Partial<AgentRow> | null, Partial<AgentRow>, Circumstances, object[]]

const spawned = (more: object) => ({ type: 'agent.spawned', data: { port: 10_000, code_version: '1a2b3c4', ...more } })
const checkpointed = (more: object) => ({
  type: 'agent.checkpointed',
  data: { port: 10_000, pid: null, kind: 'full', ...more },
})
const restored = (more: object) => ({ type: 'agent.restored', data: { port: 10_000, pid: 4211, ...more } })
const finished = (more: object) => ({ type: 'agent.finished', data: { port: 10_000, pid: null, ...more } })

test.each<Case>([
  ['a start', { phase: 'starting', pid: null }, {}, { start: 'deploy' }, [spawned({ pid: 4211, reason: 'deploy' })]],
  ['a fresh start', { phase: 'starting' }, {}, { start: 'recovery' }, [spawned({ pid: 4211, reason: 'recovery' })]],
  ['an adopted tree', { phase: 'running' }, {}, {}, []],
  ['a thaw', { phase: 'frozen' }, {}, {}, []],
  ['a freeze', { phase: 'running' }, { phase: 'frozen' }, {}, []],
  ['a dump that begins', { phase: 'frozen' }, { phase: 'checkpointing', sleepReason: 'llm' }, {}, []],
  ['a dump that failed', { phase: 'checkpointing' }, { phase: 'frozen' }, {}, []],
  [
    'a dump',
    { phase: 'checkpointing' },
    { phase: 'checkpointed', sleepReason: 'idle', imageBytes: 77 },
    { durationMs: 312 },
    [checkpointed({ reason: 'idle', duration_ms: 312, size_bytes: 77 })],
  ],
  [
    'a dump whose end no orb saw',
    { phase: 'checkpointing' },
    { phase: 'checkpointed', sleepReason: 'llm' },
    {},
    [checkpointed({ reason: 'llm', duration_ms: null, size_bytes: null })],
  ],
  ['a restore that was cut off', { phase: 'restoring' }, { phase: 'checkpointed', sleepReason: 'llm' }, {}, []],
  ['a restore that begins', { phase: 'checkpointed' }, { phase: 'restoring' }, {}, []],
  [
    'a restore',
    { phase: 'restoring' },
    {},
    { wake: 'http', durationMs: 40 },
    [restored({ reason: 'http', duration_ms: 40 })],
  ],
  [
    'a restore whose end no orb saw',
    { phase: 'restoring' },
    {},
    {},
    [restored({ reason: 'recovery', duration_ms: null })],
  ],
  [
    'an exit',
    { phase: 'running' },
    { phase: 'failed', failureReason: 'exit', exitCode: 3 },
    {},
    [finished({ reason: 'exit', exit_code: 3 })],
  ],
  [
    'an end for want of memory',
    { phase: 'frozen' },
    { phase: 'failed', failureReason: 'oom', exitCode: 137 },
    {},
    [finished({ reason: 'oom', exit_code: 137 })],
  ],
  [
    'a failed restore',
    { phase: 'restoring' },
    { phase: 'failed', failureReason: 'restore_failed' },
    {},
    [finished({ reason: 'restore_failed', exit_code: null })],
  ],
  [
    'a failed restore that fails again',
    { phase: 'restoring', failureReason: 'restore_failed' },
    { phase: 'failed', failureReason: 'restore_failed' },
    {},
    [],
  ],
  [
    'a program that could not be started',
    { phase: 'starting' },
    { phase: 'failed', failureReason: 'exit' },
    { start: 'deploy' },
    [],
  ],
  [
    'one that could not be started again',
    { phase: 'starting' },
    { phase: 'failed', failureReason: 'exit' },
    { start: 'recovery' },
    [finished({ reason: 'exit', exit_code: null })],
  ],
  [
    'one that ended before its start was written down',
    { phase: 'starting' },
    { phase: 'failed', failureReason: 'exit', exitCode: 1, pid: null },
    {},
    [spawned({ pid: null, reason: 'deploy' }), finished({ reason: 'exit', exit_code: 1 })],
  ],
  ['a first deploy', null, { phase: 'starting' }, { end: 'replaced' }, []],
  [
    'a deploy over a sleeping one',
    { phase: 'checkpointed' },
    { phase: 'starting' },
    { end: 'replaced' },
    [finished({ reason: 'replaced', exit_code: null })],
  ],
  [
    'a deploy over one that has ended',
    { phase: 'failed', failureReason: 'exit' },
    { phase: 'starting' },
    { end: 'replaced' },
    [],
  ],
  ['a start in place of one that was lost', { phase: 'running' }, { phase: 'starting' }, {}, []],
  [
    'a stop',
    { phase: 'running' },
    { phase: 'stopping' },
    { end: 'restart' },
    [finished({ reason: 'restart', exit_code: null })],
  ],
  [
    'a stop of one that has ended',
    { phase: 'failed', failureReason: 'oom' },
    { phase: 'stopping' },
    { end: 'deleted' },
    [],
  ],
  ['a stop that is done again', { phase: 'stopping' }, { phase: 'stopping' }, { end: 'deleted' }, []],
])('%s', (_, before, after, how, news) => {
  expect(newsOf(before && row(before), row(after), how)).toEqual(news as ReturnType<typeof newsOf>)
})
