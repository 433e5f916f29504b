import { log } from '../../log.ts'
import type { Runtime } from '../../runtime/runtime.ts'
import type { AgentRow, ComputerRow } from '../../store/types.ts'
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
  /** Fetches the answers that the agent waits for, and wakes it when the first is there. False: they cannot be had. */
  resumeCalls(): boolean
}

/** After a start of orb: makes a computer be there, and its agent and the database agree. */
export async function recoverAgent(context: RecoveryContext, rebooted: boolean): Promise<void> {
  const { runtime, computer, record, tree } = context
  await runtime.up(computer)
  // Steps of a build whose orb is gone: nobody reads them any more.
  await runtime.killCommands(computer, ['build'])
  const row = record.row()
  if (!row) return
  const facts = await factsOf(context, row, rebooted)
  await runtime.checkpoints.removeOtherImages(computer, row.image)
  const recovery = recover(row.phase, facts)
  if (recovery !== 'keep') log('info', 'agent found', { computer: computer.shortId, phase: row.phase, recovery })
  switch (recovery) {
    case 'keep':
      return
    case 'adopt':
      return tree.adopt(row)
    case 'kill_and_sleep':
      await runtime.killAgent(computer)
      return sleepOn(context, row)
    case 'sleep':
      return sleepOn(context, row)
    case 'ended':
      await tree.clear(row)
      return tree.end(row)
    case 'lost': {
      // Whatever there is of the image stays: it may be mended, and promote tries it again.
      await tree.clear({ ...row, image: null })
      const failureMessage = 'the checkpoint is not whole'
      record.step(row, { phase: 'failed', pid: null, failureReason: 'restore_failed', failureMessage })
      return record.say('its checkpoint is not whole: it cannot be restored')
    }
    case 'remove':
      await runtime.killAll(computer)
      await tree.clear(row)
      return record.forget()
    case 'respawn': {
      await tree.clear(row)
      record.say('lost its processes, started afresh (recovery)')
      const fresh = record.fresh(row.codeVersion)
      record.put(fresh)
      return tree.spawn(fresh, ' (recovery)')
    }
  }
}

async function factsOf(context: RecoveryContext, row: AgentRow, rebooted: boolean): Promise<Facts> {
  const { runtime, computer } = context
  const image = await runtime.checkpoints.settle(computer, row.image, rebooted)
  const exited = isExitOf(row, runtime.readExit(computer))
  return { ...image, alive: runtime.agentAlive(computer), exited, rebooted }
}

async function sleepOn(context: RecoveryContext, row: AgentRow): Promise<void> {
  const { slots, record, tree } = context
  const asleep = record.step(row, { phase: 'checkpointed', pid: null })
  if (row.image) tree.images.syncLater(row.image)
  if (!row.llmOutstanding) return
  // Its connections died with the orb that held them. Once it wakes it sees a reset, and its client library asks again.
  if (context.resumeCalls()) return record.say('orb was restarted and fetches the answer that it waits for')
  await slots.run('restore', () => tree.restore(asleep, 'recovery'))
}
