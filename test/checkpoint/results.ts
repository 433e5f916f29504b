/** What came of each cell, and the table of it. */
import { readFileSync } from 'node:fs'
import { cpus, release, totalmem } from 'node:os'
import { join } from 'node:path'
import { messageOf } from '../../src/errors.ts'
import { PROGRAMS, type Program, type Situation, type WayName } from './programs.ts'
import { type Sleep, WAYS } from './ways.ts'

/** Names the file that a run of the whole matrix writes its table to. */
const TABLE_FILE = process.env['ORB_MATRIX_FILE']
const MB = 1_000_000
const GIB = 1024 ** 3

export interface Cell {
  program: Program
  situation: Situation
  way: WayName
}

export type Slept = Sleep & { wakeMs: number | null }
type Outcome = Slept | { fails: string }

const TITLES: Record<Situation, string> = {
  idle: 'idle',
  plain: 'waiting for an answer',
  stream: 'in the middle of a stream',
}

export class Results {
  private readonly outcomes = new Map<string, Outcome>()

  /** Does what a cell asks, and keeps what came of it; rejects as `work` does. */
  async record(cell: Cell, work: () => Promise<Slept>): Promise<void> {
    try {
      this.outcomes.set(key(cell), await work())
    } catch (thrown) {
      const [line = ''] = messageOf(thrown).split('\n')
      this.outcomes.set(key(cell), { fails: line })
      throw thrown
    }
  }

  async write(): Promise<void> {
    if (TABLE_FILE) await Bun.write(TABLE_FILE, this.table())
  }

  private table(): string {
    return `${header()}\n${WAYS.map((way) => this.section(way.name, way.situations)).join('\n')}`
  }

  private section(way: WayName, situations: Situation[]): string {
    const rows = PROGRAMS.map((program) => {
      const cells = situations.map((situation) => this.text({ program, situation, way }))
      return `| **${program.name}**: ${program.what} | ${cells.join(' | ')} |`
    })
    const titles = situations.map((situation) => TITLES[situation])
    const reasons = PROGRAMS.flatMap((program) =>
      situations.flatMap((situation) => {
        const outcome = this.outcomes.get(key({ program, situation, way }))
        const reason = outcome && ('fails' in outcome ? outcome.fails : outcome.refused)
        return reason ? [`- ${program.name}, ${TITLES[situation]}: \`${reason}\``] : []
      }),
    )
    return [
      `## By ${way}\n`,
      `| program | ${titles.join(' | ')} |`,
      `|---${'|---'.repeat(titles.length)}|`,
      ...rows,
      ...(reasons.length > 0 ? ['\nThe reasons given:\n', ...reasons] : []),
      '',
    ].join('\n')
  }

  private text(cell: Cell): string {
    const outcome = this.outcomes.get(key(cell))
    if (!outcome) return 'not run'
    if ('fails' in outcome) return '**fails**'
    if (outcome.refused !== null) return 'refused'
    const size = outcome.bytes === null ? [] : [`${(outcome.bytes / MB).toFixed(outcome.bytes < 10 * MB ? 1 : 0)} MB`]
    const times = [outcome.sleepMs, outcome.wakeMs].filter((ms) => ms !== null)
    return ['works', [...size, `${times.join(' + ')} ms`].join(', ')].join(': ')
  }
}

const key = ({ program, situation, way }: Cell): string => `${way}/${situation}/${program.name}`

const criuVersion = (): string =>
  /^CRIU (\S+)/.exec(readFileSync(join(import.meta.dir, '../../build/criu/VERSION'), 'utf8'))?.[1] ?? 'unknown'

const header = (): string => `# What sleeps and wakes

Made by \`./scripts/checkpoint-matrix\`, which runs \`test/checkpoint\` and writes this file; not edited by hand. This run: kernel
${release()}, CRIU ${criuVersion()}, ${cpus().length} cores, ${Math.round(totalmem() / GIB)} GiB of memory.

Each cell is an agent in a computer of its own. It is put to sleep, has then no process (checkpoint) or hardly any memory (reclaim), is
woken by what wakes it in life, and proves that nothing of its state was lost or came twice:

- **idle**: demoted, woken by a public request to its own server, or by promote where it has none that it needs.
- **waiting for an answer**: sent to sleep by the freeze ladder during an LLM call, woken by the answer.
- **in the middle of a stream**: demoted while an event stream is open and silent after its first events, woken by the next one.

*works* is followed by the size of the checkpoint, and by what the dump and the restore took, in that order. The restore is over when the
agent runs; its pages follow as it touches them. With reclaim it is what went to swap and how long that took: orb chooses it for agents that wait
for an answer, so that there is no other column. *refused*: orb said why and the agent went on unharmed.

Known to be lost in a checkpoint: UDP datagrams on the way inside the computer, and the signal of an \`alarm\` that runs out while the agent is frozen.
`
