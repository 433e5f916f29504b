import type { Settings } from '../config.ts'
import type { AgentRow, ComputerRow, PortRow } from '../store/types.ts'
import { isoTime, isoTimeOrNull } from '../time.ts'
import { AGENT_PORT, isLive, shownState } from './agents/machine.ts'
import type { AgentView, ComputerStatus, ComputerView } from './types.ts'

/** Name of a computer below the base domain, and its URL with scheme and port of the API's own. */
export function addressOf(computer: ComputerRow, settings: Settings): { subdomain: string; url: string } {
  const subdomain = `${computer.shortId}.${settings.domain}`
  const { protocol, port } = new URL(settings.publicUrl)
  return { subdomain, url: `${protocol}//${subdomain}${port ? `:${port}` : ''}` }
}

/**
 * Orb Cloud contract §3.
 * @param condition what is to be said of the computer beside its agent: a build is under way, or its swarm could not start one
 */
export function computerView(
  computer: ComputerRow,
  row: AgentRow | null,
  condition: 'building' | 'failed' | null,
  ports: PortRow[],
  settings: Settings,
): ComputerView {
  return {
    id: computer.id,
    computer_id: computer.id,
    short_id: computer.shortId,
    org_id: computer.orgId,
    name: computer.name,
    runtime_mb: computer.runtimeMb,
    disk_mb: computer.diskMb,
    status: statusOf(row, condition),
    agent_count: isLive(row) ? 1 : 0,
    agent_state: row && row.phase !== 'stopping' ? shownState(row.phase) : null,
    port_mappings: ports.map(({ hostPort, containerPort }) => ({ host_port: hostPort, container_port: containerPort })),
    ...addressOf(computer, settings),
    user_id: computer.userId,
    swarm_id: computer.swarmId,
    replica_index: computer.replicaIndex,
    created_at: isoTime(computer.createdAt),
    updated_at: isoTime(computer.updatedAt),
  }
}

function statusOf(row: AgentRow | null, condition: 'building' | 'failed' | null): ComputerStatus {
  if (condition === 'building') return 'building'
  if (!row || row.phase === 'stopping') return condition ?? 'ready'
  return row.phase === 'failed' ? 'failed' : 'active'
}

/** Orb Cloud contract §7.3. @param residentBytes memory that the agent is charged for */
export const agentView = (computer: ComputerRow, row: AgentRow, name: string, residentBytes: number): AgentView => ({
  computer_id: computer.id,
  name,
  port: AGENT_PORT,
  pid: row.pid,
  state: shownState(row.phase),
  resident_bytes: residentBytes,
  sandboxed: true,
  code_version: row.codeVersion,
  started_at: isoTimeOrNull(row.startedAt),
  exit_code: row.exitCode,
  stderr_tail: row.stderrTail,
  failure_reason: row.failureReason,
  sleep_reason: row.phase === 'checkpointed' ? row.sleepReason : null,
})
