/**
 * What the client reads of the answers of the Orb Cloud API, any server's of any age: fields that it does not use may be
 * missing, and those that it does not know are kept for --json.
 */
import { z } from 'zod'

export const Computer = z.looseObject({
  id: z.string(),
  short_id: z.string().optional(),
  name: z.string(),
  runtime_mb: z.number(),
  disk_mb: z.number(),
  status: z.string(),
  agent_state: z.string().nullish(),
  url: z.string().nullish(),
  swarm_id: z.string().nullish(),
  created_at: z.string().nullish(),
})
export type Computer = z.output<typeof Computer>

export const ComputerList = z.looseObject({ computers: z.array(Computer) })

export const Anything = z.looseObject({})

export const Agent = z.looseObject({
  state: z.string().transform((state) => state.toLowerCase()),
  pid: z.number().nullish(),
  port: z.number().nullish(),
  exit_code: z.number().nullish(),
  stderr_tail: z.string().nullish(),
  failure_reason: z.string().nullish(),
  sleep_reason: z.string().nullish(),
  started_at: z.string().nullish(),
})
export type Agent = z.output<typeof Agent>

export const AgentList = z.looseObject({ agents: z.array(Agent) })

export const Config = z.looseObject({ warnings: z.array(z.string()).default([]) })

const BuildStep = z.looseObject({
  step: z.string(),
  exit_code: z.number(),
  stdout: z.string().default(''),
  stderr: z.string().default(''),
  duration_ms: z.number().nullish(),
  timed_out: z.boolean().nullish(),
})
export type BuildStep = z.output<typeof BuildStep>

export const Build = z.looseObject({
  build_id: z.string().optional(),
  success: z.boolean(),
  steps: z.array(BuildStep).default([]),
  commit: z.string().nullish(),
  message: z.string().nullish(),
})
export type Build = z.output<typeof Build>

export const BuildList = z.looseObject({
  builds: z.array(Build.extend({ build_id: z.string(), status: z.string() })),
})

export const Deployed = z.looseObject({
  agents: z.array(Agent),
  url: z.string().nullish(),
  warnings: z.array(z.string()).default([]),
})

export const LogLine = z.looseObject({ ts: z.string(), stream: z.string(), line: z.string() })
export type LogLine = z.output<typeof LogLine>

export const Logs = z.looseObject({ lines: z.array(LogLine) })

export const Executed = z.looseObject({
  stdout: z.string(),
  stderr: z.string(),
  exit_code: z.number(),
  timed_out: z.boolean().default(false),
  truncated: z.boolean().default(false),
})

export const Demoted = z.looseObject({ size_bytes: z.number().nullish(), duration_ms: z.number().nullish() })

export const Promoted = z.looseObject({ status: z.string(), restore_ms: z.number().nullish() })

export const Directory = z.looseObject({
  files: z.array(
    z.looseObject({
      name: z.string(),
      type: z.string(),
      size: z.number().default(0),
      mode: z.string().nullish(),
      mtime: z.string().nullish(),
    }),
  ),
  truncated: z.boolean().default(false),
})

const SwarmComputer = z.looseObject({
  id: z.string(),
  replica_index: z.number().nullish(),
  status: z.string(),
  url: z.string().nullish(),
})

export const Swarm = z.looseObject({
  swarm_id: z.string(),
  name: z.string(),
  replicas: z.number(),
  computers: z.array(SwarmComputer).default([]),
})

export const SwarmList = z.looseObject({ swarms: z.array(Swarm) })

export const SwarmReport = Swarm.extend({
  deployed: z.number(),
  failed: z.array(z.looseObject({ replica_index: z.number(), error: z.string(), message: z.string() })).default([]),
})

export const SwarmProgress = z.looseObject({
  phase: z.string(),
  replica_index: z.number().nullish(),
  message: z.string(),
  deployed: z.number(),
  failed: z.number(),
  replicas: z.number(),
})

export const SwarmRemoved = z.looseObject({ deleted: z.number(), failed: z.array(z.unknown()).default([]) })

export const Refused = z.looseObject({ error: z.string(), message: z.string() })

export const CronJobs = z.looseObject({
  jobs: z.array(
    z.looseObject({
      name: z.string(),
      schedule: z.string(),
      command: z.string(),
      enabled: z.boolean().default(true),
      next_fire_at: z.string().nullish(),
      last_fired_at: z.string().nullish(),
    }),
  ),
  error: z.string().nullish(),
})

export const CronRuns = z.looseObject({
  runs: z.array(
    z.looseObject({
      job_name: z.string(),
      fired_at: z.string(),
      status: z.string(),
      exit_code: z.number().nullish(),
      duration_ms: z.number().nullish(),
      error: z.string().nullish(),
    }),
  ),
})

export const CronTriggered = z.looseObject({
  status: z.string(),
  exit_code: z.number().nullish(),
  stdout: z.string().nullish(),
  stderr: z.string().nullish(),
  error: z.string().nullish(),
  message: z.string().nullish(),
})

export const Usage = z.looseObject({
  period_start: z.string(),
  period_end: z.string(),
  runtime_gb_hours: z.number(),
  disk_gb_hours: z.number(),
  checkpoint_cycles: z.number(),
})

export const Stats = z.looseObject({ computer_id: z.string(), window: z.string() })

export const Registered = z.looseObject({ api_key: z.string(), email: z.string().optional() })

export const Key = z.looseObject({
  key_id: z.string(),
  name: z.string().nullish(),
  prefix: z.string().nullish(),
  scope: z.string().nullish(),
  created_at: z.string().nullish(),
  last_used_at: z.string().nullish(),
})

export const KeyList = z.looseObject({ keys: z.array(Key) })

export const CreatedKey = z.looseObject({ key_id: z.string(), api_key: z.string() })
