import { OrbError } from '../../errors.ts'
import type { Exit } from '../../runtime/inside.ts'
import { appendOrbLine } from '../../runtime/log-file.ts'
import type { LogSource } from '../../runtime/logs.ts'
import type { ComputerPaths } from '../../runtime/paths.ts'
import type { AgentRepository } from '../../store/agents.ts'
import type { AgentRow, ComputerRow } from '../../store/types.ts'
import { type AgentNews, type Circumstances, newsOf } from './news.ts'

/** Whether an exit is that of the agent in the row, and not of one before it. Clocks may jump; the number of a start does not. */
export const isExitOf = (row: AgentRow, exit: Exit | null): exit is Exit => {
  if (exit === null) return false
  return exit.life === null ? exit.at >= (row.startedAt ?? 0) : exit.life === row.startedAt
}

/** Where others are told of agents. */
export interface Outbox {
  /** Whether anybody of the organisation wants to be told. */
  isWatched(orgId: string): boolean
  /** Within the transaction that stores what it is about. */
  tell(computer: ComputerRow, news: AgentNews): void
}

/** What is written down of one agent: its row in the database, and orb's lines in its log. */
export class AgentRecord {
  /** What the database holds; this process is its only writer. Undefined: not read yet. */
  private current: AgentRow | null | undefined

  constructor(
    private readonly agents: AgentRepository,
    private readonly computer: ComputerRow,
    private readonly paths: ComputerPaths,
    private readonly outbox: Outbox,
  ) {}

  /** As it stands, transitions included. */
  row(): AgentRow | null {
    if (this.current === undefined) this.current = this.agents.get(this.computer.id)
    return this.current
  }

  /** @throws OrbError agent_not_found */
  existing(): AgentRow {
    const row = this.row()
    if (!row) throw new OrbError('agent_not_found', 'this computer has no agent; deploy one first')
    return row
  }

  /** The row of an agent that is about to be started, one generation on. */
  fresh(codeVersion: string | null): AgentRow {
    return {
      computerId: this.computer.id,
      phase: 'starting',
      generation: (this.row()?.generation ?? 0) + 1,
      pid: null,
      image: null,
      imageBytes: null,
      startedAt: Date.now(),
      exitCode: null,
      stderrTail: null,
      failureReason: null,
      failureMessage: null,
      sleepReason: null,
      codeVersion,
      llmOutstanding: false,
      lastWakeMs: null,
    }
  }

  /** Puts the row in place of the former one; with `within` in one transaction with what that stores. */
  put(row: AgentRow, within: (store: () => void) => void = (store) => store(), how: Circumstances = {}): void {
    const tell = this.telling(row, how)
    within(() => {
      this.agents.put(row, how)
      tell?.()
    })
    this.current = row
  }

  /**
   * Sets fields of the agent, if it still has the generation of `row`, and has others told what that means.
   * @throws OrbError internal when it was overtaken
   */
  save(row: AgentRow, changes: Partial<AgentRow>, survives?: 'power cut' | 'crash', how: Circumstances = {}): void {
    const { computerId: _, ...fields } = changes
    const after = { ...(this.row() ?? row), ...fields }
    if (!this.agents.update(this.computer.id, row.generation, fields, survives, how, this.telling(after, how))) {
      throw new OrbError('internal', 'the agent was changed by somebody else meanwhile')
    }
    this.current = after
  }

  /** Begins a transition: the fields, and the next generation, which the returned row holds. */
  step(row: AgentRow, changes: Partial<AgentRow>, survives?: 'power cut' | 'crash', how: Circumstances = {}): AgentRow {
    const generation = row.generation + 1
    this.save(row, { ...changes, generation }, survives, how)
    return { ...row, ...changes, generation }
  }

  forget(): void {
    this.agents.remove(this.computer.id)
    this.current = null
  }

  /** Undefined when nobody is to be told anything: a wake must not pay for what nobody wants to know. */
  private telling(after: AgentRow, how: Circumstances): (() => void) | undefined {
    if (!this.outbox.isWatched(this.computer.orgId)) return undefined
    const news = newsOf(this.row(), after, how)
    if (news.length === 0) return undefined
    return () => {
      for (const one of news) this.outbox.tell(this.computer, one)
    }
  }

  /** A line of orb's own in the computer's log. */
  say(text: string): void {
    appendOrbLine(this.paths.log, text, Date.now())
  }

  /** Where the computer's log lies. */
  get logSource(): LogSource {
    return { rootDir: this.paths.rootfs, orbLog: this.paths.log }
  }
}
