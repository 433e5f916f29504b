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
   * Does `work` over and over, with a fault at its first operation, at its second, and so on until it has no more;
   * `check` is then told what the fault was. A killed orb is started again in between.
   * Returns how many faults there were.
   */
  async atEach(mode: Mode, work: () => Promise<unknown>, check: (fault: string) => Promise<void>): Promise<number> {
    for (let nth = 1; nth <= MOST_OPERATIONS; nth++) {
      await this.tell('arm', { nth, mode })
      const died = await work().then(
        () => false,
        (error: unknown) => {
          if (mode === 'kill') return true
          throw error
        },
      )
      const { fired } = died ? { fired: `operation ${nth}` } : await this.tell('disarm')
      if (died) await this.again()
      await check(`${nth}: ${fired}`).catch((error) => {
        throw new Error(
          `after a fault (${mode}) at operation ${nth}, ${fired}: ${error}\n--- log of orb:\n${this.orb.log.split('\n').slice(-30).join('\n')}`,
        )
      })
      if (fired === '') return nth - 1
    }
    throw new Error(`still not over after ${MOST_OPERATIONS} operations`)
  }

  private async again(): Promise<void> {
    await this.orb.kill9()
    await this.orb.restart()
  }

  private async tell(path: 'arm' | 'disarm', order: object = {}) {
    const init = { method: 'POST', body: JSON.stringify(order), unix: this.orb.env['FAULTS_SOCKET'] }
    return Report.parse(await (await fetch(`http://orb/${path}`, init)).json())
  }
}
