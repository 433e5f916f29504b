import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { z } from 'zod'
import { Computer } from '../support/computer.ts'
import { remains, until } from '../support/sweep.ts'
import type { Mode } from './faulty-orb.ts'
import { programs } from './programs.ts'
import { expectHonest, Scene } from './scene.ts'

/** One test goes through all operations of a transition. */
setDefaultTimeout(15 * 60_000)

const MODES: Mode[] = ['fail', 'kill']
/** Each of these transitions has far more operations: fewer would mean that they are not seen. */
const FEW = 10
const Listed = z.object({ computers: z.array(z.object({ id: z.string() })) })

let scene: Scene

beforeAll(async () => {
  scene = await Scene.start()
})
afterAll(() => scene?.stop())

for (const mode of MODES) {
  describe(`each operation: ${mode}`, () => {
    test('of a checkpoint', async () => {
      const faults = await scene.faulty.atEach(mode, {
        work: async () => expectHonest(await scene.demote()),
        check: () => scene.expectWhole(['running', 'checkpointed']),
      })
      expect(faults).toBeGreaterThan(FEW)
    })

    test('of a restore', async () => {
      const faults = await scene.faulty.atEach(mode, {
        prepare: async () => expect(await scene.demote()).toMatchObject({ status: 200 }),
        work: async () => expectHonest(await scene.promote()),
        check: () => scene.expectWhole(['running', 'checkpointed', 'failed']),
      })
      expect(faults).toBeGreaterThan(FEW)
    })

    test('of a call that the agent sleeps through', async () => {
      expect(await scene.callAtEach(mode)).toBeGreaterThan(FEW)
    })

    test('of a start and an end', async () => {
      const other = await scene.faulty.orb.computer()
      await other.deployAgent()
      const faults = await scene.faulty.atEach(mode, {
        work: async () => {
          expectHonest(await other.call('POST', '/agents'))
          expectHonest(await other.call('POST', '/restart'))
        },
        check: async () => {
          expect(programs(other).length).toBeLessThanOrEqual(1)
          expect((await other.call('POST', '/agents')).status).toBe(201)
          expect(await until(() => programs(other).length === 1)).toBe(true)
        },
      })
      expect(faults).toBeGreaterThan(FEW)
      expect((await other.call('DELETE', '')).status).toBe(200)
    })

    test('of making and deleting a computer', async () => {
      const { orb } = scene.faulty
      const files = (id: string) => join(orb.dataDir, 'computers', id)
      const ids = async () => (await orb.ask(Listed, 'GET', '/v1/computers')).computers.map(({ id }) => id)
      let made = ''
      const faults = await scene.faulty.atEach(mode, {
        work: async () => {
          made = ''
          const answer = await orb.call('POST', '/v1/computers', { name: 'short-lived', disk_mb: 64 })
          expectHonest(answer)
          made = String(answer.json['id'] ?? '')
          if (made) expectHonest(await orb.call('DELETE', `/v1/computers/${made}`))
        },
        check: async () => {
          for (const id of await ids()) {
            if (id === scene.computer.id) continue
            const left = new Computer(orb, id)
            expect((await left.call('DELETE', '')).status).toBe(200)
            expect(remains(files(id), [left.name])).toEqual([])
          }
          expect(await ids()).toEqual([scene.computer.id])
          if (!made || !existsSync(files(made))) return
          // What a deletion had to leave is cleared away at the next start.
          await orb.terminate()
          await orb.restart()
          expect(await until(() => !existsSync(files(made)))).toBe(true)
        },
      })
      expect(faults).toBeGreaterThan(FEW)
    })
  })
}
