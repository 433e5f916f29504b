import { mkdir } from 'node:fs/promises'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { allowed } from '../addresses.ts'
import type { Settings } from '../config.ts'
import { messageOf } from '../errors.ts'
import { log } from '../log.ts'
import { startDns } from '../proxy/dns.ts'
import { startLlmProxy } from '../proxy/llm.ts'
import { type RuntimeFiles, unpackBundle } from '../runtime/bundle.ts'
import { checkCriu } from '../runtime/criu-check.ts'
import { firewallProblems } from '../runtime/firewall.ts'
import { splitBase } from '../runtime/layers.ts'
import { errnoCode } from '../runtime/libc.ts'
import { hostNameservers } from '../runtime/network.ts'
import { dataPaths } from '../runtime/paths.ts'
import { Runtime } from '../runtime/runtime.ts'
import { disableSwap, enableSwap } from '../runtime/swap.ts'
import { openStore, type Store } from '../store/store.ts'
import type { ComputerRow } from '../store/types.ts'
import { VERSION } from '../version.ts'
import { createAccounts } from './accounts.ts'
import { ConfigCache, createDirectory } from './agents/directory.ts'
import { startIdleSleep } from './agents/idle.ts'
import { AGENT_PORT } from './agents/machine.ts'
import { createPublicDirectory } from './agents/public-directory.ts'
import { recoverAgents } from './agents/recover-all.ts'
import { asleep, Registry } from './agents/registry.ts'
import { createAgents } from './agents/service.ts'
import { Slots } from './agents/slots.ts'
import { agentStart } from './agents/start.ts'
import { BootNotes } from './boot.ts'
import { createBuilds } from './builds/builds.ts'
import { readView } from './builds/record.ts'
import { openCallJournal } from './calls/journal.ts'
import { createComputers, networkOf } from './computers.ts'
import { createConfigs } from './configs.ts'
import { createCron } from './cron/service.ts'
import { agentEnvironment, type EnvironmentFacts, resolveSecrets, shellVariables } from './environment.ts'
import { createExec } from './exec.ts'
import { createFiles } from './files.ts'
import type { PublicDirectory } from './front.ts'
import { createGitHub } from './github/github.ts'
import { Janitor } from './janitor.ts'
import { createLogs } from './logs.ts'
import { createFindComputer } from './lookup.ts'
import type { Metrics } from './metrics.ts'
import { createOutbound, limitsOf, policiesOf } from './outbound.ts'
import { createSecrets } from './secrets.ts'
import { createSwarms } from './swarms/swarms.ts'
import { createOrbMetrics, createSystem } from './system.ts'
import { createTerminals } from './terminals/terminals.ts'
import type { Services } from './types.ts'
import { createUsage, keepSeen } from './usage.ts'
import { openVault } from './vault.ts'
import { createWebhooks } from './webhooks/webhooks.ts'

/** How often orb looks whether its firewall rules are still there. */
const RULES_CHECK_MS = 60_000

export interface RunningServices {
  services: Services
  metrics: Metrics
  gateway: string
  publicDirectory: PublicDirectory
  /** Takes no more calls, gives open ones `graceMs`, leaves agents as they are. `others`: who still uses the services. */
  stop(graceMs: number, others: Promise<unknown>): Promise<void>
}

/**
 * Brings everything up behind the API: database, runtime, proxies, and the agents that a former orb left. The data
 * directory must exist and belong to this process alone. @throws Error with the reason
 */
export async function startServices(settings: Settings): Promise<RunningServices> {
  const data = dataPaths(settings.dataDir)
  const files = await unpackBundle(settings.dataDir)
  const store = openStore(join(settings.dataDir, 'orb.db'))
  const vault = openVault(settings.dataDir)
  const metrics = createOrbMetrics()
  const apiPort = settings.listen.kind === 'tcp' ? settings.listen.port : null
  const boot = new BootNotes(data.run)
  await mkdir(data.run, { recursive: true, mode: 0o700 })
  const network = networkOf(settings)
  const releaseSubnet = claimSubnet(network.base, settings.subnet.text)
  await boot.networkUp(settings.subnet.text)
  const [checked, swap] = [criuProblem(boot, files), provideSwap(data.swap, settings.swapBytes)]
  const firewall = warnOfFirewall(settings.subnet.text)
  const configs = new ConfigCache(store)
  const policies = policiesOf(store, configs)
  const runtime = await Runtime.start(
    {
      data,
      files,
      base: settings.base,
      memoryMultiplier: settings.memoryMultiplier,
      network: {
        subnet: network,
        proxyPort: AGENT_PORT,
        apiPort,
        allow: settings.sandboxAllow.filter((cidr) => cidr.family === 4).map((cidr) => cidr.text),
      },
      disks: { isMade: store.computers.isDiskMade, setMade: store.computers.setDiskMade },
    },
    asleep(store),
    limitsOf(policies),
  )
  const outbound = createOutbound(configs, runtime.network, policies)
  const { gateway } = runtime.network
  const checkpointProblem = await checked
  await swap
  if (checkpointProblem) log('warn', 'agents cannot be checkpointed here', { reason: checkpointProblem })
  await firewall

  const deleting = new Set<string>()
  const findComputer = createFindComputer(store, deleting)
  const secrets = createSecrets({ secrets: store.secrets, vault })
  const { allowPrivate } = settings
  const plainHttpAllowed = (url: URL) => allowed(allowPrivate, url.hostname, portOf(url), url.hostname)
  const factsOf = (computer: ComputerRow): EnvironmentFacts => ({
    computerId: computer.id,
    proxyUrl: `http://${gateway}:${AGENT_PORT}`,
    apiUrl: apiPort === null ? settings.publicUrl : `http://${gateway}:${apiPort}`,
    ports: configs.current(computer)?.ports ?? [],
    replica: replicaOf(store, computer),
  })

  const { outbox, ...webhooks } = createWebhooks({ store, vault, metrics, allowPrivate })
  const sleeps = new Slots(availableParallelism())
  const registry = new Registry({
    store,
    outbox,
    runtime,
    metrics,
    slots: sleeps,
    ladder: settings,
    startOf: (computer) => {
      const config = configs.deployed(computer.id)
      if (!config) throw new Error('the agent has no deployed configuration')
      outbound.enforce(computer)
      const { env } = resolveSecrets(config, secrets.all(computer.id), undefined)
      return agentStart(runtime.paths(computer).rootfs, config, agentEnvironment(factsOf(computer), env))
    },
    checkpointProblem,
    maySleep: (computer) => configs.deployed(computer.id)?.lifecycle.sleep === 'auto',
    heldConnections: (computerId) => proxy.heldPorts(computerId),
    dropConnections(computerId) {
      proxy.drop(computerId)
      runtime.network.breakOffApps(registry.byId(computerId).computer.shortId)
    },
    forgetCalls: (computerId) => proxy.forget(computerId),
    resumeCalls: (computerId, wake) => proxy.resume(computerId, wake),
    lastSeenAt: store.usage.resume() ?? Date.now(),
  })
  const journal = openCallJournal({
    calls: store.llmCalls,
    vault,
    dir: data.spool,
    ttlMs: settings.replayTtlMs,
  })
  const proxy = startLlmProxy({
    hostname: gateway,
    port: AGENT_PORT,
    directory: createDirectory({ runtime, registry, configs, metrics, usage: store.usage }),
    allowPrivate,
    spoolDir: data.spool,
    journal,
    llmTimeoutMs: settings.llmTimeoutMs,
    replayTtlMs: settings.replayTtlMs,
  })
  const dns = await startDns({
    hostname: gateway,
    upstreams: await hostNameservers(),
    filterOf: (address) => outbound.filterOf(address),
  })

  const lookup = { computer: findComputer }
  const builds = createBuilds({
    settings,
    allowPrivate,
    store,
    runtime,
    secrets,
    lookup,
    environmentFacts: factsOf,
    outbound,
    agents: {
      prepareForBuild: (computerId) => registry.byId(computerId).hold(),
      redeploy: (computerId) => agents.redeploy(computerId),
    },
  })
  const terminals = createTerminals({
    runtime,
    findComputer,
    environment: (computer) =>
      agentEnvironment(factsOf(computer), shellVariables(configs.current(computer), secrets.all(computer.id))),
    isGood: (keyId) => store.keys.get(keyId) !== null,
    lease: (computer) => registry.of(computer).activity.lease(),
  })
  const agents = createAgents({
    settings,
    store,
    runtime,
    registry,
    secrets,
    configs,
    findComputer,
    plainHttpAllowed,
    builds,
    terminals,
    codeVersion: (computerId) => codeVersion(store, computerId),
    outbound,
  })
  const accounts = createAccounts({
    store,
    jwtSecret: vault.jwtSecret,
    registration: settings.registration,
    onRevoked: terminals.revoked,
  })
  const cron = createCron({
    store,
    runtime,
    metrics,
    findComputer,
    computers: () => registry.all().map(({ computer }) => computer),
    exists: (computerId) => !deleting.has(computerId) && store.computers.get(computerId) !== null,
    isBuilding: builds.isBuilding,
    environment(computer, more) {
      const config = configs.current(computer)
      const user = shellVariables(config, secrets.all(computer.id))
      return agentEnvironment(factsOf(computer), { ...user, ...more })
    },
  })
  const [awaitingBuild, newLayers] = [new Set<string>(), new Set<string>()]
  const known = () => new Set(store.computers.all().map(({ id }) => id))
  const layersInUse = () =>
    new Set([...newLayers, ...store.computers.bases().flatMap((name) => splitBase(name).layer ?? [])])
  const removeUnusedLayers = () => runtime.removeUnusedLayers(known, layersInUse)
  const computers = createComputers({
    settings,
    store,
    outbox,
    runtime,
    registry,
    configs,
    findComputer,
    deleting,
    builds: {
      isBuilding: (computerId) => awaitingBuild.has(computerId) || builds.isBuilding(computerId),
      cancel: builds.cancel,
    },
    terminals,
    forgetCalls: (computerId) => proxy.forget(computerId),
    forgetJobs: (computerId) => cron.forget(computerId),
    removeUnusedLayers,
    outbound,
  })
  const swarms = createSwarms({
    store,
    runtime,
    registry,
    computers,
    builds,
    agents,
    plainHttpAllowed,
    deleting,
    sleeps,
    outbound,
    awaitingBuild,
    newLayers,
  })
  const services: Services = {
    accounts,
    computers,
    swarms,
    configs: createConfigs({
      configs: {
        get: store.configs.get,
        put(row) {
          store.configs.put(row)
          // Before a deploy ports and rules are those of the stored configuration, afterwards those of the deployed one.
          if (configs.deployed(row.computerId)) return
          store.ports.reserve(row.computerId, configs.stored(row.computerId)?.ports ?? [])
          const computer = store.computers.get(row.computerId)
          if (computer) outbound.enforce(computer)
        },
      },
      findComputer,
      plainHttpAllowed,
      now: Date.now,
    }),
    builds,
    agents,
    exec: createExec({
      runtime,
      lookup,
      environmentFacts: factsOf,
      lease: (computer) => registry.of(computer).activity.lease(),
    }),
    terminals,
    logs: createLogs(runtime, registry, findComputer),
    files: createFiles(runtime, findComputer),
    github: createGitHub({ settings, store, accounts, builds, findComputer, version: VERSION }),
    usage: createUsage({ settings, usage: store.usage, findComputer }),
    cron,
    webhooks,
    system: createSystem({
      store,
      dataDir: settings.dataDir,
      version: VERSION,
      metrics,
      checkpointProblem: () => checkpointProblem,
    }),
  }

  gauges(metrics, registry)
  builds.recover()
  const recovery = await recoverAgents(registry, runtime, boot)
  swarms.recover()
  void recovery.over.then(() => journal.recovered())
  const seen = recovery.over.then(() => keepSeen(store.usage))
  const stopIdleSleep = startIdleSleep({
    runtime,
    lives: () => registry.all(),
    windowMs(computer) {
      const lifecycle = configs.deployed(computer.id)?.lifecycle
      if (checkpointProblem !== null || lifecycle?.sleep !== 'auto') return null
      return (lifecycle.idleTimeoutMs ?? settings.idleTimeoutMs) || null
    },
    cpuPercent: settings.idleCpuPercent,
    usualWindowMs: settings.idleTimeoutMs || Number.POSITIVE_INFINITY,
  })
  await cron.start()
  webhooks.start()
  const janitor = new Janitor({ runtime, store, registry, known, removeUnusedLayers })

  const rules = setInterval(() => {
    runtime.network.ensureRules().catch((error) => log('error', 'the rules of the computers cannot be made', { error }))
  }, RULES_CHECK_MS)

  return {
    services,
    metrics,
    gateway,
    publicDirectory: createPublicDirectory({ store, runtime, registry, configs, outbound, deleting }),
    async stop(graceMs, others) {
      clearInterval(rules)
      stopIdleSleep()
      for (const life of registry.all()) life.ladder.stop()
      await Promise.all([proxy.stop(graceMs), swarms.stop(graceMs), cron.stop(graceMs), others, webhooks.stop()])
      await dns.stop()
      await janitor.stop()
      const stopSeen = await seen
      await Promise.all(registry.all().map((life) => life.settledDown()))
      await giveSwapBack(data.swap)
      stopSeen()
      runtime.close()
      store.close()
      releaseSubnet()
    },
  }
}

async function criuProblem(boot: BootNotes, files: RuntimeFiles): Promise<string | null> {
  if (await boot.criuWorks(files.criuVersion)) return null
  const problem = await checkCriu(files)
  if (problem === null) await boot.noteCriu(files.criuVersion)
  return problem
}

/** Without the swap file that the settings want, agents sleep as they do on a host without swap. */
async function provideSwap(path: string, bytes: number): Promise<void> {
  try {
    const outcome = await enableSwap(path, bytes)
    if (outcome !== 'none') log('info', `swap file ${outcome}`, { path, bytes })
  } catch (thrown) {
    log('error', 'there is no swap file as the settings want it', { path, bytes, reason: messageOf(thrown) })
  }
}

/** Another one's rules may come and go, and are not orb's: computers are served all the same. */
async function warnOfFirewall(subnet: string): Promise<void> {
  try {
    for (const problem of await firewallProblems(subnet))
      log('warn', "the server's firewall is in the way", { problem })
  } catch (thrown) {
    log('warn', "the server's firewall could not be looked at", { reason: messageOf(thrown) })
  }
}

/** What is in the swap file comes back into memory. Where that has no room, the next orb finds it as it is. */
async function giveSwapBack(path: string): Promise<void> {
  await disableSwap(path).catch((thrown) =>
    log('error', 'the swap file stays, with memory of agents in it', { path, reason: messageOf(thrown) }),
  )
}

/**
 * Makes this process the only one with the gateway of a subnet, for rules and addresses are named after that. Returns what
 * gives it up. @throws Error when another orb has it
 */
function claimSubnet(base: number, text: string): () => void {
  try {
    // A name in the kernel, which goes with the process.
    const claim = Bun.listen({
      unix: `\0orb-subnet-${base}`,
      socket: { open: (socket) => void socket.end(), data() {} },
    })
    return () => claim.stop(true)
  } catch (cause) {
    if (errnoCode(cause) !== 'EADDRINUSE') throw cause
    throw new Error(`another orb on this server has the subnet ${text}: give this one another by ORB_SUBNET`, { cause })
  }
}

/** The commit that the computer's code stands at, in short; a failed build may have brought it too. */
const codeVersion = (store: Store, computerId: string): string | null =>
  store.builds
    .list(computerId)
    .map((row) => readView(row).code_version)
    .find((version) => version !== null) ?? null

function replicaOf(store: Store, { swarmId, replicaIndex }: ComputerRow): EnvironmentFacts['replica'] {
  const swarm = swarmId === null ? null : store.swarms.get(swarmId)
  return swarm && replicaIndex !== null ? { index: replicaIndex, count: swarm.replicas } : null
}

const portOf = (url: URL): number => Number(url.port) || (url.protocol === 'https:' ? 443 : 80)

function gauges(metrics: Metrics, registry: Registry): void {
  const count = (values: string[], label: string) =>
    [...new Set(values)].map((value) => ({
      labels: { [label]: value },
      value: values.filter((one) => one === value).length,
    }))
  metrics.gauge('orb_computers', () =>
    count(
      registry.all().map((life) => (life.row() ? 'active' : 'ready')),
      'status',
    ),
  )
  metrics.gauge('orb_agents', () =>
    count(
      registry.all().flatMap((life) => life.row()?.phase ?? []),
      'state',
    ),
  )
  metrics.gauge('orb_llm_inflight', () => [
    { value: registry.all().reduce((sum, life) => sum + life.ladder.outstanding, 0) },
  ])
  metrics.gauge('orb_checkpoint_bytes', () => [
    { value: registry.all().reduce((sum, life) => sum + (life.row()?.imageBytes ?? 0), 0) },
  ])
}
