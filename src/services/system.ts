import { randomUUID } from 'node:crypto'
import { rmSync, statfsSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { log } from '../log.ts'
import type { Store } from '../store/store.ts'
import { isoTime } from '../time.ts'
import { createMetrics, type Metrics } from './metrics.ts'
import type { Services } from './types.ts'

/** What `/health` calls this program: launchers of the broker interface look for it. */
const SERVICE_NAME = 'open-resource-broker'

/** Below this the disk is reported as degraded: there is no room for the image of a large agent. */
const LOW_DISK_BYTES = 1024 ** 3

type CheckStatus = 'healthy' | 'degraded' | 'unhealthy'

/** Checks write to the disk, and anyone may ask: an answer is kept this long. */
const CHECKS_KEPT_MS = 1000

interface Check {
  status: CheckStatus
  details: string
}

/** Every metric of orb (Orb Cloud contract §19). */
const METRICS = {
  orb_build_info: { kind: 'gauge', text: 'Always 1; the label tells the version.' },
  orb_computers: { kind: 'gauge', text: 'Computers that exist.' },
  orb_agents: { kind: 'gauge', text: 'Agents that exist.' },
  orb_http_requests_total: { kind: 'counter', text: 'API requests answered.' },
  orb_http_request_seconds: { kind: 'histogram', text: 'Time from request to answer.' },
  orb_llm_requests_total: { kind: 'counter', text: 'LLM calls that reached the proxy.' },
  orb_llm_inflight: { kind: 'gauge', text: 'LLM calls outstanding.' },
  orb_llm_upstream_seconds: { kind: 'histogram', text: 'Time until the first byte of an LLM answer.' },
  orb_llm_replays_total: { kind: 'counter', text: 'LLM answers that were delivered to a repeated request.' },
  orb_checkpoints_total: { kind: 'counter', text: 'Checkpoints written.' },
  orb_restores_total: { kind: 'counter', text: 'Agents restored from a checkpoint.' },
  orb_reclaims_total: { kind: 'counter', text: 'Agents whose memory went to swap.' },
  orb_reclaim_seconds: { kind: 'histogram', text: 'Time that this took.' },
  orb_checkpoint_failures_total: { kind: 'counter', text: 'Failed dumps and restores.' },
  orb_checkpoint_seconds: { kind: 'histogram', text: 'Time of a dump.' },
  orb_restore_seconds: { kind: 'histogram', text: 'Time of a restore.' },
  orb_checkpoint_bytes: { kind: 'gauge', text: 'Bytes of the checkpoints on disk.' },
  orb_cron_runs_total: { kind: 'counter', text: 'Cron runs that ended.' },
  orb_webhook_deliveries_total: { kind: 'counter', text: 'Webhook deliveries that ended.' },
} as const

/** The registry that every part of orb counts in. */
export const createOrbMetrics = (): Metrics => createMetrics(METRICS)

export function createSystem(deps: {
  store: Store
  dataDir: string
  version: string
  metrics: Metrics
  /** Null when agents can be checkpointed here, else the reason why not. */
  checkpointProblem: () => string | null
}): Services['system'] {
  const startedAt = performance.now()
  deps.metrics.gauge('orb_build_info', () => [{ labels: { version: deps.version }, value: 1 }])

  let written = { at: Number.NEGATIVE_INFINITY, database: HEALTHY, disk: HEALTHY }
  const checkWriting = () => {
    if (performance.now() - written.at >= CHECKS_KEPT_MS) {
      const database = attempt('database', () => deps.store.probe())
      written = { at: performance.now(), database, disk: checkDisk(deps.dataDir) }
    }
    return written
  }

  return {
    health() {
      const checkpointProblem = deps.checkpointProblem()
      const { database, disk } = checkWriting()
      const runtime: Check = checkpointProblem === null ? HEALTHY : { status: 'degraded', details: checkpointProblem }
      const checks = { database, disk, runtime }
      const status = worst(Object.values(checks))
      const problems = Object.entries(checks).flatMap(([name, check]) =>
        check.status === 'unhealthy' ? [`${name}: ${check.details}`] : [],
      )
      const timestamp = isoTime(Date.now())
      return {
        httpStatus: status === 'unhealthy' ? 503 : 200,
        body: {
          status,
          service: SERVICE_NAME,
          version: deps.version,
          uptime_secs: Math.floor((performance.now() - startedAt) / 1000),
          checkpoint: checkpointProblem === null ? 'ok' : 'unavailable',
          checks: Object.fromEntries(
            Object.entries(checks).map(([name, check]) => [name, { name, ...check, timestamp, dependencies: [] }]),
          ),
          ...(status === 'unhealthy' ? { problems } : {}),
        },
      }
    },
    metrics: () => deps.metrics.render(),
  }
}

const HEALTHY: Check = { status: 'healthy', details: 'ok' }

/** The reason goes to the log alone: it names paths of the server, and anyone may read `/health`. */
function attempt(name: string, work: () => void): Check {
  try {
    work()
    return HEALTHY
  } catch (error) {
    log('error', 'health check failed', { check: name, error })
    return { status: 'unhealthy', details: 'cannot be written' }
  }
}

function checkDisk(dataDir: string): Check {
  const written = attempt('disk', () => {
    const probe = join(dataDir, `.probe-${randomUUID()}`)
    writeFileSync(probe, 'probe')
    rmSync(probe)
  })
  if (written.status !== 'healthy') return written
  const { bavail, bsize } = statfsSync(dataDir)
  if (bavail * bsize >= LOW_DISK_BYTES) return HEALTHY
  return { status: 'degraded', details: 'less than 1 GiB is free' }
}

const ORDER: readonly CheckStatus[] = ['healthy', 'degraded', 'unhealthy']

const worst = (checks: Check[]): CheckStatus =>
  ORDER[Math.max(...checks.map((check) => ORDER.indexOf(check.status)))] ?? 'unhealthy'
