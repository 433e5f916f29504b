import { OrbError } from '../../errors.ts'
import type { AgentPhase, AgentRow, AgentState } from '../../store/types.ts'

/**
 * The agent's life: every decision about it, without an effect. A transition is written to the database before the
 * kernel is touched (`via`) and again afterwards (`to`); one that a crash interrupted is judged by `recover`.
 */

export type Wish = 'freeze' | 'reclaim' | 'checkpoint' | 'wake'

export type Step =
  | { action: 'freeze'; to: 'frozen' }
  /** A frozen agent's memory goes to swap: frozen it stays, and a thaw is what wakes it. */
  | { action: 'reclaim'; to: 'frozen' }
  | { action: 'thaw'; to: 'running' }
  | { action: 'checkpoint'; via: 'checkpointing'; to: 'checkpointed' }
  | { action: 'restore'; via: 'restoring'; to: 'running' }

export type Decision =
  /** It is so already. */
  | { kind: 'nothing' }
  | { kind: 'step'; step: Step }
  /** The agent has ended: nothing can be done with it but a new start. */
  | { kind: 'failed' }

const NOTHING: Decision = { kind: 'nothing' }
const FAILED: Decision = { kind: 'failed' }
const FREEZE: Decision = { kind: 'step', step: { action: 'freeze', to: 'frozen' } }
const RECLAIM: Decision = { kind: 'step', step: { action: 'reclaim', to: 'frozen' } }
const THAW: Decision = { kind: 'step', step: { action: 'thaw', to: 'running' } }
const CHECKPOINT: Decision = { kind: 'step', step: { action: 'checkpoint', via: 'checkpointing', to: 'checkpointed' } }
const RESTORE: Decision = { kind: 'step', step: { action: 'restore', via: 'restoring', to: 'running' } }

const DECISIONS: Record<AgentState, Record<Wish, Decision>> = {
  running: { freeze: FREEZE, reclaim: FREEZE, checkpoint: CHECKPOINT, wake: NOTHING },
  frozen: { freeze: NOTHING, reclaim: RECLAIM, checkpoint: CHECKPOINT, wake: THAW },
  checkpointed: { freeze: NOTHING, reclaim: NOTHING, checkpoint: NOTHING, wake: RESTORE },
  failed: { freeze: FAILED, reclaim: FAILED, checkpoint: FAILED, wake: FAILED },
}

/** What a wish takes, from a settled state. A failed restore kept its image: it may be tried again. */
export function decide(state: AgentState, wish: Wish, restoreFailed: boolean): Decision {
  if (state === 'failed' && wish === 'wake' && restoreFailed) return RESTORE
  return DECISIONS[state][wish]
}

/** The LLM proxy's port on the gateway: what the API calls an agent's `port`. */
export const AGENT_PORT = 10_000

/** The answer to a wish that takes a live agent (Orb Cloud contract §7.4). */
export const agentFailed = (verb: 'demote' | 'promote'): OrbError =>
  new OrbError('agent_failed', `agent ${AGENT_PORT} has failed — cannot ${verb}`)

/** What of the kernel and the disk a start of orb finds for an agent. */
export interface Facts {
  /** Processes of its tree are there. */
  alive: boolean
  /** The image named in the database is whole, and after a reboot was on stable storage. */
  imageComplete: boolean
  /** The last restore from it ran to its end. */
  restored: boolean
  /** Its pid 1 wrote down an exit code after it was started. */
  exited: boolean
  /** The machine has booted since orb ran last. */
  rebooted: boolean
}

export type Recovery =
  /** The tree that is there is the agent: let it run. */
  | 'adopt'
  /** Nothing in RAM, the image is whole: it sleeps on. */
  | 'sleep'
  /** Whatever is there is not, or not wholly, the agent: kill it; the image is the agent, it sleeps on. */
  | 'kill_and_sleep'
  /** It ended while nobody looked. */
  | 'ended'
  /** Its processes are lost through no fault of its own: start it afresh, after killing what is left. */
  | 'respawn'
  /** The image is not whole and there is no process: nothing is left of it. */
  | 'lost'
  /** It was being removed: finish that. */
  | 'remove'
  /** It had failed before. */
  | 'keep'

/** What is to be done about an agent that the database shows in `phase` when orb starts. */
export function recover(phase: AgentPhase, facts: Facts): Recovery {
  switch (phase) {
    case 'failed':
      return 'keep'
    case 'stopping':
      return 'remove'
    case 'starting':
      // What runs may be the tree that was to be replaced.
      return facts.exited && !facts.alive ? 'ended' : 'respawn'
    case 'running':
    case 'frozen':
      if (facts.alive) return 'adopt'
      return facts.rebooted && !facts.exited ? 'respawn' : 'ended'
    case 'checkpointing':
      // criu ends the tree last of all: what still lives beside a whole image is dying.
      if (facts.imageComplete) return facts.alive ? 'kill_and_sleep' : 'sleep'
      if (facts.alive) return 'adopt'
      return facts.rebooted && !facts.exited ? 'respawn' : 'ended'
    case 'checkpointed':
      if (facts.imageComplete) return facts.alive ? 'kill_and_sleep' : 'sleep'
      if (facts.alive) return 'adopt'
      // A power cut that came before the image was on stable storage: it was as good as in RAM.
      return facts.rebooted ? 'respawn' : 'lost'
    case 'restoring':
      if (facts.restored && facts.alive) return 'adopt'
      if (facts.alive) return facts.imageComplete ? 'kill_and_sleep' : 'lost'
      if (facts.restored && facts.exited) return 'ended'
      if (facts.imageComplete) return 'sleep'
      return facts.rebooted ? 'respawn' : 'lost'
  }
}

const SETTLED: ReadonlySet<AgentPhase> = new Set<AgentPhase>(['running', 'frozen', 'checkpointed', 'failed'])

/** A phase that is a state. */
export const isSettled = (phase: AgentPhase): phase is AgentState => SETTLED.has(phase)

/** What a client is shown while a transition is under way: the state that it comes from. */
export function shownState(phase: AgentPhase): AgentState {
  if (isSettled(phase)) return phase
  return phase === 'restoring' ? 'checkpointed' : 'running'
}

/** Whether the agent counts as one (`agent_count`, `killed_agents`). */
export const isLive = (row: AgentRow | null): boolean =>
  row !== null && row.phase !== 'failed' && row.phase !== 'stopping'
