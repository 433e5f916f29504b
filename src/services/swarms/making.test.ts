import { afterEach, beforeEach, expect, test } from 'bun:test'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { computerPaths, dataPaths } from '../../runtime/paths.ts'
import { openStore, type Store } from '../../store/store.ts'
import type { ComputerRow, SwarmRow } from '../../store/types.ts'
import type { Life } from '../agents/life.ts'
import { Slots } from '../agents/slots.ts'
import { emptyView } from '../builds/record.ts'
import { parseInline } from '../orb-toml.ts'
import { Making, type MakingDeps } from './making.ts'
import { Places } from './places.ts'

const AGENT = { name: 'a', lang: 'node', entry: 'a.js' }

let dir: string
let store: Store
let slot = 0

beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'making-'))
  store = openStore(join(dir, 'orb.db'))
})
afterEach(() => {
  store.close()
  rmSync(dir, { recursive: true, force: true })
})

function reserve(orgId: string, replicas: number): { swarm: SwarmRow; members: ComputerRow[] } {
  store.orgs.insert({ id: orgId, email: `${orgId}@example.com`, createdAt: 0 })
  const swarm = { id: `swm_${orgId}`, orgId, name: 'swarm', replicas, made: false, createdAt: 0 }
  store.swarms.insert(swarm)
  const members = Array.from({ length: replicas }, (_, replicaIndex) => {
    const shortId = String(10_000_000 + slot++)
    const id = `${shortId}-0000-0000-0000-000000000000`
    mkdirSync(computerPaths(dataPaths(dir), id).dir, { recursive: true })
    const name = `replica-${replicaIndex}`
    const sizes = { runtimeMb: 64, diskMb: 64 }
    return store.computers.insert({
      ...{ id, shortId, orgId, name, ...sizes, userId: null, swarmId: swarm.id, replicaIndex },
      ...{ base: 'base', createdAt: 0, updatedAt: 0 },
    })
  })
  return { swarm, members }
}

/** A server on which everything goes well, but for what `more` says. */
const depsOf = (more: Partial<MakingDeps>): MakingDeps => ({
  store,
  deleting: new Set(),
  runtime: {
    isMade: () => false,
    makeLayer: async () => undefined,
    paths: ({ id }) => computerPaths(dataPaths(dir), id),
  },
  registry: { of: () => ({ row: () => null }) as unknown as Life, setBase: () => undefined },
  computers: { bringUp: async () => undefined },
  builds: { buildFor: async ({ id }) => ({ ...emptyView(id, 'build'), success: true }), share: () => undefined },
  agents: { redeploy: async () => undefined },
  places: new Places(2),
  sleeps: new Slots(1),
  awaitingBuild: new Set(),
  newLayers: new Set(),
  ...more,
})

function make(deps: MakingDeps, orgId: string, replicas: number, orbConfig: object) {
  const { swarm, members } = reserve(orgId, replicas)
  const { config } = parseInline(orbConfig, () => false)
  return { making: new Making(deps, { swarm, config, sent: undefined, watch: () => undefined }, members), members }
}

test('a replica that is deleted during the build is the only one that fails', async () => {
  let deleted = ''
  const based: string[] = []
  const deps = depsOf({
    registry: {
      of: () => ({ row: () => null }) as unknown as Life,
      setBase: ({ id }) => void based.push(id),
    },
    builds: {
      buildFor: async ({ id }) => {
        store.computers.remove(deleted)
        return { ...emptyView(id, 'build'), success: true }
      },
      // Its row refers to that of the computer.
      share(_, { id }) {
        if (!store.computers.get(id)) throw new Error('FOREIGN KEY constraint failed')
      },
    },
  })
  const { making, members } = make(deps, 'one', 4, { agent: AGENT, build: { steps: ['true'] } })
  deleted = members[2]?.id ?? ''
  await making.run()
  expect(making.deployed).toBe(3)
  expect(making.failed).toMatchObject([{ replica_index: 2, error: 'create_failed', computer_id: deleted }])
  expect(based.sort()).toEqual([members[1]?.id, members[3]?.id].sort() as string[])
})

test('replicas that build for themselves keep no place from others', async () => {
  const builds = Promise.withResolvers<void>()
  const building: string[] = []
  const deployed: string[] = []
  let isMade = false
  const deps = depsOf({
    runtime: {
      // Somebody uses the replicas before there is a layer for them.
      isMade: () => isMade,
      makeLayer: async () => {
        isMade = true
      },
      paths: ({ id }) => computerPaths(dataPaths(dir), id),
    },
    builds: {
      buildFor: async ({ id }) => {
        building.push(id)
        if (building.length > 1) await builds.promise
        return { ...emptyView(id, 'build'), success: true }
      },
      share: () => undefined,
    },
    agents: { redeploy: async (id) => void deployed.push(id) },
  })
  const { making: slow } = make(deps, 'one', 4, { agent: AGENT, build: { steps: ['sleep 1000'] } })
  const slowOver = slow.run()
  while (building.length < 4) await Bun.sleep(1)

  const { making: other } = make(deps, 'other', 3, { agent: AGENT })
  await other.run()
  expect([other.deployed, other.failed]).toEqual([3, []])
  expect(slow.deployed).toBe(1)
  builds.resolve()
  await slowOver
  expect([slow.deployed, slow.failed]).toEqual([4, []])
  expect(deployed).toHaveLength(7)
})
