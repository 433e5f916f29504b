import { log } from '../../log.ts'
import type { AgentRow, ComputerRow } from '../../store/types.ts'
import type { AgentRecord } from './record.ts'
import type { TreeDeps, TreeOwner } from './tree.ts'

const PAGES_LOST = 'the page daemon ended before all memory was back'

/** What is done about an agent's image while nobody waits for it. */
export class Images {
  private syncing: Promise<void> = Promise.resolve()
  private dropping: Promise<void> = Promise.resolve()

  constructor(
    private readonly deps: Pick<TreeDeps, 'runtime' | 'dropConnections'>,
    private readonly computer: ComputerRow,
    private readonly record: AgentRecord,
    private readonly owner: Pick<TreeOwner, 'later'>,
  ) {}

  /** Resolves when nothing of this is left to do. */
  async idle(): Promise<void> {
    await Promise.all([this.syncing, this.dropping])
  }

  /** Until an image is on stable storage, a power cut would cost the agent what it has in memory. */
  syncLater(image: string): void {
    this.syncing = this.deps.runtime.checkpoints
      .syncImage(this.computer, image)
      .catch((error) => this.warn('a checkpoint is not on stable storage', error))
  }

  /** The image of a restored agent goes once its last page is in. A page that cannot come any more is the end of the agent. */
  dropLater(image: string): void {
    this.dropping = this.drop(image).catch((error) => this.warn('a checkpoint could not be removed', error))
  }

  private async drop(image: string): Promise<void> {
    const { runtime } = this.deps
    const whole = await runtime.checkpoints.drained(this.computer)
    if (!this.ownerOf(image)) return
    if (!whole && runtime.agentAlive(this.computer)) return this.owner.later(() => this.pagesLost(image))
    await runtime.checkpoints.removeImage(this.computer, image)
    const row = this.ownerOf(image)
    if (row) this.record.save(row, { image: null, imageBytes: null })
  }

  private async pagesLost(image: string): Promise<void> {
    const row = this.ownerOf(image)
    if (!row) return
    const failureReason = 'restore_failed'
    const failed = { phase: 'failed', pid: null, failureReason, failureMessage: PAGES_LOST } as const
    this.record.step(row, failed, undefined, { failed: true })
    await this.deps.runtime.killAgent(this.computer)
    this.deps.dropConnections(this.computer.id)
    this.record.say(`restore failed: ${PAGES_LOST}`)
  }

  /** The agent, if it still lives on this image. Whoever started, stopped or checkpointed it meanwhile has seen to the image. */
  private ownerOf(image: string): AgentRow | null {
    const row = this.record.row()
    const inRam = row?.phase === 'running' || row?.phase === 'frozen'
    return row && inRam && row.image === image ? row : null
  }

  private warn(what: string, error: unknown): void {
    log('error', what, { computer: this.computer.shortId, error })
  }
}
