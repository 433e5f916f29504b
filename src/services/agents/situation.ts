import { readMemory } from '../../runtime/memory.ts'
import type { Runtime } from '../../runtime/runtime.ts'
import type { ComputerRow } from '../../store/types.ts'
import type { Habits } from './habits.ts'
import type { Situation } from './policy.ts'

/** What the policy has to know of an agent that waits for its LLM, and of the host at this moment. */
export function situationOf(
  host: { runtime: Runtime; checkpointProblem: string | null; ladder: { checkpointAfterMs: number } },
  computer: ComputerRow,
  habits: Habits,
  elapsedMs: number,
  waits: readonly number[],
  reclaimedMs: number | null,
): Situation {
  const { runtime } = host
  const memory = readMemory()
  const canReclaim = memory.swapTotalBytes > 0 && runtime.canReclaim(computer)
  const residentBytes = runtime.agentMemory(computer)
  return {
    elapsedMs,
    checkpointAfterMs: host.ladder.checkpointAfterMs,
    waits,
    history: habits.history,
    bytes: residentBytes + runtime.agentSwap(computer),
    residentBytes,
    dumpMs: habits.dumpMs,
    restoreMs: habits.restoreMs,
    canCheckpoint: host.checkpointProblem === null,
    dumpBackoffMs: habits.dumpBackoffMs,
    reclaimedMs,
    swap: { totalBytes: canReclaim ? memory.swapTotalBytes : 0, freeBytes: memory.swapFreeBytes },
    memory: { availableShare: memory.availableBytes / memory.totalBytes, stalledPercent: memory.stalledPercent },
  }
}
