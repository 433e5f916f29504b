import { randomInt, randomUUID } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { unpackBundle } from '../../src/runtime/bundle.ts'
import type { ExecRequest, ExecResult } from '../../src/runtime/commands.ts'
import { addressNumber } from '../../src/runtime/network.ts'
import { dataPaths } from '../../src/runtime/paths.ts'
import { Runtime, type RuntimeOptions } from '../../src/runtime/runtime.ts'
import type { ComputerRow } from '../../src/store/types.ts'

/** Subnets of tests: apart from the default one, and from each other when two runs meet. */
const FIRST_NET = 64
const LAST_NET = 250
const PROXY_PORT = 10_000

/** For restores: orb still holds its ends of all connections, or of none. */
export const allHeld = () => ({ has: () => true })
export const noneHeld = () => new Set<number>()

export interface TestRuntime extends AsyncDisposable {
  runtime: Runtime
  /** What it was started with: another one on the same data directory is what comes after a crash of orb. */
  options: RuntimeOptions
  dataDir: string
  /** A computer that exists from now on; it is gone after the test. */
  computer(over?: Partial<ComputerRow>): Promise<ComputerRow>
}

/**
 * A runtime on a data directory and a subnet of its own. Disposing of it takes everything away again: computers, mounts,
 * network, directory. Needs root. `base` as in RuntimeOptions.
 */
export async function startRuntime(proxyPort = PROXY_PORT, base = 'host'): Promise<TestRuntime> {
  if (process.getuid?.() !== 0) throw new Error('this test needs root')
  const dataDir = await mkdtemp(join(tmpdir(), 'orb-test-'))
  const computers: ComputerRow[] = []
  const subnet = `10.${randomInt(FIRST_NET, LAST_NET)}.${randomInt(256)}.0`
  const options: RuntimeOptions = {
    data: dataPaths(dataDir),
    files: await unpackBundle(dataDir),
    base,
    memoryMultiplier: 3,
    network: { subnet: { base: addressNumber(subnet), bits: 24 }, proxyPort, apiPort: null, allow: [] },
  }
  const runtime = await Runtime.start(options, [])
  return {
    runtime,
    options,
    dataDir,
    async computer(over = {}) {
      const id = randomUUID()
      const row: ComputerRow = {
        id,
        shortId: id.slice(0, 8),
        orgId: 'org',
        name: 'test',
        runtimeMb: 256,
        diskMb: 512,
        userId: null,
        swarmId: null,
        replicaIndex: null,
        slot: computers.length + 1,
        base: runtime.base.name,
        createdAt: Date.now(),
        updatedAt: Date.now(),
        ...over,
      }
      computers.push(row)
      await runtime.up(row)
      return row
    },
    async [Symbol.asyncDispose]() {
      for (const row of computers) {
        await runtime.down(row)
        await runtime.erase(row)
      }
      await runtime.stop()
      await rm(dataDir, { recursive: true, force: true })
    },
  }
}

const EXEC_TIMEOUT_MS = 20_000
const EXEC_MAX_BYTES = 1024 * 1024

/** Runs a shell command in a computer. */
export const shell = (
  runtime: Runtime,
  spec: ComputerRow,
  command: string,
  over: Partial<ExecRequest> = {},
): Promise<ExecResult> =>
  runtime.exec(spec, {
    argv: ['bash', '--norc', '-c', command],
    env: { PATH: '/usr/bin:/bin', HOME: '/root', LC_ALL: 'C' },
    cwd: '/agent/data',
    purpose: 'exec',
    timeoutMs: EXEC_TIMEOUT_MS,
    maxBytes: EXEC_MAX_BYTES,
    ...over,
  })
