import type { AgentRow, FailureReason, SleepReason, UsageEvent } from '../../store/types.ts'
import { AGENT_PORT } from './machine.ts'

export type WakeReason = 'llm' | 'http' | 'manual' | 'build' | 'recovery'
type EndReason = FailureReason | 'replaced' | 'restart' | 'deleted'

/** What an agent's row does not say of a transition. */
export interface Circumstances extends UsageEvent {
  /** Of a start: `recovery` is one that nobody asked for. */
  start?: 'deploy' | 'recovery'
  wake?: WakeReason
  /** Who asked for the agent's end. */
  end?: 'replaced' | 'restart' | 'deleted'
  /** Of a dump or a restore. */
  durationMs?: number
}

interface OfAgent {
  port: number
  /** Host pid, or null without a process. */
  pid: number | null
}

/** What webhooks are told of an agent (Orb Cloud contract §16). Figures that a crash of orb took are null. */
export type AgentNews =
  | { type: 'agent.spawned'; data: OfAgent & { reason: 'deploy' | 'recovery'; code_version: string | null } }
  | {
      type: 'agent.checkpointed'
      data: OfAgent & { reason: SleepReason; kind: 'full'; duration_ms: number | null; size_bytes: number | null }
    }
  | { type: 'agent.restored'; data: OfAgent & { reason: WakeReason; duration_ms: number | null } }
  | { type: 'agent.finished'; data: OfAgent & { reason: EndReason; exit_code: number | null } }

/** Whether it began and its end has not been told: a restore that failed and is tried again has ended the agent already. */
const lives = (row: AgentRow | null): row is AgentRow =>
  row !== null && row.phase !== 'failed' && row.phase !== 'stopping' && row.failureReason === null

/** What the step from one row of a computer's agent to the next means to others, also where recovery makes it. */
export function newsOf(before: AgentRow | null, after: AgentRow, how: Circumstances): AgentNews[] {
  switch (after.phase) {
    case 'starting':
      return how.end === 'replaced' && lives(before) ? [finished('replaced', null)] : []
    case 'stopping':
      return how.end !== undefined && lives(before) ? [finished(how.end, null)] : []
    case 'failed':
      return lives(before) ? endOf(before, after, how) : []
    case 'checkpointed':
      return before?.phase === 'checkpointing' ? [checkpointed(after, how)] : []
    case 'running':
      if (before?.phase === 'starting') return [spawned(after, how)]
      return before?.phase === 'restoring' || before?.phase === 'checkpointed' ? [restored(after, how)] : []
    default:
      return []
  }
}

function endOf(before: AgentRow, after: AgentRow, how: Circumstances): AgentNews[] {
  const end = finished(after.failureReason ?? 'exit', after.exitCode)
  if (before.phase !== 'starting') return [end]
  // It ran and ended before orb could write down that it runs.
  if (after.exitCode !== null) return [spawned(after, how), end]
  // It never ran. Others know of it only where it was to take the place of one that was lost.
  return how.start === 'recovery' ? [end] : []
}

const spawned = ({ pid, codeVersion }: AgentRow, { start = 'deploy' }: Circumstances): AgentNews => ({
  type: 'agent.spawned',
  data: { port: AGENT_PORT, pid, reason: start, code_version: codeVersion },
})

const checkpointed = ({ sleepReason, imageBytes }: AgentRow, { durationMs }: Circumstances): AgentNews => ({
  type: 'agent.checkpointed',
  data: {
    port: AGENT_PORT,
    pid: null,
    reason: sleepReason ?? 'manual',
    kind: 'full',
    duration_ms: durationMs ?? null,
    size_bytes: imageBytes,
  },
})

const restored = ({ pid }: AgentRow, { wake = 'recovery', durationMs }: Circumstances): AgentNews => ({
  type: 'agent.restored',
  data: { port: AGENT_PORT, pid, reason: wake, duration_ms: durationMs ?? null },
})

const finished = (reason: EndReason, exitCode: number | null): AgentNews => ({
  type: 'agent.finished',
  data: { port: AGENT_PORT, pid: null, reason, exit_code: exitCode },
})
