import { log } from '../../log.ts'
import type { CriuProcess } from '../../runtime/criu-processes.ts'
import type { Runtime } from '../../runtime/runtime.ts'
import type { AgentRow, ComputerRow, UsageEvent } from '../../store/types.ts'
import { type Facts, recover } from './machine.ts'
import { type AgentRecord, isExitOf } from './record.ts'
import type { Slots } from './slots.ts'
import type { AgentTree } from './tree.ts'

export interface RecoveryContext {
  runtime: Runtime
  slots: Slots
  computer: ComputerRow
  record: AgentRecord
  tree: AgentTree
  /** Until then a former orb saw to it that what the database says of agents in memory was so; ms since the epoch. */
  lastSeenAt: number
  /** Fetches the answers that the agent waits for, and wakes it when the first is there. False: they cannot be had. */
  resumeCalls(): boolean
  /** What worked on images when orb started. */
  criu: CriuProcess[]
}

/** What is left to do, once it is known what the agent is: it may take long, and only who wants the agent has to wait. */
export type Rest = () => Promise<unknown>

/** What the database has of the agent leaves nothing to do: it is on disk, or ended, or there is none. */
export const shouldRest = (row: AgentRow | null): boolean =>
  row === null ||
  ((row.phase === 'failed' || (row.phase === 'checkpointed' && row.image !== null)) && !row.llmOutstanding)

/**
 * Whether the kernel agrees, without anything done. The computer need not be there for that: it is brought up for whoever
 * wants something in it.
 */
export function isAtRest({ runtime, computer, record, criu }: RecoveryContext): boolean {
  const row = record.row()
  return shouldRest(row) && runtime.isAtRest(computer, row?.image ?? null, criu)
}

/** What happened since the agent's row was written. */
export interface Since {
  /** The machine has booted. */
  rebooted: boolean
  /** Orb has been started: connections that it held are dead. */
  restarted: boolean
}

/** Makes a computer be there, and its agent and the database agree: after a start of orb, or a step that broke off. */
export async function recoverAgent(context: RecoveryContext, since: Since): Promise<Rest | undefined> {
  const { runtime, computer, record, tree } = context
  await runtime.up(computer)
  // Steps of a build whose orb is gone: nobody reads them any more.
  if (since.restarted) await runtime.killCommands(computer, ['build'])
  const row = record.row()
  if (!row) return undefined
  const facts = await factsOf(context, row, since.rebooted)
  await runtime.checkpoints.removeOtherImages(computer, row.image)
  const recovery = recover(row.phase, facts)
  if (recovery !== 'keep') log('info', 'agent found', { computer: computer.shortId, phase: row.phase, recovery })
  switch (recovery) {
    case 'keep':
      return undefined
    case 'adopt':
      tree.adopt(row, adoption(context, row))
      return undefined
    case 'kill_and_sleep':
      await runtime.killAgent(computer)
      return sleepOn(context, row, since)
    case 'sleep':
      return sleepOn(context, row, since)
    case 'ended':
      await tree.clear(row)
      await tree.end(row, endOf(context, row, since))
      return undefined
    case 'lost': {
      // Whatever there is of the image stays: it may be mended, and promote tries it again.
      await tree.clear({ ...row, image: null })
      const failureMessage = 'the checkpoint is not whole'
      const lost = { phase: 'failed', pid: null, failureReason: 'restore_failed', failureMessage } as const
      record.step(row, lost, undefined, { failed: true })
      record.say('its checkpoint is not whole: it cannot be restored')
      return undefined
    }
    case 'remove':
      await runtime.killAll(computer)
      await tree.clear(row)
      record.forget()
      return undefined
    case 'respawn': {
      const at = endOf(context, row, since)
      await tree.clear(row)
      record.say('lost its processes, started afresh (recovery)')
      const fresh = record.fresh(row.codeVersion)
      record.put(fresh, undefined, { at })
      return () => tree.spawn(fresh, 'recovery')
    }
  }
}

async function factsOf(context: RecoveryContext, row: AgentRow, rebooted: boolean): Promise<Facts> {
  const { runtime, computer } = context
  const image = await runtime.checkpoints.settle(computer, row.image, rebooted, context.criu)
  const exited = isExitOf(row, runtime.readExit(computer))
  return { ...image, alive: runtime.agentAlive(computer), exited, rebooted }
}

function sleepOn(context: RecoveryContext, row: AgentRow, since: Since): Rest | undefined {
  const { runtime, computer, slots, record, tree } = context
  const dumped = row.phase === 'checkpointing'
  const usage = dumped ? { checkpoint: true, at: runtime.checkpoints.times(computer, row.image).dumpedAt } : undefined
  const asleep = record.step(row, { phase: 'checkpointed', pid: null }, undefined, usage)
  if (row.image) tree.images.syncLater(row.image)
  if (!since.restarted || !row.llmOutstanding) return undefined
  // Its connections died with the orb that held them. Once it wakes it sees a reset, and its client library asks again.
  if (!context.resumeCalls()) return () => slots.run('restore', () => tree.restore(asleep, 'recovery'))
  record.say('orb was restarted and fetches the answer that it waits for')
  return undefined
}

/** What a transition that a former orb did not see the end of had come to. */
function adoption({ runtime, computer }: RecoveryContext, row: AgentRow): UsageEvent {
  if (row.phase === 'checkpointing') return { failed: true }
  return row.phase === 'restoring' ? { at: runtime.checkpoints.times(computer, row.image).restoredAt } : {}
}

/**
 * When the agent's processes ended, as far as it can be known: by what its pid 1 wrote down, else the last time that they
 * are known to have been there. The tenant may have written that, too: it counts only for the time without an orb.
 */
function endOf({ runtime, computer, lastSeenAt }: RecoveryContext, row: AgentRow, since: Since): number {
  if (!since.restarted) return Date.now()
  const exit = runtime.readExit(computer)
  return isExitOf(row, exit) ? Math.max(exit.at, lastSeenAt) : lastSeenAt
}
