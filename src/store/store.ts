import { Database } from 'bun:sqlite'
import { type AgentRepository, agentRepository } from './agents.ts'
import { type BuildRepository, buildRepository } from './builds.ts'
import { type ComputerRepository, computerRepository, type PortRepository, portRepository } from './computers.ts'
import { type ConfigRepository, configRepository, type SecretRepository, secretRepository } from './configs.ts'
import { type CronRepository, cronRepository } from './cron.ts'
import { type GitHubDeployRepository, gitHubDeployRepository } from './github-deploys.ts'
import { type LlmCallRepository, llmCallRepository } from './llm-calls.ts'
import { migrate } from './migrations.ts'
import { type KeyRepository, keyRepository, type OrgRepository, orgRepository } from './orgs.ts'
import { type SwarmRepository, swarmRepository } from './swarms.ts'
import { type UsageRepository, usageRepository } from './usage.ts'
import { type WebhookRepository, webhookRepository } from './webhooks.ts'

/** How long a statement waits for another process (`orb keys create` beside `orb serve`) before it fails. */
const BUSY_TIMEOUT_MS = 10_000

/**
 * The database. Every write is on disk when the call returns, but for an update that asks for less, `llmCalls`,
 * `usage.countCall`, the end of a cron run and attempts of `webhooks`.
 */
export interface Store {
  orgs: OrgRepository
  keys: KeyRepository
  computers: ComputerRepository
  ports: PortRepository
  configs: ConfigRepository
  secrets: SecretRepository
  builds: BuildRepository
  agents: AgentRepository
  githubDeploys: GitHubDeployRepository
  swarms: SwarmRepository
  llmCalls: LlmCallRepository
  usage: UsageRepository
  cron: CronRepository
  webhooks: WebhookRepository
  /** Runs `work`, which must not be async, whole or not at all. */
  transaction<T>(work: () => T): T
  /** Throws when the database cannot be written. */
  probe(): void
  close(): void
}

/** Opens or creates the database file and migrates it. Throws when it cannot be opened or is of a newer orb. */
export function openStore(path: string): Store {
  const db = new Database(path, { create: true, strict: true })
  const quick = new Database(path, { strict: true })
  try {
    for (const connection of [db, quick]) {
      // First of all: the switch to WAL needs a lock, and without a timeout a second process fails at once.
      connection.run(`PRAGMA busy_timeout = ${BUSY_TIMEOUT_MS}`)
      connection.run('PRAGMA journal_mode = WAL')
      connection.run('PRAGMA foreign_keys = ON')
    }
    db.run('PRAGMA synchronous = FULL')
    quick.run('PRAGMA synchronous = NORMAL')
    migrate(db)
  } catch (error) {
    quick.close()
    db.close()
    throw error
  }
  const usage = usageRepository(db, quick)
  return {
    orgs: orgRepository(db),
    keys: keyRepository(db),
    computers: computerRepository(db, usage),
    ports: portRepository(db),
    configs: configRepository(db),
    secrets: secretRepository(db),
    builds: buildRepository(db),
    githubDeploys: gitHubDeployRepository(db),
    agents: agentRepository(db, usage),
    swarms: swarmRepository(db),
    llmCalls: llmCallRepository(db, quick),
    usage,
    cron: cronRepository(db, quick),
    webhooks: webhookRepository(db, quick),
    transaction: (work) => db.transaction(work).immediate(),
    probe() {
      db.transaction(() => {
        const version = db.query<{ user_version: number }, []>('PRAGMA user_version').get()?.user_version
        // Writing the value that is there already still needs a writable file.
        db.run(`PRAGMA user_version = ${version}`)
      }).immediate()
    },
    close() {
      quick.close()
      db.close()
    },
  }
}
