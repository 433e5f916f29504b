import { afterEach, beforeEach, expect, type Mock, spyOn, test } from 'bun:test'
import type { ComputerRow } from '../store/types.ts'
import type { Life } from './agents/life.ts'
import { Janitor, type JanitorDeps } from './janitor.ts'

const NOTHING = { computers: 0, directories: 0, loopDevices: 0, processes: 0, runtimes: 0, spoolFiles: 0 }

let stderr: Mock<typeof process.stderr.write>
beforeEach(() => {
  stderr = spyOn(process.stderr, 'write').mockImplementation(() => true)
})
afterEach(() => stderr.mockRestore())

const life = (shortId: string, removeStrays: () => Promise<number>): Life => {
  const computer = { id: `${shortId}-0`, shortId } as ComputerRow
  return { computer, deleted: new AbortController().signal, removeStrays } as unknown as Life
}

/** What it logs in its first round. */
async function firstRound(deps: {
  lives: Life[]
  up: string[]
  known?: string[]
  swept?: object
  locks?: number
  layers?: number
  fresh?: boolean
}) {
  const janitor = new Janitor({
    runtime: {
      hasVanished: ({ shortId }) => !deps.up.includes(shortId),
      removeStrays: async (known) => {
        deps.known?.push(...known())
        return { ...NOTHING, ...deps.swept }
      },
      network: { repairLocks: async () => deps.locks ?? 0 },
    },
    store: { orgs: { isEmpty: () => deps.fresh ?? false } } as JanitorDeps['store'],
    registry: { all: () => deps.lives },
    known: () => new Set(deps.lives.map(({ computer }) => computer.id)),
    removeUnusedLayers: async () => deps.layers ?? 0,
  })
  await janitor.stop()
  return stderr.mock.calls.map(([line]) => String(line).replace(/^\S+ /, '').trimEnd())
}

test('a healthy server is told so', async () => {
  const known: string[] = []
  const said = await firstRound({ lives: [life('a', async () => 0)], up: ['a'], known })
  expect(said).toEqual(['info no leftovers'])
  expect(known).toEqual(['a-0'])
})

test('with a database that knows nobody nothing is taken for a leftover', async () => {
  const known: string[] = []
  const said = await firstRound({ lives: [], up: [], known, swept: { directories: 3 }, fresh: true })
  expect(said[0]).toStartWith('info the database is new')
  expect(said.join()).not.toContain('directories')
  expect(known).toEqual([])
})

test('what was removed is counted, kind by kind', async () => {
  const lives = [life('a', async () => 2), life('b', async () => 1)]
  const said = await firstRound({ lives, up: ['a', 'b'], swept: { loopDevices: 4 }, layers: 2, locks: 1 })
  expect(said).toEqual(['info leftovers were removed loopDevices=4 layers=2 locks=1 images=3'])
})

test('a computer that is not there any more is named, one whose deletion came in between is no trouble', async () => {
  const lives = [life('a', async () => 0), life('b', () => Promise.reject(new Error('no such computer')))]
  const said = await firstRound({ lives, up: ['b'] })
  expect(said).toEqual([expect.stringMatching(/^warn a computer is not there.* computer=a$/), 'info no leftovers'])
})
