import type { Settings } from '../../config.ts'
import { OrbError } from '../../errors.ts'
import type { Runtime } from '../../runtime/runtime.ts'
import type { Store } from '../../store/store.ts'
import type { ComputerRow, ConfigRow } from '../../store/types.ts'
import { resolveSecrets } from '../environment.ts'
import type { FindComputer } from '../lookup.ts'
import { buildFingerprint, type OrbConfig, parseInline, toJson } from '../orb-toml.ts'
import type { OutboundRules } from '../outbound.ts'
import type { Secrets } from '../secrets.ts'
import type { BuildView, DeployInput, DeployView, Services } from '../types.ts'
import { addressOf, agentView } from '../views.ts'
import type { ConfigCache } from './directory.ts'
import { AGENT_PORT, isLive, shownState } from './machine.ts'
import type { Registry } from './registry.ts'
import { agentStart, checkEnvironment, checkExecutable } from './start.ts'

export interface AgentsDeps {
  settings: Settings
  store: Store
  runtime: Runtime
  registry: Registry
  secrets: Secrets
  configs: ConfigCache
  findComputer: FindComputer
  plainHttpAllowed: (url: URL) => boolean
  builds: {
    succeededFingerprint(computerId: string): string | null
    buildFor(
      computer: ComputerRow,
      config: OrbConfig,
      input: { org_secrets?: Record<string, string> },
    ): Promise<BuildView>
  }
  terminals: { end(computerId: string, why: 'restarted'): void }
  /** Short SHA of the code that the computer holds, or null. */
  codeVersion(computerId: string): string | null
  outbound: Pick<OutboundRules, 'enforce'>
}

/** Orb Cloud contract §7. */
export function createAgents(
  deps: AgentsDeps,
): Services['agents'] & { redeploy(computerId: string, sent?: Record<string, string>): Promise<void> } {
  const { store, registry, secrets, configs, findComputer } = deps

  const lifeOf = (who: Parameters<FindComputer>[0], id: string) => registry.of(findComputer(who, id))

  /** Clients name the proxy's port, an exposed one, or none: all mean the one agent. */
  function checkPort(computer: ComputerRow, port: number | undefined): void {
    if (port === undefined || port === AGENT_PORT) return
    if (store.ports.list(computer.id).some((row) => row.containerPort === port)) return
    throw new OrbError('port_not_found', `no agent has port ${port}; the agent of this computer has port ${AGENT_PORT}`)
  }

  async function start(
    computer: ComputerRow,
    config: OrbConfig,
    row: ConfigRow,
    sent: Record<string, string> | undefined,
  ) {
    const life = registry.of(computer)
    const { env, warnings } = resolveSecrets(config, secrets.all(computer.id), sent)
    checkEnvironment(env)
    await deps.runtime.up(computer)
    const { rootfs } = deps.runtime.paths(computer)
    await checkExecutable(rootfs, config, await agentStart(rootfs, config, env))
    const now = Date.now()
    const starting = life.start(deps.codeVersion(computer.id), () => {
      secrets.keep(computer.id, sent)
      if (row.source === 'inline') store.configs.put({ ...row, kind: 'stored' })
      store.configs.put({ ...row, kind: 'deployed' })
      store.ports.reserve(computer.id, config.ports)
      store.swarms.forgive(computer)
      store.computers.touch(computer.id, now)
    })
    // The agent is never started before they hold; they hold, too, when it cannot be.
    const agent = await starting.finally(() => deps.outbound.enforce(computer))
    return { agent, warnings }
  }

  function storedRow(computer: ComputerRow): ConfigRow {
    const row = store.configs.get(computer.id, 'stored')
    if (!row)
      throw new OrbError('no_config', 'this computer has no configuration: upload an orb.toml or send orb_config')
    return row
  }

  async function configFor(computer: ComputerRow, input: DeployInput) {
    if (!input.orb_config) {
      const row = storedRow(computer)
      return {
        row,
        config: configs.stored(computer.id) ?? parseInline(JSON.parse(row.json), () => true).config,
        warnings: [],
      }
    }
    const { config, warnings } = parseInline(input.orb_config, deps.plainHttpAllowed)
    // Refuse before a long build what would be refused after it.
    resolveSecrets(config, secrets.all(computer.id), input.org_secrets)
    secrets.check(computer.id, input.org_secrets)
    const row: ConfigRow = {
      computerId: computer.id,
      kind: 'stored',
      json: toJson(config),
      toml: null,
      source: 'inline',
      updatedAt: Date.now(),
    }
    const needsBuild = config.source !== null || config.build !== null
    if (needsBuild && deps.builds.succeededFingerprint(computer.id) !== buildFingerprint(config)) {
      const build = await deps.builds.buildFor(computer, config, { org_secrets: input.org_secrets })
      if (!build.success) {
        throw new OrbError('build_failed', build.message ?? 'the build failed; nothing was deployed', { build })
      }
    }
    return { row, config, warnings }
  }

  return {
    async deploy(who, id, input): Promise<DeployView> {
      const computer = findComputer(who, id)
      if (!input.replace && isLive(registry.of(computer).row())) {
        throw new OrbError('agent_exists', 'this computer has a live agent and replace is false')
      }
      const { row, config, warnings } = await configFor(computer, input)
      const started = await start(computer, config, row, input.org_secrets)
      const agent = {
        pid: started.agent.pid,
        port: AGENT_PORT,
        state: shownState(started.agent.phase),
        sandboxed: true,
        code_version: started.agent.codeVersion,
      }
      return {
        computer_id: computer.id,
        deployed: 1,
        agents: [agent],
        port: agent.port,
        pid: agent.pid,
        state: agent.state,
        url: addressOf(computer, deps.settings).url,
        warnings: [...warnings, ...started.warnings],
      }
    },

    /** The stored configuration, with the secrets that are there and those that are sent. */
    async redeploy(computerId, sent) {
      const computer = store.computers.get(computerId)
      if (!computer) return
      const row = storedRow(computer)
      const config = configs.stored(computerId)
      if (config) await start(computer, config, row, sent)
    },

    async list(who, id) {
      const { computer, ...life } = { computer: findComputer(who, id), row: lifeOf(who, id).row() }
      const row = life.row
      if (!row || row.phase === 'stopping') return { agents: [], total: 0 }
      const name = configs.deployed(computer.id)?.agent.name ?? ''
      return { agents: [agentView(computer, row, name, deps.runtime.agentMemory(computer))], total: 1 }
    },

    async demote(who, id, port) {
      const life = lifeOf(who, id)
      checkPort(life.computer, port)
      const slept = await life.checkpoint('manual')
      const row = life.row()
      return {
        computer_id: life.computer.id,
        status: 'demoted',
        port: AGENT_PORT,
        state: row ? shownState(row.phase) : 'checkpointed',
        checkpoint_dir: slept ? `checkpoints/${life.computer.id}/${slept.image}` : '',
        kind: 'full',
        size_bytes: slept?.bytes ?? 0,
        duration_ms: slept?.durationMs ?? 0,
      }
    },

    async promote(who, id, port) {
      const life = lifeOf(who, id)
      checkPort(life.computer, port)
      const { woken, restoreMs } = await life.promote()
      const row = life.row()
      return {
        computer_id: life.computer.id,
        status: woken ? 'promoted' : 'running',
        port: AGENT_PORT,
        pid: row?.pid ?? null,
        state: row ? shownState(row.phase) : 'running',
        restore_ms: restoreMs,
      }
    },

    async restart(who, id) {
      const life = lifeOf(who, id)
      deps.terminals.end(life.computer.id, 'restarted')
      const live = await life.stop('restart')
      store.swarms.forgive(life.computer)
      return { computer_id: life.computer.id, restarted: true, killed_agents: live ? 1 : 0 }
    },
  }
}
