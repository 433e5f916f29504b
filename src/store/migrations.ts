import type { Database } from 'bun:sqlite'

/** Migration n brings the database from version n to n + 1. One that was released is never edited: a new one follows it. */
export const MIGRATIONS: readonly string[] = [
  `
  CREATE TABLE orgs (
    id TEXT PRIMARY KEY,
    email TEXT NOT NULL UNIQUE,
    created_at INTEGER NOT NULL
  ) STRICT;

  CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    org_id TEXT NOT NULL REFERENCES orgs (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    prefix TEXT NOT NULL,
    hash BLOB NOT NULL UNIQUE,
    scope TEXT NOT NULL,
    role TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    last_used_at INTEGER
  ) STRICT;
  CREATE INDEX keys_by_org ON keys (org_id, created_at);

  CREATE TABLE computers (
    id TEXT PRIMARY KEY,
    short_id TEXT NOT NULL UNIQUE,
    org_id TEXT NOT NULL REFERENCES orgs (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    runtime_mb INTEGER NOT NULL,
    disk_mb INTEGER NOT NULL,
    user_id TEXT,
    swarm_id TEXT,
    replica_index INTEGER,
    slot INTEGER NOT NULL UNIQUE CHECK (slot >= 1),
    base TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
  ) STRICT;
  CREATE INDEX computers_by_org ON computers (org_id, created_at);

  CREATE TABLE ports (
    computer_id TEXT NOT NULL REFERENCES computers (id) ON DELETE CASCADE,
    container_port INTEGER NOT NULL,
    host_port INTEGER NOT NULL UNIQUE,
    PRIMARY KEY (computer_id, container_port)
  ) STRICT;

  CREATE TABLE configs (
    computer_id TEXT NOT NULL REFERENCES computers (id) ON DELETE CASCADE,
    kind TEXT NOT NULL CHECK (kind IN ('stored', 'deployed')),
    json TEXT NOT NULL,
    toml TEXT,
    source TEXT NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (computer_id, kind)
  ) STRICT;

  CREATE TABLE secrets (
    computer_id TEXT NOT NULL REFERENCES computers (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    sealed BLOB NOT NULL,
    PRIMARY KEY (computer_id, name)
  ) STRICT;

  CREATE TABLE builds (
    id TEXT PRIMARY KEY,
    computer_id TEXT NOT NULL REFERENCES computers (id) ON DELETE CASCADE,
    status TEXT NOT NULL,
    result TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    finished_at INTEGER
  ) STRICT;
  CREATE INDEX builds_by_computer ON builds (computer_id, created_at);

  CREATE TABLE agents (
    computer_id TEXT PRIMARY KEY REFERENCES computers (id) ON DELETE CASCADE,
    phase TEXT NOT NULL,
    generation INTEGER NOT NULL,
    pid INTEGER,
    image TEXT,
    image_bytes INTEGER,
    started_at INTEGER,
    exit_code INTEGER,
    stderr_tail TEXT,
    failure_reason TEXT,
    failure_message TEXT,
    sleep_reason TEXT,
    code_version TEXT,
    llm_outstanding INTEGER NOT NULL,
    last_wake_ms INTEGER
  ) STRICT;
  `,
  `
  CREATE TABLE llm_calls (
    id INTEGER PRIMARY KEY,
    computer_id TEXT NOT NULL REFERENCES computers (id) ON DELETE CASCADE,
    state TEXT NOT NULL CHECK (state IN ('sent', 'answering', 'complete', 'delivered')),
    resent INTEGER NOT NULL,
    sent_at INTEGER NOT NULL,
    expires_at INTEGER,
    answer_head BLOB,
    answer_bytes INTEGER,
    answer_hash TEXT,
    request BLOB NOT NULL,
    body_bytes INTEGER NOT NULL,
    body_blocks TEXT,
    body BLOB
  ) STRICT;
  `,
  `
  CREATE TABLE github_deploys (
    computer_id TEXT PRIMARY KEY REFERENCES computers (id) ON DELETE CASCADE,
    owner TEXT NOT NULL,
    repository TEXT NOT NULL,
    branch TEXT NOT NULL,
    made_key_id TEXT REFERENCES keys (id) ON DELETE SET NULL
  ) STRICT;
  `,
  `
  CREATE TABLE usage_computers (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    org_id TEXT NOT NULL REFERENCES orgs (id) ON DELETE CASCADE,
    runtime_mb INTEGER NOT NULL,
    disk_mb INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    deleted_at INTEGER
  ) STRICT;
  CREATE INDEX usage_computers_by_org ON usage_computers (org_id);

  CREATE TABLE usage_marks (
    computer INTEGER NOT NULL REFERENCES usage_computers (number) ON DELETE CASCADE,
    at INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('none', 'ram', 'nvme')),
    ram_ms INTEGER NOT NULL,
    nvme_ms INTEGER NOT NULL,
    checkpoints INTEGER NOT NULL,
    restores INTEGER NOT NULL,
    restore_ms INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    active_at INTEGER,
    PRIMARY KEY (computer, at)
  ) STRICT, WITHOUT ROWID;

  CREATE TABLE usage_llm_calls (
    computer_id TEXT NOT NULL REFERENCES computers (id) ON DELETE CASCADE,
    hour INTEGER NOT NULL,
    calls INTEGER NOT NULL,
    PRIMARY KEY (computer_id, hour)
  ) STRICT, WITHOUT ROWID;

  CREATE TABLE usage_seen (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    at INTEGER NOT NULL
  ) STRICT;

  INSERT INTO usage_computers (id, org_id, runtime_mb, disk_mb, created_at)
    SELECT id, org_id, runtime_mb, disk_mb, created_at FROM computers ORDER BY created_at, rowid;
  -- What its agent did before was not written down: it counts from here on.
  INSERT INTO usage_marks
    SELECT number, MAX(created_at, CAST(unixepoch('subsec') * 1000 AS INTEGER)),
      IIF(phase IN ('checkpointed', 'restoring'), 'nvme', 'ram'), 0, 0, 0, 0, 0, 0, NULL
    FROM usage_computers JOIN agents ON computer_id = id
    WHERE phase IN ('running', 'frozen', 'checkpointing', 'checkpointed', 'restoring');
  `,
  `
  CREATE TABLE cron_errors (
    computer_id TEXT PRIMARY KEY REFERENCES computers (id) ON DELETE CASCADE,
    error TEXT NOT NULL
  ) STRICT;

  CREATE TABLE cron_jobs (
    computer_id TEXT NOT NULL REFERENCES computers (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    position INTEGER NOT NULL,
    spec TEXT NOT NULL,
    last_fired_at INTEGER,
    PRIMARY KEY (computer_id, name)
  ) STRICT;

  CREATE TABLE cron_runs (
    id TEXT PRIMARY KEY,
    computer_id TEXT NOT NULL REFERENCES computers (id) ON DELETE CASCADE,
    job_name TEXT NOT NULL,
    fired_at INTEGER NOT NULL,
    started_at INTEGER,
    finished_at INTEGER,
    status TEXT NOT NULL,
    exit_code INTEGER,
    duration_ms INTEGER,
    error TEXT,
    stdout TEXT,
    stderr TEXT
  ) STRICT;
  CREATE INDEX cron_runs_by_computer ON cron_runs (computer_id, fired_at);
  CREATE INDEX cron_runs_unfinished ON cron_runs (computer_id) WHERE finished_at IS NULL;
  `,
  `
  CREATE TABLE webhooks (
    id TEXT PRIMARY KEY,
    org_id TEXT NOT NULL REFERENCES orgs (id) ON DELETE CASCADE,
    url TEXT NOT NULL,
    events TEXT NOT NULL,
    secret BLOB NOT NULL,
    disabled_reason TEXT,
    failures INTEGER NOT NULL,
    created_at INTEGER NOT NULL
  ) STRICT;
  CREATE INDEX webhooks_by_org ON webhooks (org_id, created_at);

  CREATE TABLE webhook_deliveries (
    id INTEGER PRIMARY KEY,
    webhook_id TEXT NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    event_id TEXT NOT NULL,
    type TEXT NOT NULL,
    body TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('waiting', 'delivered', 'failed', 'dropped')),
    next_at INTEGER CHECK ((next_at IS NULL) = (status <> 'waiting')),
    ended_at INTEGER CHECK ((ended_at IS NULL) = (status = 'waiting')),
    attempts TEXT NOT NULL
  ) STRICT;
  CREATE INDEX webhook_deliveries_by_webhook ON webhook_deliveries (webhook_id, id);
  CREATE INDEX webhook_deliveries_due ON webhook_deliveries (webhook_id, next_at) WHERE next_at IS NOT NULL;
  CREATE INDEX webhook_deliveries_waiting ON webhook_deliveries (webhook_id, id) WHERE next_at IS NOT NULL;
  CREATE INDEX webhook_deliveries_ended ON webhook_deliveries (webhook_id, ended_at) WHERE ended_at IS NOT NULL;
  `,
  `
  CREATE TABLE swarms (
    id TEXT PRIMARY KEY,
    org_id TEXT NOT NULL REFERENCES orgs (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    replicas INTEGER NOT NULL,
    made INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (org_id, name)
  ) STRICT;

  CREATE TABLE replica_failures (
    computer_id TEXT PRIMARY KEY REFERENCES computers (id) ON DELETE CASCADE,
    error TEXT NOT NULL CHECK (error IN ('create_failed', 'build_failed', 'deploy_failed')),
    message TEXT NOT NULL
  ) STRICT;
  CREATE INDEX computers_by_swarm ON computers (swarm_id, replica_index);
  `,
  'ALTER TABLE computers ADD COLUMN disk_made INTEGER NOT NULL DEFAULT 0 CHECK (disk_made IN (0, 1))',
]

/**
 * Brings the database to the newest version, all steps or none. Throws when it was written by a newer orb: its tables may
 * mean something else.
 */
export function migrate(db: Database, migrations: readonly string[] = MIGRATIONS): void {
  const version = db.query<{ user_version: number }, []>('PRAGMA user_version').get()?.user_version ?? 0
  if (version > migrations.length) {
    throw new Error(`the database has version ${version}, this orb knows ${migrations.length}: start a newer orb`)
  }
  if (version === migrations.length) return
  const run = db.transaction(() => {
    for (const step of migrations.slice(version)) db.run(step)
    db.run(`PRAGMA user_version = ${migrations.length}`)
  })
  run.exclusive()
}
