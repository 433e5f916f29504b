import { z } from 'zod'
import type {
  AgentView,
  BootstrapView,
  BuildRecordView,
  BuildView,
  ComputerView,
  ConfigUploadView,
  ConfigView,
  CronJobsView,
  CronRunView,
  CronTriggerView,
  DemoteView,
  DeployView,
  DirectoryView,
  DisconnectView,
  ExecView,
  LogsView,
  PromoteView,
  RemovedSwarm,
  RestartView,
  Services,
  StatsView,
  SwarmProgress,
  SwarmReport,
  SwarmView,
  UsageView,
  WebhookDeliveryView,
  WebhookView,
} from '../../services/types.ts'

/** Compiles only if both types are the same: the documentation cannot part from what services answer. */
type Same<A, B> = [A] extends [B] ? ([B] extends [A] ? true : never) : never
const same = <A, B>(_: Same<A, B>): void => undefined

const time = z.string().meta({ format: 'date-time', example: '2026-04-19T04:05:00Z' })
const uuid = z.string().meta({ format: 'uuid' })
const count = z.int().min(0)

const agentState = z.enum(['running', 'frozen', 'checkpointed', 'failed'])

export const computer = z
  .object({
    id: uuid,
    computer_id: uuid,
    short_id: z.string(),
    org_id: uuid,
    name: z.string(),
    runtime_mb: count,
    disk_mb: count,
    status: z.enum(['ready', 'building', 'active', 'failed']),
    agent_count: count,
    agent_state: agentState.nullable(),
    port_mappings: z.array(z.object({ host_port: count, container_port: count })),
    url: z.string(),
    subdomain: z.string(),
    user_id: z.string().nullable(),
    swarm_id: z.string().nullable(),
    replica_index: count.nullable(),
    created_at: time,
    updated_at: time,
  })
  .meta({ id: 'Computer' })
same<z.infer<typeof computer>, ComputerView>(true)

export const computerList = z.object({ computers: z.array(computer), total: count })

export const deletedComputer = z.object({ id: uuid, computer_id: uuid, deleted: z.literal(true) })
same<z.infer<typeof deletedComputer>, Awaited<ReturnType<Services['computers']['remove']>>>(true)

export const registered = z.object({
  tenant_id: uuid,
  org_id: uuid,
  api_key: z.string(),
  key_id: uuid,
  email: z.string(),
})
same<z.infer<typeof registered>, Awaited<ReturnType<Services['accounts']['register']>>>(true)

export const loggedIn = z.object({ token: z.string(), expires_in: count })
same<z.infer<typeof loggedIn>, Awaited<ReturnType<Services['accounts']['login']>>>(true)

export const createdKey = z.object({
  key_id: uuid,
  api_key: z.string(),
  name: z.string(),
  prefix: z.string(),
  created_at: time,
})
same<z.infer<typeof createdKey>, Awaited<ReturnType<Services['accounts']['createKey']>>>(true)

export const keyList = z.object({
  keys: z.array(
    z.object({
      key_id: uuid,
      name: z.string(),
      prefix: z.string(),
      scope: z.string(),
      created_at: time,
      last_used_at: time.nullable(),
    }),
  ),
  total: count,
})
same<z.infer<typeof keyList>, ReturnType<Services['accounts']['listKeys']>>(true)

export const revokedKey = z.object({ key_id: uuid, revoked: z.literal(true) })
same<z.infer<typeof revokedKey>, ReturnType<Services['accounts']['revokeKey']>>(true)

const configSummary = z
  .object({
    agent: z.object({ name: z.string(), lang: z.string(), entry: z.string() }),
    backend: z.object({ provider: z.string() }),
    llm: z.object({ base_url: z.string().nullable() }),
    ports: z.object({ expose: z.array(count) }),
  })
  .meta({ id: 'ConfigSummary' })

export const uploadedConfig = z.object({
  computer_id: uuid,
  config_summary: configSummary,
  source: z.string(),
  warnings: z.array(z.string()),
})
same<z.infer<typeof uploadedConfig>, ConfigUploadView>(true)

export const config = z.object({
  computer_id: uuid,
  config: z.record(z.string(), z.unknown()),
  toml: z.string().nullable(),
  config_summary: configSummary,
  source: z.enum(['uploaded', 'inline', 'swarm']),
  updated_at: time,
})
same<z.infer<typeof config>, ConfigView>(true)

const buildFields = {
  computer_id: uuid,
  build_id: z.string(),
  cloned: z.boolean(),
  commit: z.string().nullable(),
  code_version: z.string().nullable(),
  steps: z.array(
    z.object({
      step: z.string(),
      exit_code: z.int(),
      stdout: z.string(),
      stderr: z.string(),
      duration_ms: count,
      timed_out: z.boolean(),
    }),
  ),
  success: z.boolean(),
  error: z.string().nullable(),
  message: z.string().nullable(),
  redeployed: z.boolean(),
}

export const build = z.object(buildFields).meta({ id: 'Build' })
same<z.infer<typeof build>, BuildView>(true)

export const buildRecord = z
  .object({
    ...buildFields,
    status: z.enum(['queued', 'running', 'success', 'failure']),
    started_at: time.nullable(),
    finished_at: time.nullable(),
  })
  .meta({ id: 'BuildRecord' })
same<z.infer<typeof buildRecord>, BuildRecordView>(true)

export const buildList = z.object({ builds: z.array(buildRecord) })

const deployedAgent = z.object({
  pid: z.int().nullable(),
  port: count,
  state: agentState,
  sandboxed: z.boolean(),
  code_version: z.string().nullable(),
})

export const deployed = z.object({
  computer_id: uuid,
  deployed: count,
  agents: z.array(deployedAgent),
  port: count,
  pid: z.int().nullable(),
  state: agentState,
  url: z.string(),
  warnings: z.array(z.string()),
})
same<z.infer<typeof deployed>, DeployView>(true)

export const agent = z
  .object({
    ...deployedAgent.shape,
    computer_id: uuid,
    name: z.string(),
    resident_bytes: count.meta({ description: 'Memory that the agent takes now, its page cache included' }),
    started_at: time.nullable(),
    exit_code: z.int().nullable(),
    stderr_tail: z.string().nullable(),
    failure_reason: z.enum(['exit', 'oom', 'restore_failed']).nullable(),
    sleep_reason: z.enum(['llm', 'idle', 'manual']).nullable(),
  })
  .meta({ id: 'Agent' })
same<z.infer<typeof agent>, AgentView>(true)

export const agentList = z.object({ agents: z.array(agent), total: count })

export const demoted = z.object({
  computer_id: uuid,
  status: z.literal('demoted'),
  port: count,
  state: agentState,
  checkpoint_dir: z.string(),
  kind: z.enum(['full', 'incremental']),
  size_bytes: count,
  duration_ms: count,
})
same<z.infer<typeof demoted>, DemoteView>(true)

export const promoted = z.object({
  computer_id: uuid,
  status: z.enum(['promoted', 'running']),
  port: count,
  pid: z.int().nullable(),
  state: agentState,
  restore_ms: z.number().nullable(),
})
same<z.infer<typeof promoted>, PromoteView>(true)

export const restarted = z.object({ computer_id: uuid, restarted: z.literal(true), killed_agents: count })
same<z.infer<typeof restarted>, RestartView>(true)

export const executed = z.object({
  stdout: z.string(),
  stderr: z.string(),
  exit_code: z.int(),
  timed_out: z.boolean(),
  truncated: z.boolean(),
  duration_ms: count,
})
same<z.infer<typeof executed>, ExecView>(true)

export const cronJobs = z.object({
  jobs: z.array(
    z
      .object({
        name: z.string(),
        schedule: z.string().meta({ example: '17 * * * *' }),
        command: z.string(),
        env: z.record(z.string(), z.string()),
        working_dir: z.string().nullable(),
        timeout_secs: count,
        enabled: z.boolean(),
        skip_if_running: z.boolean(),
        next_fire_at: time.nullable(),
        last_fired_at: time.nullable(),
      })
      .meta({ id: 'CronJob' }),
  ),
  error: z.string().nullable().meta({ description: 'What is wrong with cron.json' }),
})
same<z.infer<typeof cronJobs>, CronJobsView>(true)

export const cronRun = z
  .object({
    id: z.string(),
    job_id: z.string(),
    job_name: z.string(),
    fired_at: time.meta({ description: 'The planned time' }),
    started_at: time.nullable(),
    finished_at: time.nullable(),
    status: z.enum(['success', 'failure', 'timeout', 'skipped', 'error', 'running']),
    exit_code: z.int().nullable(),
    duration_ms: count.nullable(),
    stdout: z.string().nullable().meta({ description: 'Its first 16,384 bytes; null if empty' }),
    stderr: z.string().nullable(),
    error: z.string().nullable(),
  })
  .meta({ id: 'CronRun' })
same<z.infer<typeof cronRun>, CronRunView>(true)

export const cronRuns = z.object({ runs: z.array(cronRun) })

export const cronTriggered = z.object({
  run_id: z.string(),
  status: z.enum(['success', 'failure', 'timeout', 'error']),
  exit_code: z.int().nullable(),
  stdout: z.string().nullable(),
  stderr: z.string().nullable(),
  duration_ms: count.nullable(),
  timed_out: z.boolean(),
})
same<z.infer<typeof cronTriggered>, CronTriggerView>(true)
export const execInput = z.object({ written: count, closed: z.boolean() })

export const logs = z.object({
  computer_id: uuid,
  lines: z.array(z.object({ ts: time, stream: z.enum(['stdout', 'stderr', 'orb']), line: z.string() })),
  truncated: z.boolean(),
})
same<z.infer<typeof logs>, LogsView>(true)

export const directory = z.object({
  path: z.string(),
  files: z.array(
    z.object({
      name: z.string(),
      type: z.enum(['file', 'directory', 'symlink', 'other']),
      size: count,
      mode: z.string(),
      mtime: time,
    }),
  ),
  truncated: z.literal(true).optional(),
})
same<z.infer<typeof directory>, DirectoryView>(true)

export const writtenFile = z.object({ path: z.string(), size: count })
same<z.infer<typeof writtenFile>, Awaited<ReturnType<Services['files']['write']>>>(true)

export const bootstrapped = z.object({
  workflow_path: z.string(),
  workflow_commit_sha: z.string(),
  secret_name: z.string(),
  api_key_id: uuid,
  first_build_id: z.string(),
})
same<z.infer<typeof bootstrapped>, BootstrapView>(true)

export const disconnected = z.object({
  disconnected: z.literal(true),
  workflow_deleted: z.boolean(),
  secret_deleted: z.boolean(),
})
same<z.infer<typeof disconnected>, DisconnectView>(true)
const amount = z.number().min(0)

export const usage = z.object({
  period_start: time,
  period_end: time,
  runtime_gb_hours: amount,
  disk_gb_hours: amount,
  checkpoint_cycles: count,
  computers_created: count,
  computers_destroyed: count,
  computer_id: uuid.optional(),
})
same<z.infer<typeof usage>, UsageView>(true)

export const stats = z.object({
  computer_id: uuid,
  window: z.enum(['30d', 'lifetime']),
  period_start: time,
  period_end: time,
  wall_secs: count,
  active_secs: count,
  sleep_secs: count,
  sleep_pct: amount,
  active_pct: amount,
  llm_calls: count,
  checkpoints: count,
  ckpt_full: count,
  ckpt_incremental: count,
  failures: count,
  runtime_gb_hours: amount,
  disk_gb_hours: amount,
  est_cost_usd: amount,
  last_active_ago_secs: count.nullable(),
  avg_restore_ms: count.nullable(),
})
same<z.infer<typeof stats>, StatsView>(true)
const webhookFields = {
  id: z.string(),
  url: z.string(),
  events: z.array(z.string()),
  active: z.boolean(),
  created_at: time,
}

export const createdWebhook = z.object({
  ...webhookFields,
  secret: z.string().meta({ description: 'Key of the signatures; it is shown this one time' }),
})
same<z.infer<typeof createdWebhook>, ReturnType<Services['webhooks']['create']>>(true)

const webhook = z.object({ ...webhookFields, disabled_reason: z.string().nullable() }).meta({ id: 'Webhook' })
same<z.infer<typeof webhook>, WebhookView>(true)

export const webhookList = z.object({ webhooks: z.array(webhook), total: count })

export const deletedWebhook = z.object({ id: z.string(), deleted: z.literal(true) })
same<z.infer<typeof deletedWebhook>, ReturnType<Services['webhooks']['remove']>>(true)

const webhookDelivery = z
  .object({
    event_id: z.string(),
    type: z.string(),
    created_at: time,
    status: z.enum(['waiting', 'delivered', 'failed', 'dropped']),
    attempts: z.array(
      z.object({ at: time, response_status: z.int().nullable(), error: z.string().nullable(), duration_ms: count }),
    ),
    next_attempt_at: time.nullable(),
  })
  .meta({ id: 'WebhookDelivery' })
same<z.infer<typeof webhookDelivery>, WebhookDeliveryView>(true)

export const webhookDeliveries = z.object({ webhook_id: z.string(), deliveries: z.array(webhookDelivery) })
const swarmFields = {
  swarm_id: z.string(),
  name: z.string(),
  replicas: count,
  computers: z.array(
    z.object({
      id: uuid,
      short_id: z.string(),
      replica_index: count,
      status: z.enum(['ready', 'building', 'active', 'failed']),
      subdomain: z.string(),
      url: z.string(),
    }),
  ),
  created_at: time,
}

export const swarm = z.object(swarmFields).meta({ id: 'Swarm' })
same<z.infer<typeof swarm>, SwarmView>(true)

export const swarmList = z.object({ swarms: z.array(swarm), total: count })

export const swarmReport = z.object({
  ...swarmFields,
  deployed: count,
  failed: z.array(
    z.object({
      replica_index: count,
      error: z.enum(['create_failed', 'build_failed', 'deploy_failed']),
      message: z.string(),
      computer_id: uuid,
    }),
  ),
})
same<z.infer<typeof swarmReport>, SwarmReport>(true)

export const swarmProgress = z.object({
  swarm_id: z.string(),
  phase: z.enum(['created', 'building', 'built', 'shared', 'deployed', 'failed']),
  replica_index: count.nullable(),
  message: z.string(),
  deployed: count,
  failed: count,
  replicas: count,
})
same<z.infer<typeof swarmProgress>, SwarmProgress>(true)

export const removedSwarm = z.object({
  swarm_id: z.string(),
  deleted: count,
  failed: z.array(z.object({ replica_index: count, error: z.string(), message: z.string(), computer_id: uuid })),
})
same<z.infer<typeof removedSwarm>, RemovedSwarm>(true)

export const failure = z.looseObject({ error: z.string(), message: z.string() }).meta({ id: 'Error' })
