/** A swarm of many replicas with one build: made, all asleep after their first LLM call, all woken, deleted, nothing left. */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { z } from 'zod'
import { computerList, removedSwarm, swarmList, swarmReport } from '../../src/api/cloud/schemas.ts'
import { type PrivateOrb, startOrb } from '../support/orb.ts'
import { type Benchmark, type Figure, figuresOf } from './figures.ts'
import { DOMAIN } from './sleepers.ts'

/** The most that one swarm may have. */
const REPLICAS = 100
const RUNTIME_MB = 256
const DISK_MB = 512
const ANSWER = 'the answer'
/** What the build writes, as `npm ci` of a small program would. */
const MODULES = 500
const MODULE_BYTES = 20_000
const SLEEP_TIMEOUT_MS = 300_000
const WAKE_TIMEOUT_MS = 120_000
const POLL_MS = 100
/** How often somebody else asks for something while the swarm is made. */
const BESIDE_EVERY_MS = 50
const NAME = 'workers'
const LOOPBACK = '127.0.0.1'

const Visit = z.object({ index: z.int(), answer: z.string().nullable(), built: z.string() })

const agentSource = readFileSync(join(import.meta.dir, 'swarm-agent.js')).toString('base64')
const STEPS = [
  `echo ${agentSource} | base64 -d > agent.js && echo '{"type":"module"}' > package.json`,
  `node --input-type=commonjs -e '
    const fs = require("fs")
    for (let n = 0; n < ${MODULES}; n++) {
      fs.mkdirSync("node_modules/module-" + n, { recursive: true })
      fs.writeFileSync("node_modules/module-" + n + "/index.js", "// " + "x".repeat(${MODULE_BYTES}))
    }'`,
  'mkdir built && echo $RANDOM$RANDOM > built/stamp',
]

export const benchmark: Benchmark = {
  title: 'a swarm with one build, --rounds replicas: made, asleep after the first LLM call, woken, deleted',
  async run({ dir, rounds: replicas = REPLICAS, onCleanUp, progress }) {
    const llm = holdingLlm()
    onCleanUp(() => llm.stop())
    const data = join(dir, 'orb')
    const orb = await startOrb(data, { domain: DOMAIN, allow_private: `${LOOPBACK}/32` })

    const beside = askBeside(orb)
    const making = await timed(() =>
      orb.ask(swarmReport, 'POST', '/v1/swarms', {
        name: NAME,
        replicas,
        runtime_mb: RUNTIME_MB,
        disk_mb: DISK_MB,
        orb_config: {
          agent: { name: 'worker', lang: 'node', entry: 'agent.js' },
          build: { steps: STEPS },
          llm: { base_url: `http://${LOOPBACK}:${llm.port}` },
          ports: { expose: [8000] },
        },
      }),
    )
    const others = await beside.stop()
    const { deployed, failed, computers } = making.value
    if (deployed !== replicas) throw new Error(`${failed.length} replicas failed: ${failed[0]?.message}`)
    progress(`${deployed} replicas are up after ${making.seconds.toFixed(1)} s`)

    const falling = await timed(() => untilAll(orb, replicas, 'checkpointed', SLEEP_TIMEOUT_MS))
    progress(`all sleep ${falling.seconds.toFixed(1)} s later`)
    if (llm.asked !== replicas) throw new Error(`the LLM was asked ${llm.asked} times`)
    const waking = await timed(async () => {
      llm.answer()
      await untilAll(orb, replicas, 'running', WAKE_TIMEOUT_MS)
    })
    progress(`all are awake ${waking.seconds.toFixed(1)} s after their answers`)
    const visits = await Promise.all(computers.map(({ subdomain }) => visit(orb, subdomain)))
    const stamps = new Set(visits.map(({ built }) => built))
    if (stamps.size !== 1) throw new Error(`it was built ${stamps.size} times`)
    for (const [index, seen] of visits.entries()) {
      if (seen.index !== index || seen.answer !== ANSWER)
        throw new Error(`replica ${index} says ${JSON.stringify(seen)}`)
    }

    const removing = await timed(() => orb.ask(removedSwarm, 'DELETE', `/v1/swarms/${NAME}`))
    if (removing.value.deleted !== replicas) throw new Error(`${removing.value.deleted} computers were deleted`)
    const left = await leftovers(
      orb,
      data,
      computers.map(({ short_id }) => `orb-${short_id}`),
    )
    if (left.length > 0) throw new Error(`left behind: ${left.join(', ')}`)
    progress(`deleted after ${removing.seconds.toFixed(1)} s, nothing is left`)

    const single = (name: string, measured: number, target?: Figure['target']): Figure => ({
      name,
      unit: 's',
      measured,
      rounds: 1,
      ...(target ? { target } : {}),
    })
    return {
      figures: [
        single('one call until all are up', making.seconds, { atMost: 15 }),
        ...figuresOf('GET /v1/swarms meanwhile', others, { unit: 'ms' }),
        single('until all sleep on disk', falling.seconds),
        single('all answers at once until all run', waking.seconds),
        single('deleted', removing.seconds),
      ],
      details: { replicas },
    }
  },
}

async function timed<T>(work: () => Promise<T>): Promise<{ value: T; seconds: number }> {
  const began = performance.now()
  const value = await work()
  return { value, seconds: (performance.now() - began) / 1000 }
}

/** An LLM that lets everybody wait until it is told to answer. */
function holdingLlm() {
  const { promise, resolve } = Promise.withResolvers<void>()
  const llm = {
    asked: 0,
    port: 0,
    answer: resolve,
    stop: (): Promise<void> => server.stop(true),
  }
  const server = Bun.serve({
    hostname: LOOPBACK,
    port: 0,
    idleTimeout: 0,
    async fetch(request) {
      await request.text()
      llm.asked++
      await promise
      return new Response(ANSWER)
    },
  })
  llm.port = server.port ?? 0
  return llm
}

/** Somebody else's requests, and how long each took in ms. */
function askBeside(orb: PrivateOrb): { stop(): Promise<number[]> } {
  const times: number[] = []
  let stopped = false
  const asking = (async () => {
    while (!stopped) {
      const { seconds } = await timed(() => orb.ask(swarmList, 'GET', '/v1/swarms'))
      times.push(seconds * 1000)
      await Bun.sleep(BESIDE_EVERY_MS)
    }
  })()
  return {
    async stop() {
      stopped = true
      await asking
      return times
    },
  }
}

async function untilAll(orb: PrivateOrb, count: number, state: string, timeoutMs: number): Promise<void> {
  const deadline = performance.now() + timeoutMs
  for (;;) {
    const { computers } = await orb.ask(computerList, 'GET', '/v1/computers')
    const there = computers.filter(({ agent_state }) => agent_state === state).length
    if (there === count) return
    if (performance.now() > deadline) throw new Error(`only ${there} of ${count} agents are ${state}`)
    await Bun.sleep(POLL_MS)
  }
}

async function visit(orb: PrivateOrb, subdomain: string): Promise<z.output<typeof Visit>> {
  const response = await fetch(orb.url, { headers: { host: subdomain } })
  return Visit.parse(await response.json())
}

/** What is there though the swarm was deleted. */
async function leftovers(orb: PrivateOrb, data: string, names: string[]): Promise<string[]> {
  const { total: swarms } = await orb.ask(swarmList, 'GET', '/v1/swarms')
  const { total: computers } = await orb.ask(computerList, 'GET', '/v1/computers')
  const files = ['computers', 'checkpoints', 'images/layers'].flatMap((name) =>
    existsSync(join(data, name)) ? readdirSync(join(data, name)).map((file) => `${name}/${file}`) : [],
  )
  const mounts = readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .filter((line) => line.includes(join(data, 'computers')))
  const kernel = names.flatMap((name) =>
    ['/run/netns', '/sys/class/net', '/sys/fs/cgroup/orb', '/sys/fs/cgroup/unified/orb', '/sys/fs/cgroup/memory/orb']
      .map((place) => join(place, name))
      .filter((path) => existsSync(path)),
  )
  return [
    ...(swarms > 0 ? [`${swarms} swarms`] : []),
    ...(computers > 0 ? [`${computers} computers`] : []),
    ...files,
    ...mounts,
    ...kernel,
  ]
}
