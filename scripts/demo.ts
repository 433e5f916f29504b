/** What `scripts/demo` runs once dist/orb is built. */
import { readFileSync } from 'node:fs'
import { cp, mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { parse, stringify } from 'smol-toml'
import { z } from 'zod'
import { agentList, build as buildSchema, deployed, executed } from '../src/api/cloud/schemas.ts'
import { type LlmServer, startLlmServer } from '../test/support/llm-server.ts'
import { Report } from './support/demo-report.ts'
import { type Computer, isServed, logTail, type PrivateOrb, removeOrb, startOrb } from './support/orb.ts'

const DEFAULT_DATA_DIR = '/var/lib/orb-demo'
const AGENT_DIR = join(import.meta.dir, '../examples/counting-agent')
const AGENT_FILES = ['agent.js', 'package.json', 'package-lock.json']
const CALLS = 3
/** How long the stand-in thinks before its first word, call by call; the agent is on disk after 5 s. */
const THINKING_MS = [9_000, 12_000]
const WORD_GAP_MS = 60
/** A real LLM answers sooner than orb's own ladder would have it sleep. */
const QUICK_LADDER = { freeze_after: '200ms', checkpoint_after: '400ms' }
const RUNTIME_MB = 512
const DISK_MB = 2048
const TICK_MS = 1000
const RUN_TIMEOUT_MS = 5 * 60 * 1000
const EXIT_INTERRUPTED = 130

const realKey = process.env['ANTHROPIC_API_KEY'] || null

async function main(): Promise<number> {
  const { values } = parseArgs({
    options: { keep: { type: 'boolean' }, stop: { type: 'boolean' }, 'data-dir': { type: 'string' } },
  })
  const dataDir = resolve(values['data-dir'] ?? DEFAULT_DATA_DIR)
  if (values.stop) {
    await removeOrb(dataDir)
    console.log(`nothing of the demo is left; ${dataDir} is gone`)
    return 0
  }
  if (isServed(dataDir)) {
    console.error(`a demo was kept in ${dataDir}: look at it, or stop it with ./scripts/demo --stop`)
    return 1
  }
  // What a demo that was killed left behind.
  await removeOrb(dataDir)

  let llm: LlmServer | null = null
  let code = 1
  const cleanUp = async () => {
    await llm?.stop()
    await removeOrb(dataDir)
  }
  const interruption = new AbortController()
  const interrupted = new Promise<'interrupted'>((resolve) => {
    interruption.signal.addEventListener('abort', () => resolve('interrupted'))
  })
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => interruption.abort())
  try {
    llm = realKey === null ? standIn() : null
    const outcome = await Promise.race([show(dataDir, llm, values.keep ?? false, interruption.signal), interrupted])
    if (outcome === 'interrupted') {
      console.log('\ninterrupted: taking everything away')
      await cleanUp()
      return EXIT_INTERRUPTED
    }
    code = outcome ? 0 : 1
  } catch (thrown) {
    console.error(`\nthe demo failed: ${thrown instanceof Error ? thrown.message : thrown}`)
    console.error(logTail(dataDir))
  }
  if (code === 0 && values.keep) await llm?.stop()
  else await cleanUp()
  return code
}

const standIn = (): LlmServer =>
  startLlmServer({
    firstByteMs: (call) => THINKING_MS[(call - 1) % THINKING_MS.length] ?? 0,
    gapMs: WORD_GAP_MS,
    reply: (prompt) => {
      const number = Number(/after (\d+)/.exec(prompt)?.[1] ?? 0)
      return `After ${number} comes ${number + 1}, word by word from the stand-in.`
    },
  })

/** From an empty directory to the summary. Returns whether all was as it should be. */
async function show(dataDir: string, llm: LlmServer | null, keep: boolean, signal: AbortSignal): Promise<boolean> {
  step(
    llm
      ? `LLM: a stand-in on 127.0.0.1:${llm.port}, answers after ${THINKING_MS.map((ms) => ms / 1000).join(' and ')} s`
      : `LLM: the real one; it is quick, so the agent sleeps after ${QUICK_LADDER.checkpoint_after} instead of 5 s`,
  )
  const orb = await startOrb(dataDir, llm ? { allow_private: `127.0.0.1:${llm.port}` } : QUICK_LADDER)
  step(`orb serves ${orb.url}, data in ${dataDir}`)
  const computer = await orb.computer('demo', RUNTIME_MB, DISK_MB)
  step(`computer ${computer.id}, ${RUNTIME_MB} MB of RAM, ${DISK_MB} MB of disk`)
  await install(computer, llm)
  const agent = await computer.ask(deployed, 'POST', '/agents', {
    org_secrets: { ANTHROPIC_API_KEY: realKey ?? 'stand-in' },
  })
  step(`deployed: pid ${agent.pid} on this machine`)

  const report = new Report()
  await watch(computer, report)
  if (signal.aborted) return false
  const upstream = llm?.requests.length ?? null
  const problems = report.problems(CALLS, llm !== null)
  if (upstream !== null && upstream !== CALLS) problems.push(`the LLM saw ${upstream} requests, not ${CALLS}`)
  console.log(`\n${report.summary(upstream)}`)
  for (const problem of problems) console.error(`WRONG: ${problem}`)
  console.log(
    keep && problems.length === 0 ? kept(orb, computer) : 'Everything is taken away again; --keep leaves it running.',
  )
  return problems.length === 0
}

/** Puts the example into the computer as a client would, and has it built there. */
async function install(computer: Computer, llm: LlmServer | null): Promise<void> {
  for (const name of AGENT_FILES) await computer.put(`agent/code/${name}`, await readFile(join(AGENT_DIR, name)))
  const npmrc = npmSettings()
  if (npmrc) await computer.put('root/.npmrc', npmrc)
  const config = ExampleConfig.parse(parse(readFileSync(join(AGENT_DIR, 'orb.toml'), 'utf8')))
  config.agent.env['COUNT_TO'] = CALLS
  if (llm) config['llm'] = { base_url: `http://127.0.0.1:${llm.port}` }
  await computer.ask(z.unknown(), 'POST', '/config', stringify(config))
  step('building: npm ci inside the computer')
  const built = await computer.ask(buildSchema, 'POST', '/build')
  if (built.success) {
    step(`built in ${((built.steps[0]?.duration_ms ?? 0) / 1000).toFixed(1)} s`)
    return
  }
  const last = built.steps.at(-1)
  console.error(`${built.message}\n${last?.stdout ?? ''}${last?.stderr ?? ''}`.trimEnd())
  step('npm does not work inside the computer: its packages are fetched here and uploaded instead')
  await uploadModules(computer)
}

const ExampleConfig = z.looseObject({ agent: z.looseObject({ env: z.record(z.string(), z.unknown()) }) })

/** Where this machine's npm fetches from and whom it trusts: a computer sees nothing of the configuration of its host. */
function npmSettings(): string {
  const lines = ['registry', 'cafile', 'strict-ssl'].flatMap((key) => {
    const asked = Bun.spawnSync(['npm', 'config', 'get', key], { stderr: 'ignore' })
    const value = asked.stdout.toString().trim()
    return asked.exitCode === 0 && value && value !== 'null' && value !== 'undefined' ? [`${key}=${value}\n`] : []
  })
  return lines.join('')
}

async function uploadModules(computer: Computer): Promise<void> {
  const dir = await mkdtemp(join(tmpdir(), 'orb-demo-'))
  try {
    for (const name of AGENT_FILES) await cp(join(AGENT_DIR, name), join(dir, name))
    for (const command of [
      ['npm', 'ci', '--omit=dev', '--no-audit', '--no-fund'],
      ['tar', '-czf', 'modules.tgz', 'node_modules'],
    ]) {
      const done = Bun.spawnSync(command, { cwd: dir, stdout: 'ignore', stderr: 'pipe' })
      if (done.exitCode !== 0) throw new Error(`\`${command.join(' ')}\` failed: ${done.stderr.toString().trim()}`)
    }
    await computer.put('agent/cache/modules.tgz', await readFile(join(dir, 'modules.tgz')))
    const unpacked = await computer.ask(executed, 'POST', '/exec', {
      command: 'tar -C /agent/code -xzf /agent/cache/modules.tgz',
    })
    if (unpacked.exit_code !== 0) throw new Error(`the packages could not be unpacked: ${unpacked.stderr}`)
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
}

/** Until the agent says that it is done, or has ended. */
async function watch(computer: Computer, report: Report): Promise<void> {
  const over = new AbortController()
  const timeout = setTimeout(() => over.abort(), RUN_TIMEOUT_MS)
  const following = (async () => {
    for await (const { stream, line } of computer.follow(over.signal)) {
      report.line(stream, line)
      if (stream === 'stdout' && line === 'done') return
      if (stream === 'orb' && line.startsWith('exited ')) return
    }
  })().catch((thrown: unknown) => {
    if (!over.signal.aborted) throw thrown
  })
  let running = true
  const ticking = (async () => {
    while (running) {
      const { agents } = await computer.ask(agentList, 'GET', '/agents')
      report.tick(agents[0]?.state ?? 'none', computer.memoryBytes(), computer.processes())
      await Promise.race([following, Bun.sleep(TICK_MS)])
    }
  })()
  try {
    await Promise.race([following, ticking])
  } finally {
    running = false
    over.abort()
    clearTimeout(timeout)
    await ticking
    report.close()
  }
}

const kept = (
  orb: PrivateOrb,
  computer: Computer,
): string => `Kept: the agent waits in memory. Try, then stop it all with ./scripts/demo --stop
  export ORB_URL=${orb.url} ORB_KEY=${computer.key}
  curl -H "Authorization: Bearer $ORB_KEY" -X POST $ORB_URL/v1/computers/${computer.id}/agents/demote
  curl -H "Authorization: Bearer $ORB_KEY" -X POST $ORB_URL/v1/computers/${computer.id}/agents/promote`

const step = (text: string): void => console.log(`==> ${text}`)

process.exit(await main())
