import type { AllowEntry } from '../../addresses.ts'
import type { Settings } from '../../config.ts'
import { OrbError } from '../../errors.ts'
import type { Runtime } from '../../runtime/runtime.ts'
import type { Store } from '../../store/store.ts'
import type { BuildRow, ComputerRow } from '../../store/types.ts'
import { buildEnvironment, type EnvironmentFacts } from '../environment.ts'
import { newId } from '../ids.ts'
import { buildFingerprint, fromJson, type OrbConfig } from '../orb-toml.ts'
import type { OutboundRules } from '../outbound.ts'
import type { Secrets } from '../secrets.ts'
import type { BuildInput, BuildView, Principal, Services } from '../types.ts'
import { cloneEnvironment, type GitAccess, stepEnvironment } from './git.ts'
import { hiddenTexts } from './mask.ts'
import { Queue, type Queued } from './queue.ts'
import { openGitHost } from './reach.ts'
import { emptyView, readView, recordView, toResult } from './record.ts'
import { BuildShell, Cancelled } from './shell.ts'
import { CloneError, fetchSource } from './source.ts'
import { runSteps, StepError } from './steps.ts'

export interface BuildsDeps {
  settings: Pick<Settings, 'cloneTimeoutMs' | 'buildStepTimeoutMs' | 'buildTimeoutMs' | 'sandboxAllow'>
  /** ORB_ALLOW_PRIVATE. */
  allowPrivate: readonly AllowEntry[]
  store: Pick<Store, 'builds' | 'configs' | 'agents' | 'githubDeploys'>
  secrets: Secrets
  runtime: Pick<Runtime, 'exec' | 'killAll'> & { network: Pick<Runtime['network'], 'permit'> }
  /** Throws `not_found`. */
  lookup: { computer(who: Principal, id: string): ComputerRow }
  environmentFacts(computer: ComputerRow): EnvironmentFacts
  outbound: Pick<OutboundRules, 'duringBuild'>
  agents: {
    /** Wakes a sleeping agent and keeps it awake until the returned function is called. */
    prepareForBuild(computerId: string): Promise<() => void>
    redeploy(computerId: string): Promise<unknown>
  }
  /** Addresses of a host name; those of the system's resolver when absent. */
  resolve?(host: string): Promise<string[]>
}

export type Builds = Services['builds'] & {
  /** Builds with this configuration, for a deploy that brings its own. Secrets that were sent with it are not stored. */
  buildFor(
    computer: ComputerRow,
    config: OrbConfig,
    input: Pick<BuildInput, 'org_secrets' | 'git_token'>,
  ): Promise<BuildView>
  /** Begins a build of the stored configuration, or joins one that waits, for nobody to wait for. Returns its id. */
  begin(computer: ComputerRow, input: BuildInput): string
  /** Notes for a computer that it holds what the last successful build of another has made. */
  share(from: ComputerRow, to: ComputerRow): void
  /** Fingerprint of the last build that succeeded. */
  succeededFingerprint(computerId: string): string | null
  /** Whether a build runs or waits. */
  isBuilding(computerId: string): boolean
  /** Kills what is being built, and with it everything else that runs in the computer, and waits for its end. */
  cancel(computerId: string): Promise<void>
  /** At start: builds that a crash cut off have failed. */
  recover(): void
}

interface Job extends Queued<BuildView> {
  computer: ComputerRow
  row: BuildRow
  view: BuildView
  /** For the clone: sent for this build, or sent as secret. */
  token: string | null
  /** Secrets that came with a deploy and are not stored yet. */
  sent: Record<string, string>
  redeploy: boolean
  cancelled: AbortController
}

interface Submitted {
  id: string
  done: Promise<BuildView>
}

/** Joins those that take the stored configuration as it is when they begin. */
const STORED = 'stored'
/** Digits of a commit that are shown as version of the code. */
const SHORT_COMMIT = 7
const KILL_AGAIN_MS = 100

/** Builds of computers (Orb Cloud contract §6). */
export function createBuilds(deps: BuildsDeps): Builds {
  const { settings, store, secrets, runtime, agents } = deps
  const queue = new Queue<Job, BuildView>()

  const stored = (computerId: string): OrbConfig => {
    const row = store.configs.get(computerId, 'stored')
    if (row) return fromJson(row.json)
    throw new OrbError('no_config', 'this computer has no configuration: upload an orb.toml first')
  }

  function submit(computer: ComputerRow, own: OrbConfig | null, input: BuildInput): Submitted {
    const fingerprint = buildFingerprint(own ?? stored(computer.id))
    const token = input.git_token ?? input.org_secrets?.['GITHUB_TOKEN'] ?? null
    const kind = own ? fingerprint : STORED
    const waiting = queue.waiting(computer.id, kind)
    if (waiting) {
      waiting.job.token = token ?? waiting.job.token
      waiting.job.sent = { ...waiting.job.sent, ...input.org_secrets }
      waiting.job.redeploy ||= input.redeploy ?? false
      return { id: waiting.job.row.id, done: waiting.done }
    }
    const id = newId('build')
    const view = emptyView(computer.id, id)
    const row: BuildRow = {
      id,
      computerId: computer.id,
      status: 'queued',
      result: toResult(view),
      fingerprint,
      createdAt: Date.now(),
      startedAt: null,
      finishedAt: null,
    }
    const redeploy = input.redeploy ?? false
    const cancelled = new AbortController()
    const sent = input.org_secrets ?? {}
    const job: Job = { computer, kind, row, view, token, sent, redeploy, cancelled, run: () => run(job, own) }
    store.builds.put(row)
    return { id, done: queue.add(computer.id, job) }
  }

  async function run(job: Job, own: OrbConfig | null): Promise<BuildView> {
    const { computer, row, view } = job
    try {
      if (job.cancelled.signal.aborted) throw new Cancelled()
      const config = own ?? stored(computer.id)
      Object.assign(row, { status: 'running', startedAt: Date.now(), fingerprint: buildFingerprint(config) })
      store.builds.put(row)
      const release = await agents.prepareForBuild(computer.id)
      try {
        const closeOutbound = deps.outbound.duringBuild(computer, config)
        try {
          await build(job, config)
        } finally {
          closeOutbound()
        }
      } finally {
        release()
      }
      await redeploy(job)
      view.success = true
    } catch (thrown) {
      const outcome = outcomeOf(thrown)
      view.error = outcome?.error ?? (thrown instanceof OrbError ? thrown.code : 'internal')
      view.message = outcome?.message ?? (thrown instanceof OrbError ? thrown.message : 'the build could not be run')
      if (outcome === null) throw thrown
    } finally {
      Object.assign(row, {
        status: view.success ? 'success' : 'failure',
        result: toResult(view),
        finishedAt: Date.now(),
      })
      store.builds.put(row)
    }
    return view
  }

  async function redeploy({ computer, row, view, redeploy }: Job): Promise<void> {
    if (!redeploy || !store.agents.get(computer.id)) return
    // The agent is told which code it is started with, and that is what the newest build brought.
    Object.assign(row, { result: toResult(view) })
    store.builds.put(row)
    try {
      await agents.redeploy(computer.id)
      view.redeployed = true
    } catch (thrown) {
      // The code is new, the agent is not: whoever asked for both must not take that for a success.
      if (thrown instanceof OrbError) throw new RedeployError(thrown.message)
      throw thrown
    }
  }

  async function build(job: Job, config: OrbConfig): Promise<void> {
    const { computer, view } = job
    const access = config.source && gitAccess(computer.id, config.source.git, job)
    const shell = new BuildShell({
      exec: (spec, request) => runtime.exec(spec, request),
      computer,
      hidden: hiddenTexts(access?.token ?? null, { ...secrets.all(computer.id), ...job.sent }),
      deadline: performance.now() + settings.buildTimeoutMs,
      cancelled: job.cancelled.signal,
    })
    const base = buildEnvironment(deps.environmentFacts(computer))
    const reach = access && (await openGitHost(access.url, reachOptions(computer)))
    try {
      if (access && reach && config.source) {
        access.pins = reach.pins
        const env = { ...base, ...cloneEnvironment(access) }
        view.commit = await fetchSource(shell, config.source, env, settings.cloneTimeoutMs)
        view.code_version = view.commit.slice(0, SHORT_COMMIT)
        view.cloned = true
      }
      if (config.build) {
        const env = access ? { ...base, ...stepEnvironment(access) } : base
        await runSteps(shell, config.build, env, settings.buildStepTimeoutMs, view.steps)
      }
    } finally {
      reach?.close()
    }
  }

  function gitAccess(computerId: string, address: string, job: Job): GitAccess {
    const token = (job.token ?? secrets.all(computerId)['GITHUB_TOKEN'] ?? '').trim()
    return { url: new URL(address), token: token || null, pins: [] }
  }

  const reachOptions = (computer: ComputerRow) => ({
    allowPrivate: deps.allowPrivate,
    sandboxAllow: settings.sandboxAllow,
    permit: (address: string, port: number) => runtime.network.permit(computer.slot, address, port),
    resolve: deps.resolve,
  })

  /** Once auto-deploy is set up a build brings the agent along, unless the caller says otherwise (Orb Cloud contract §6). */
  const withDefaults = (computer: ComputerRow, input: BuildInput): BuildInput => ({
    ...input,
    redeploy: input.redeploy ?? store.githubDeploys.get(computer.id) !== null,
  })

  const liveView = (row: BuildRow): BuildView | null =>
    queue.jobs(row.computerId).find((job) => job.row.id === row.id)?.view ?? null

  return {
    async run(who, id, input) {
      const computer = deps.lookup.computer(who, id)
      // Without a configuration nothing is changed, secrets neither.
      stored(computer.id)
      secrets.keep(computer.id, input.org_secrets)
      return submit(computer, null, withDefaults(computer, input)).done
    },
    list(who, id) {
      const rows = store.builds.list(deps.lookup.computer(who, id).id)
      return { builds: rows.map((row) => recordView(row, liveView(row))) }
    },
    get(who, id, buildId) {
      const row = store.builds.get(deps.lookup.computer(who, id).id, buildId)
      if (!row) throw new OrbError('not_found', 'no such build')
      return recordView(row, liveView(row))
    },
    buildFor: (computer, config, input) => submit(computer, config, input).done,
    begin: (computer, input) => submit(computer, null, withDefaults(computer, input)).id,
    share(from, to) {
      const row = store.builds.lastSuccess(from.id)
      if (!row) return
      const [id, built] = [newId('build'), readView(row)]
      const view: BuildView = {
        ...built,
        computer_id: to.id,
        build_id: id,
        steps: built.steps.map((step) => ({ ...step, stdout: '', stderr: '' })),
        message: `built once in computer ${from.shortId}: the output is in its build ${built.build_id}`,
        redeployed: false,
      }
      store.builds.put({ ...row, id, computerId: to.id, result: toResult(view) })
    },
    succeededFingerprint: (computerId) => store.builds.lastSuccess(computerId)?.fingerprint ?? null,
    isBuilding: (computerId) => queue.jobs(computerId).length > 0,
    async cancel(computerId) {
      const [running, ...waiting] = queue.jobs(computerId)
      if (!running) return
      for (const job of [running, ...waiting]) job.cancelled.abort()
      let ended = false
      const idle = queue.idle(computerId).then(() => {
        ended = true
      })
      // More than once: a command may have been about to start when the first one struck.
      while (!ended) {
        await runtime.killAll(running.computer)
        await Promise.race([idle, Bun.sleep(KILL_AGAIN_MS)])
      }
    },
    recover() {
      for (const row of store.builds.unfinished()) {
        const view = { ...readView(row), error: 'interrupted', message: 'orb was stopped during this build' }
        store.builds.put({ ...row, status: 'failure', result: toResult(view), finishedAt: Date.now() })
      }
    },
  }
}

/** A build that ran to an end, if to a bad one: its callers get its answer, not an error. */
function outcomeOf(thrown: unknown): { error: string; message: string } | null {
  if (thrown instanceof CloneError) return { error: 'clone_failed', message: thrown.message }
  if (thrown instanceof StepError) return { error: 'step_failed', message: thrown.message }
  if (thrown instanceof RedeployError) return { error: 'redeploy_failed', message: thrown.message }
  if (thrown instanceof Cancelled) return { error: 'cancelled', message: 'the computer was deleted during this build' }
  return null
}

/** The build succeeded but the agent could not be started anew. */
class RedeployError extends Error {
  override name = 'RedeployError'
}
