import type {
  AgentState,
  CronRunStatus,
  FailureReason,
  KeyRole,
  ReplicaError,
  SleepReason,
  WebhookDeliveryStatus,
} from '../store/types.ts'

/** Who is calling: every service function that touches an organisation's objects takes one. */
export interface Principal {
  orgId: string
  keyId: string
  /** `full`, or `deploy:<computer id>` */
  scope: string
  role: KeyRole
}

export interface PortMapping {
  host_port: number
  container_port: number
}

export type ComputerStatus = 'ready' | 'building' | 'active' | 'failed'

/** Orb Cloud contract §3. */
export interface ComputerView {
  id: string
  computer_id: string
  short_id: string
  org_id: string
  name: string
  runtime_mb: number
  disk_mb: number
  status: ComputerStatus
  agent_count: number
  agent_state: AgentState | null
  port_mappings: PortMapping[]
  url: string
  subdomain: string
  user_id: string | null
  swarm_id: string | null
  replica_index: number | null
  created_at: string
  updated_at: string
}

export interface CreateComputerInput {
  name: string
  runtime_mb: number
  disk_mb: number
  user_id: string | null
}

/** Orb Cloud contract §5. */
export interface ConfigSummary {
  agent: { name: string; lang: string; entry: string }
  backend: { provider: string }
  llm: { base_url: string | null }
  ports: { expose: number[] }
}

export interface ConfigUploadView {
  computer_id: string
  config_summary: ConfigSummary
  source: string
  warnings: string[]
}

export interface ConfigView {
  computer_id: string
  config: Record<string, unknown>
  toml: string | null
  config_summary: ConfigSummary
  source: 'uploaded' | 'inline' | 'swarm'
  updated_at: string
}

/** Orb Cloud contract §6. */
export interface BuildStepView {
  step: string
  exit_code: number
  stdout: string
  stderr: string
  duration_ms: number
  timed_out: boolean
}

export interface BuildView {
  computer_id: string
  build_id: string
  cloned: boolean
  commit: string | null
  code_version: string | null
  steps: BuildStepView[]
  success: boolean
  error: string | null
  message: string | null
  redeployed: boolean
}

export interface BuildRecordView extends BuildView {
  status: 'queued' | 'running' | 'success' | 'failure'
  started_at: string | null
  finished_at: string | null
}

export interface BuildInput {
  org_secrets?: Record<string, string>
  git_token?: string
  redeploy?: boolean
}

/** Orb Cloud contract §7. */
export interface DeployInput {
  org_secrets?: Record<string, string>
  orb_config?: Record<string, unknown>
  replace: boolean
}

export interface DeployedAgent {
  pid: number | null
  port: number
  state: AgentState
  sandboxed: boolean
  code_version: string | null
}

export interface DeployView {
  computer_id: string
  deployed: number
  agents: DeployedAgent[]
  port: number
  pid: number | null
  state: AgentState
  url: string
  warnings: string[]
}

export interface AgentView extends DeployedAgent {
  computer_id: string
  name: string
  /** Memory that the agent is charged for now, page cache included: next to nothing on disk, little in swap. */
  resident_bytes: number
  started_at: string | null
  exit_code: number | null
  stderr_tail: string | null
  failure_reason: FailureReason | null
  sleep_reason: SleepReason | null
}

export interface DemoteView {
  computer_id: string
  status: 'demoted'
  port: number
  state: AgentState
  checkpoint_dir: string
  kind: 'full' | 'incremental'
  size_bytes: number
  duration_ms: number
}

export interface PromoteView {
  computer_id: string
  status: 'promoted' | 'running'
  port: number
  pid: number | null
  state: AgentState
  /** Time of the restore, or null when none was needed. */
  restore_ms: number | null
}

export interface RestartView {
  computer_id: string
  restarted: true
  killed_agents: number
}

/** Orb Cloud contract §8. */
export interface ExecInput {
  command: string
  timeout_secs: number
  /** Its whole standard input; nothing when absent. */
  stdin?: string
}

export interface ExecStreamInput extends ExecInput {
  /** Standard input stays open, for `write`. */
  interactive: boolean
}

export type ExecEvent =
  | { event: 'stdout' | 'stderr'; data: { text: string } }
  | { event: 'exit'; data: { exit_code: number; timed_out: boolean; duration_ms: number } }

/** A command under way. */
export interface ExecStream {
  id: string
  /** Text as it comes, no faster than it is taken; the exit last. To be read to the end, or ended by `stop`. */
  events: AsyncGenerator<ExecEvent>
  /** Kills the command with all its children, if it has not ended yet. */
  stop(): void
}

export interface ExecView {
  stdout: string
  stderr: string
  exit_code: number
  timed_out: boolean
  truncated: boolean
  duration_ms: number
}

/** A job of cron.json as it counts (Orb Cloud contract §15.1). */
export interface CronJob {
  name: string
  schedule: string
  command: string
  env: Record<string, string>
  /** Absolute; null: /agent/code. */
  working_dir: string | null
  timeout_secs: number
  enabled: boolean
  skip_if_running: boolean
}

/** Orb Cloud contract §15.3. */
export interface CronJobView extends CronJob {
  /** Null if disabled. */
  next_fire_at: string | null
  last_fired_at: string | null
}

export interface CronJobsView {
  jobs: CronJobView[]
  /** What is wrong with cron.json, or null. */
  error: string | null
}

export interface CronRunView {
  id: string
  job_id: string
  job_name: string
  fired_at: string
  started_at: string | null
  finished_at: string | null
  status: CronRunStatus
  exit_code: number | null
  duration_ms: number | null
  stdout: string | null
  stderr: string | null
  error: string | null
}

export interface CronTriggerView {
  run_id: string
  status: 'success' | 'failure' | 'timeout' | 'error'
  exit_code: number | null
  stdout: string | null
  stderr: string | null
  duration_ms: number | null
  timed_out: boolean
}

/** Orb Cloud contract §9. */
export type LogStream = 'stdout' | 'stderr' | 'orb'

export interface LogLine {
  ts: string
  stream: LogStream
  line: string
}

export interface LogQuery {
  /** 0 to 10,000 */
  tail: number
  stream: LogStream | 'all'
}

export interface LogsView {
  computer_id: string
  lines: LogLine[]
  truncated: boolean
}

/** Orb Cloud contract §18. Times as clients write them; absent: the default. */
export interface UsageQuery {
  start?: string
  end?: string
  /** Id or short id of a computer, which may have been deleted. */
  computer?: string
}

export interface UsageView {
  period_start: string
  period_end: string
  runtime_gb_hours: number
  disk_gb_hours: number
  checkpoint_cycles: number
  computers_created: number
  computers_destroyed: number
  computer_id?: string
}

export type StatsWindow = '30d' | 'lifetime'

export interface StatsView {
  computer_id: string
  window: StatsWindow
  period_start: string
  period_end: string
  /** How long it existed, how long its agent was in RAM, and how long on disk. */
  wall_secs: number
  active_secs: number
  sleep_secs: number
  sleep_pct: number
  active_pct: number
  llm_calls: number
  checkpoints: number
  ckpt_full: number
  ckpt_incremental: number
  failures: number
  runtime_gb_hours: number
  disk_gb_hours: number
  est_cost_usd: number
  last_active_ago_secs: number | null
  avg_restore_ms: number | null
}

/** Orb Cloud contract §14.1. */
export interface FileEntry {
  name: string
  type: 'file' | 'directory' | 'symlink' | 'other'
  size: number
  mode: string
  mtime: string
}

export interface DirectoryView {
  path: string
  files: FileEntry[]
  truncated?: true
}

export interface OpenFile {
  size: number
  /** The bytes from `start` to `end` (exclusive), of a known length; closes the file when it is done with. */
  content(start: number, end: number): Promise<Blob>
  /** For a caller that does not take the content (HEAD, bad range). */
  close(): void
}

/** Orb Cloud contract §17. */
export interface BootstrapInput {
  pat: string
  api_key?: string
  branch?: string
}

export interface BootstrapView {
  workflow_path: string
  workflow_commit_sha: string
  secret_name: string
  api_key_id: string
  first_build_id: string
}

export interface DisconnectView {
  disconnected: true
  /** False: there was none. */
  workflow_deleted: boolean
  secret_deleted: boolean
}

/** Orb Cloud contract §16. */
export interface WebhookInput {
  url: string
  events: string[]
  /** Key of its signatures; made by orb when absent. */
  secret?: string
}

export interface WebhookView {
  id: string
  url: string
  events: string[]
  active: boolean
  disabled_reason: string | null
  created_at: string
}

/** One event for one webhook. */
export interface WebhookDeliveryView {
  event_id: string
  type: string
  created_at: string
  status: WebhookDeliveryStatus
  attempts: { at: string; response_status: number | null; error: string | null; duration_ms: number }[]
  next_attempt_at: string | null
}

/** Orb Cloud contract §14.2. In characters, 1 to 1000. */
export interface TerminalSize {
  columns: number
  rows: number
}

/** Who looks at a terminal. */
export interface TerminalClient {
  /** False: it takes no more until the visit's `drained` is called. */
  show(text: string): boolean
  /** The visit is over; `leave` may still be called. */
  close(code: number, reason: string): void
}

/** One client's time with a terminal. */
export interface TerminalVisit {
  /** To be called first, unless it is `leave`. */
  attach(client: TerminalClient): void
  type(bytes: Uint8Array): void
  resize(size: TerminalSize): void
  drained(): void
  /** The client has gone, or does not come. */
  leave(): void
}

/** Orb Cloud contract §13. */
export interface CreateSwarmInput {
  name: string
  /** 1 to 100 */
  replicas: number
  orb_config: Record<string, unknown>
  org_secrets?: Record<string, string>
  runtime_mb: number
  disk_mb: number
}

export interface SwarmMember {
  id: string
  short_id: string
  replica_index: number
  status: ComputerStatus
  subdomain: string
  url: string
}

export interface SwarmView {
  swarm_id: string
  name: string
  replicas: number
  computers: SwarmMember[]
  created_at: string
}

export interface FailedReplica {
  replica_index: number
  error: ReplicaError
  message: string
  computer_id: string
}

/** What became of a swarm that was to be made. */
export interface SwarmReport extends SwarmView {
  deployed: number
  failed: FailedReplica[]
}

export interface SwarmProgress {
  swarm_id: string
  /** What has just been begun (`building`) or is done. */
  phase: 'created' | 'building' | 'built' | 'shared' | 'deployed' | 'failed'
  /** The replica that it is about; null: all of them. */
  replica_index: number | null
  message: string
  deployed: number
  failed: number
  replicas: number
}

export interface RemovedSwarm {
  swarm_id: string
  deleted: number
  failed: { replica_index: number; error: string; message: string; computer_id: string }[]
}

/** What `api/` calls. Every function throws OrbError and nothing else that a client may see. */
export interface Services {
  accounts: {
    register(
      email: string,
    ): Promise<{ tenant_id: string; org_id: string; api_key: string; key_id: string; email: string }>
    login(apiKey: string): Promise<{ token: string; expires_in: number }>
    /** A key or a JWT. Throws `unauthorized`. */
    authenticate(credential: string): Promise<Principal>
    createKey(
      who: Principal,
      name: string,
    ): Promise<{ key_id: string; api_key: string; name: string; prefix: string; created_at: string }>
    listKeys(who: Principal): {
      keys: {
        key_id: string
        name: string
        prefix: string
        scope: string
        created_at: string
        last_used_at: string | null
      }[]
      total: number
    }
    revokeKey(who: Principal, keyId: string): { key_id: string; revoked: true }
  }
  computers: {
    create(who: Principal, input: CreateComputerInput): Promise<ComputerView>
    list(who: Principal): { computers: ComputerView[]; total: number }
    get(who: Principal, id: string): ComputerView
    remove(who: Principal, id: string): Promise<{ id: string; computer_id: string; deleted: true }>
  }
  configs: {
    /** `kind` says how `raw` is to be read. */
    upload(who: Principal, id: string, raw: Uint8Array, kind: 'toml' | 'json'): ConfigUploadView
    get(who: Principal, id: string): ConfigView
  }
  builds: {
    run(who: Principal, id: string, input: BuildInput): Promise<BuildView>
    list(who: Principal, id: string): { builds: BuildRecordView[] }
    get(who: Principal, id: string, buildId: string): BuildRecordView
  }
  agents: {
    deploy(who: Principal, id: string, input: DeployInput): Promise<DeployView>
    list(who: Principal, id: string): Promise<{ agents: AgentView[]; total: number }>
    /** `port` undefined: the one agent. */
    demote(who: Principal, id: string, port?: number): Promise<DemoteView>
    promote(who: Principal, id: string, port?: number): Promise<PromoteView>
    restart(who: Principal, id: string): Promise<RestartView>
  }
  swarms: {
    /**
     * Throws at once what is refused, and then nothing is made. Otherwise all is made to the end, whoever waits for it;
     * replicas that fail are in the report.
     */
    create(who: Principal, input: CreateSwarmInput, watch?: (progress: SwarmProgress) => void): Promise<SwarmReport>
    list(who: Principal): { swarms: SwarmView[]; total: number }
    /** `id`: or the name. */
    get(who: Principal, id: string): SwarmView
    /** As `get`. What could not be removed is in `failed`, and still there. */
    remove(who: Principal, id: string): Promise<RemovedSwarm>
  }
  exec: {
    run(who: Principal, id: string, input: ExecInput): Promise<ExecView>
    stream(who: Principal, id: string, input: ExecStreamInput): Promise<ExecStream>
    /** To the standard input of an interactive command; `last` closes that. Throws `not_found` when the command has ended. */
    write(
      who: Principal,
      id: string,
      execId: string,
      body: ReadableStream<Uint8Array> | null,
      last: boolean,
    ): Promise<{ written: number; closed: boolean }>
  }
  cron: {
    list(who: Principal, id: string): CronJobsView
    /** Newest first. @param job of this name only */
    runs(who: Principal, id: string, query: { job?: string; limit: number }): { runs: CronRunView[] }
    /** Runs a job now and waits for its end. Throws `job_not_found`; a run that could not begin is an answer. */
    trigger(who: Principal, id: string, name: string): Promise<CronTriggerView>
  }
  terminals: {
    /** Throws what `open` would. */
    check(who: Principal, id: string, session: string | null): void
    /** `session` null: the shell ends with its client. Else a shell of that name is looked for, which may be there already. */
    open(who: Principal, id: string, options: { session: string | null; size: TerminalSize }): Promise<TerminalVisit>
  }
  logs: {
    read(who: Principal, id: string, query: LogQuery): Promise<LogsView>
    /** The last `tail` lines, then each new line until `signal` aborts or the computer is deleted. */
    follow(who: Principal, id: string, query: LogQuery, signal: AbortSignal): AsyncIterable<LogLine>
  }
  files: {
    /** `path` is decoded, without its first slash; '' is the root. */
    read(who: Principal, id: string, path: string): Promise<DirectoryView | OpenFile>
    write(
      who: Principal,
      id: string,
      path: string,
      body: ReadableStream<Uint8Array> | null,
      contentLength: number | null,
    ): Promise<{ path: string; size: number }>
  }
  github: {
    bootstrap(who: Principal, id: string, input: BootstrapInput): Promise<BootstrapView>
    disconnect(who: Principal, id: string, pat: string): Promise<DisconnectView>
  }
  usage: {
    read(who: Principal, query: UsageQuery): UsageView
    stats(who: Principal, id: string, window: StatsWindow): StatsView
  }
  webhooks: {
    create(who: Principal, input: WebhookInput): Omit<WebhookView, 'disabled_reason'> & { secret: string }
    list(who: Principal): { webhooks: WebhookView[]; total: number }
    remove(who: Principal, id: string): { id: string; deleted: true }
    /** Newest event first, `limit` of them at most. */
    deliveries(who: Principal, id: string, limit: number): { webhook_id: string; deliveries: WebhookDeliveryView[] }
  }
  system: {
    health(): { httpStatus: 200 | 503; body: Record<string, unknown> }
    metrics(): string
  }
}
