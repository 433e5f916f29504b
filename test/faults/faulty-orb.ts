/** A real orb whose nth operation can be made to fail, or to be its last. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import { type Orb, startOrb } from '../support/orb.ts'

/** What is done to the operation: it fails, or orb is killed right before it. */
export type Mode = 'fail' | 'kill'

const Report = z.object({ count: z.number(), fired: z.string() })

/** No transition has as many operations: one that seems to is going round in circles. */
const MOST_OPERATIONS = 3000

export interface Round {
  /** Without a fault. */
  prepare?(): Promise<unknown>
  /** May reject when orb is killed. */
  work(): Promise<unknown>
  /** What must hold afterwards. */
  check(): Promise<void>
}

export class FaultyOrb {
  private constructor(
    readonly orb: Orb,
    private readonly dir: string,
  ) {}

  static async start(env: Record<string, string> = {}): Promise<FaultyOrb> {
    const dir = await mkdtemp(join(tmpdir(), 'orb-faults-'))
    const orb = await startOrb({
      env: { FAULTS_SOCKET: join(dir, 'socket'), ...env },
      preload: join(import.meta.dir, 'preload.ts'),
    })
    return new FaultyOrb(orb, dir)
  }

  async stop(): Promise<void> {
    await this.orb.stop().finally(() => rm(this.dir, { recursive: true, force: true }))
  }

  /**
   * Does `work` over and over, with a fault at its first operation, at its second, and so on until it has no more.
   * A killed orb is started again before `check`. Returns how many faults there were.
   */
  async atEach(mode: Mode, { prepare, work, check }: Round): Promise<number> {
    for (let nth = 1; nth <= MOST_OPERATIONS; nth++) {
      await prepare?.()
      await this.tell('arm', { nth, mode })
      // In the midst of a kill nothing that is asked of orb need succeed.
      await work().catch((error) => (mode === 'kill' ? undefined : Promise.reject(error)))
      const { fired, died } = await this.tell('disarm').then(
        ({ fired }) => ({ fired, died: false }),
        () => ({ fired: 'killed', died: true }),
      )
      if (died && mode === 'fail')
        throw new Error(`operation ${nth} failed and orb died of it:\n${this.orb.log.slice(-4000)}`)
      if (died) await this.again()
      await check().catch((error) => {
        const log = this.orb.log.split('\n').filter((line) => !line.includes(' info request '))
        throw new Error(`after a fault (${mode}) at operation ${nth}, ${fired}: ${error}\n${log.slice(-20).join('\n')}`)
      })
      if (fired === '') return nth - 1
    }
    throw new Error(`still not over after ${MOST_OPERATIONS} operations`)
  }

  /** Whether orb runs. */
  alive(): Promise<boolean> {
    return this.tell('look').then(
      () => true,
      () => false,
    )
  }

  private async again(): Promise<void> {
    await this.orb.kill9()
    await this.orb.restart()
  }

  private async tell(path: 'arm' | 'disarm' | 'look', order: object = {}) {
    const init = { method: 'POST', body: JSON.stringify(order), unix: this.orb.env['FAULTS_SOCKET'] }
    return Report.parse(await (await fetch(`http://orb/${path}`, init)).json())
  }
}
