export type KeyRole = 'viewer' | 'operator' | 'admin'

/** What the API shows of an agent (Orb Cloud contract §7.3). */
export type AgentState = 'running' | 'frozen' | 'checkpointed' | 'failed'

/**
 * What the database holds: a state, or a transition that was begun. A transition is written before the kernel is touched
 * and replaced by its outcome afterwards, so a crash in between is seen at the next start.
 */
export type AgentPhase = AgentState | 'starting' | 'checkpointing' | 'restoring' | 'stopping'

export type FailureReason = 'exit' | 'oom' | 'restore_failed'
export type SleepReason = 'llm' | 'idle' | 'manual'

export interface OrgRow {
  id: string
  email: string
  createdAt: number
}

export interface KeyRow {
  id: string
  orgId: string
  name: string
  /** First 12 characters of the key. */
  prefix: string
  /** SHA-256 of the key, 32 bytes. */
  hash: Uint8Array
  scope: string
  role: KeyRole
  createdAt: number
  lastUsedAt: number | null
}

/** All times in the store are milliseconds since the epoch, UTC. */
export interface ComputerRow {
  id: string
  shortId: string
  orgId: string
  name: string
  runtimeMb: number
  diskMb: number
  userId: string | null
  swarmId: string | null
  replicaIndex: number | null
  /** Index of its address in the subnet; unique among computers that exist. */
  slot: number
  /** Name of the base image directory that its root stands on. */
  base: string
  createdAt: number
  updatedAt: number
}

export interface PortRow {
  computerId: string
  containerPort: number
  hostPort: number
}

export type ConfigSource = 'uploaded' | 'inline' | 'swarm'

export interface ConfigRow {
  computerId: string
  /** `stored`: what the next deploy takes. `deployed`: what the agent that runs was started with. */
  kind: 'stored' | 'deployed'
  /** The validated configuration as JSON. */
  json: string
  toml: string | null
  source: ConfigSource
  updatedAt: number
}

export interface SecretRow {
  computerId: string
  name: string
  /** Nonce, ciphertext and tag as `services/vault.ts` writes them. */
  sealed: Uint8Array
}

export interface BuildRow {
  id: string
  computerId: string
  status: 'queued' | 'running' | 'success' | 'failure'
  /** JSON of the BuildView, complete once finished. */
  result: string
  /** Fingerprint of the [source] and [build] that it was made from. */
  fingerprint: string
  createdAt: number
  startedAt: number | null
  finishedAt: number | null
}

export interface AgentRow {
  computerId: string
  phase: AgentPhase
  /** Rises by one with each transition; whoever finishes a transition must still hold its number. */
  generation: number
  /** Host pid of the agent's program as last seen, or null without a process. */
  pid: number | null
  /** Name of the checkpoint directory that holds its image, or null. */
  image: string | null
  imageBytes: number | null
  startedAt: number | null
  exitCode: number | null
  stderrTail: string | null
  failureReason: FailureReason | null
  failureMessage: string | null
  sleepReason: SleepReason | null
  codeVersion: string | null
  /** True while an LLM call of the agent is outstanding: after a crash of orb its connection is dead. */
  llmOutstanding: boolean
  lastWakeMs: number | null
}

/**
 * - `sent`: no byte of its answer has come
 * - `answering`: a part of the answer is in its file
 * - `complete`: the answer is whole and waits for the agent
 * - `delivered`: the agent's kernel has it, and may still refuse it
 */
export type LlmCallState = 'sent' | 'answering' | 'complete' | 'delivered'

/** A call of an agent to its LLM. */
export interface LlmCallRow {
  id: number
  computerId: string
  state: LlmCallState
  /** It was sent a second time, after a crash. */
  resent: boolean
  sentAt: number
  /** Of a complete answer. */
  expiresAt: number | null
  /** Sealed, as are all heads: they carry keys. */
  answerHead: Uint8Array | null
  answerBytes: number | null
  /** SHA-256 in hex. */
  answerHash: string | null
  /** Replay key, upstream, head and framing of the request, sealed. */
  request: Uint8Array
  /** Length of the request's body. */
  bodyBytes: number
  /** JSON of the numbers of the blocks that hold the body in a file, or null where it lies in `body`. */
  bodyBlocks: string | null
  body: Uint8Array | null
}

/** Auto-deploy of a computer, as it was set up (Orb Cloud contract §17). */
export interface GitHubDeployRow {
  computerId: string
  owner: string
  repository: string
  branch: string
  /** The key that was made for it, if it was; null also once that is revoked. */
  madeKeyId: string | null
}

/**
 * What an agent takes of the server: `ram` while it is in memory, running or frozen; `nvme` from the end of a dump to the
 * end of the restore; `none` while there is none, or one that failed.
 */
export type UsageState = 'none' | 'ram' | 'nvme'

/** What a change of the agent's phase says beyond the phase itself. */
export interface UsageEvent {
  /** When it was so, where that is not now. */
  at?: number
  /** A dump has ended well. */
  checkpoint?: boolean
  /** A restore has ended well, after this time. */
  restoreMs?: number
  /** A dump or a restore has failed. */
  failed?: boolean
}

/** What one computer took and did within a window; durations in ms. */
export interface UsageRow {
  runtimeMb: number
  diskMb: number
  /** 1 when it was made, or deleted, within the window; else 0. */
  created: number
  deleted: number
  existsMs: number
  ramMs: number
  nvmeMs: number
  checkpoints: number
  /** Restores whose time is known, and the sum of those. */
  restores: number
  restoreMs: number
  failures: number
}

export type CronRunStatus = 'success' | 'failure' | 'timeout' | 'skipped' | 'error' | 'running'

/** A job of a computer's cron.json as it was when that could last be read. */
export interface CronJobRow {
  computerId: string
  name: string
  /** JSON of the CronJob. */
  spec: string
  /** Planned time of its last run; a trigger counts, too. */
  lastFiredAt: number | null
}

/** A run of a job, which need not be there any more. */
export interface CronRunRow {
  id: string
  computerId: string
  jobName: string
  /** Planned time. */
  firedAt: number
  /** Null: it waits for its turn, or never got it. */
  startedAt: number | null
  finishedAt: number | null
  status: CronRunStatus
  exitCode: number | null
  durationMs: number | null
  stdout: string | null
  stderr: string | null
  error: string | null
}

export interface WebhookRow {
  id: string
  orgId: string
  url: string
  /** Types of events that it wants, `*` among them for all. */
  events: string[]
  /** Of its signatures, sealed. */
  secret: Uint8Array
  /** Why nothing is sent any more; null: it is active. */
  disabledReason: string | null
  /** Events in a row that could not be delivered with all attempts. */
  failures: number
  createdAt: number
}

export interface WebhookAttempt {
  at: number
  /** Of the receiver's answer, or null where none came. */
  status: number | null
  error: string | null
  durationMs: number
}

/**
 * - `waiting`: for its first attempt or the next one
 * - `delivered`: the receiver has confirmed it
 * - `failed`: no attempt is left
 * - `dropped`: nothing is sent any more; too many waited, or the webhook was disabled
 */
export type WebhookDeliveryStatus = 'waiting' | 'delivered' | 'failed' | 'dropped'

/** One event for one webhook. */
export interface WebhookDeliveryRow {
  /** Rises with the time of the event. */
  id: number
  webhookId: string
  eventId: string
  type: string
  /** What is sent, byte for byte. */
  body: string
  createdAt: number
  status: WebhookDeliveryStatus
  /** Of one that waits: when the next attempt is due. */
  nextAt: number | null
  endedAt: number | null
  attempts: WebhookAttempt[]
}

export interface SwarmRow {
  id: string
  orgId: string
  /** Unique in the organisation. */
  name: string
  /** As many as were asked for; some may be deleted since. */
  replicas: number
  /** False while its computers are made, built and deployed. */
  made: boolean
  createdAt: number
}

export type ReplicaError = 'create_failed' | 'build_failed' | 'deploy_failed'

/** Why a replica of a swarm is not up. */
export interface ReplicaFailureRow {
  computerId: string
  error: ReplicaError
  message: string
}
