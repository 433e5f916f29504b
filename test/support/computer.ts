/** One computer of an orb under test, seen through the API, and through the kernel where the API must not be believed. */
import { expect } from 'bun:test'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { z } from 'zod'
import { agentList, computer, deployed, executed, logs, writtenFile } from '../../src/api/cloud/schemas.ts'
import type { Question } from './agent.ts'
import type { Answer, Orb, Payload } from './orb.ts'
import { memoryOf, processesIn, until } from './sweep.ts'

const WAIT_TIMEOUT_MS = 60_000
const AGENT_PORT = 8000
/** Where the test agent is put, relative to /agent/code. */
const AGENT_FILE = 'agent.mjs'

/** What the test agent prints when a question is over. */
const Outcome = z.object({
  id: z.string(),
  answer: z.string().optional(),
  error: z.string().optional(),
  life: z.string(),
  count: z.number(),
  intact: z.boolean().optional(),
})
const AgentState = z.object({ life: z.string(), count: z.number() })

export type AgentView = z.output<typeof agentList>['agents'][number]

export interface AgentSettings {
  /** Port of the LLM on this machine's loopback. */
  llmPort?: number
  env?: Record<string, string>
  secrets?: Record<string, string>
  /** More sections of orb.toml. */
  config?: Record<string, unknown>
}

let bundle: Promise<string> | null = null

/** The test agent with its SDKs as one file. */
async function agentBundle(): Promise<string> {
  const built = await Bun.build({ entrypoints: [join(import.meta.dir, 'agent.ts')], target: 'node', format: 'esm' })
  const [output] = built.outputs
  if (!output) throw new Error(`the test agent could not be bundled: ${built.logs.join('\n')}`)
  return output.text()
}

export class Computer {
  readonly shortId: string
  /** Of its kernel objects. */
  readonly name: string

  constructor(
    readonly orb: Orb,
    readonly id: string,
  ) {
    this.shortId = id.slice(0, 8)
    this.name = `orb-${this.shortId}`
  }

  call(method: string, path: string, body?: Payload, headers?: Record<string, string>): Promise<Answer> {
    return this.orb.call(method, `/v1/computers/${this.id}${path}`, body, headers)
  }

  view() {
    return this.orb.ask(computer, 'GET', `/v1/computers/${this.id}`)
  }

  /** Deploys inline configuration; the raw answer, since refusals are tested too. */
  deploy(orbConfig: Record<string, unknown>, more: Record<string, unknown> = {}): Promise<Answer> {
    return this.call('POST', '/agents', { orb_config: orbConfig, ...more })
  }

  /** Deploys a program of a few lines. */
  async deployScript(lang: 'node' | 'python' | 'binary', source: string, config: Record<string, unknown> = {}) {
    const entry = { node: 'main.mjs', python: 'main.py', binary: 'main.sh' }[lang]
    await this.put(`agent/code/${entry}`, source)
    if (lang === 'binary') await this.exec(`chmod +x /agent/code/${entry}`)
    const { agent, ...sections } = config
    return this.deploy({
      agent: { name: 'script', lang, entry, ...z.record(z.string(), z.unknown()).default({}).parse(agent) },
      ...sections,
    })
  }

  /** Deploys the test agent and waits until it listens. */
  async deployAgent(settings: AgentSettings = {}): Promise<void> {
    bundle ??= agentBundle()
    await this.put(`agent/code/${AGENT_FILE}`, await bundle)
    const { agent, ...sections } = settings.config ?? {}
    const answer = await this.deploy(
      {
        agent: {
          name: 'agent',
          lang: 'node',
          entry: AGENT_FILE,
          env: settings.env ?? {},
          ...z.record(z.string(), z.unknown()).default({}).parse(agent),
        },
        ...(settings.llmPort === undefined ? {} : { llm: { base_url: `http://127.0.0.1:${settings.llmPort}/v1` } }),
        ...sections,
      },
      settings.secrets ? { org_secrets: settings.secrets } : {},
    )
    if (answer.status !== 201) throw new Error(`the agent could not be deployed: ${answer.status} ${answer.text}`)
    deployed.parse(answer.json)
    await this.waitForLine((line) => line.includes('"ready"'))
  }

  async put(path: string, content: string | Uint8Array<ArrayBuffer>): Promise<void> {
    await this.orb.ask(writtenFile, 'PUT', `/v1/computers/${this.id}/files/${path}`, content)
  }

  async get(path: string): Promise<string> {
    const { status, text } = await this.call('GET', `/files/${path}`)
    if (status !== 200) throw new Error(`GET ${path}: ${status} ${text}`)
    return text
  }

  exec(command: string, timeoutSecs?: number) {
    return this.orb.ask(executed, 'POST', `/v1/computers/${this.id}/exec`, { command, timeout_secs: timeoutSecs })
  }

  /** Output of a command that must succeed. */
  async sh(command: string): Promise<string> {
    const { stdout, stderr, exit_code } = await this.exec(command)
    if (exit_code !== 0) throw new Error(`${command}: exit code ${exit_code}\n${stdout}${stderr}`)
    return stdout
  }

  async lines(stream = 'all'): Promise<string[]> {
    const view = await this.orb.ask(logs, 'GET', `/v1/computers/${this.id}/logs?tail=10000&stream=${stream}`)
    return view.lines.map(({ line }) => line)
  }

  /** The last line of its log that `matches`, once there is one. */
  async waitForLine(matches: (line: string) => boolean, timeoutMs = WAIT_TIMEOUT_MS): Promise<string> {
    let found: string | undefined
    await until(async () => {
      found = (await this.lines()).findLast(matches)
      return found !== undefined
    }, timeoutMs)
    if (found === undefined)
      throw new Error(`no such line in the log of ${this.name}:\n${(await this.lines()).join('\n')}`)
    return found
  }

  async agent(): Promise<AgentView | undefined> {
    const { agents } = await this.orb.ask(agentList, 'GET', `/v1/computers/${this.id}/agents`)
    return agents[0]
  }

  async waitForState(state: AgentView['state'], timeoutMs = WAIT_TIMEOUT_MS): Promise<AgentView> {
    let view: AgentView | undefined
    const came = await until(async () => {
      view = await this.agent()
      return view?.state === state
    }, timeoutMs)
    if (came && view) return view
    throw new Error(
      `${this.name} is ${view?.state ?? 'without an agent'}, not ${state}:\n${(await this.lines()).join('\n')}`,
    )
  }

  /** Host pids of all its processes: its own pid 1, the agent's tree, and what was started beside that. */
  processes(): number[] {
    return processesIn(this.name)
  }

  /** Host pids of the agent's tree. */
  agentProcesses(): number[] {
    return processesIn(`${this.name}/agent`)
  }

  memoryBytes(): number {
    return memoryOf(this.name)
  }

  /** Of the agent's tree alone, where memory is on cgroup v2. */
  agentMemoryBytes(): number {
    return existsSync('/sys/fs/cgroup/memory') ? memoryOf(this.name) : memoryOf(`${this.name}/agent`)
  }

  /* ---- the test agent ---- */

  async ask(question: Question): Promise<void> {
    await this.sh(
      `curl -sS --fail --max-time 10 -d ${quoted(JSON.stringify(question))} http://127.0.0.1:${AGENT_PORT}/ask`,
    )
  }

  async outcome(id: string, timeoutMs = WAIT_TIMEOUT_MS) {
    const line = await this.waitForLine((text) => text.startsWith(`{"id":"${id}"`), timeoutMs)
    return Outcome.parse(JSON.parse(line))
  }

  /** Counts one on in the agent's memory and says where that stands. */
  async state() {
    return AgentState.parse(
      JSON.parse(await this.sh(`curl -sS --fail --max-time 10 http://127.0.0.1:${AGENT_PORT}/state`)),
    )
  }

  /** Runs a command in the agent's own tree, in the background. */
  async spawnInAgent(command: string): Promise<void> {
    await this.sh(`curl -sS --fail --max-time 10 --data-raw ${quoted(command)} http://127.0.0.1:${AGENT_PORT}/spawn`)
  }

  /** Every state that it shows within the time, each once. For what must not happen. */
  async statesDuring(durationMs: number): Promise<string[]> {
    const seen = new Set<string>()
    await until(async () => {
      seen.add((await this.agent())?.state ?? 'none')
      return false
    }, durationMs)
    return [...seen]
  }

  async agentEnv(): Promise<Record<string, string>> {
    return z
      .record(z.string(), z.string())
      .parse(JSON.parse(await this.sh(`curl -sS --fail --max-time 10 http://127.0.0.1:${AGENT_PORT}/env`)))
  }

  /** The agent was started `times` times in all, and at most one of it is there. */
  async expectStarts(times: number): Promise<void> {
    const lives = (await this.get('agent/data/lives')).trim().split('\n')
    expect(lives).toHaveLength(times)
  }
}

const quoted = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`
