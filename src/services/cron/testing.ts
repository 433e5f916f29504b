import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openStore, type Store } from '../../store/store.ts'
import type { ComputerRow } from '../../store/types.ts'
import type { CronJob } from '../types.ts'

export const testJob = (name: string, more: Partial<CronJob> = {}): CronJob => ({
  name,
  schedule: '* * * * *',
  command: name,
  env: {},
  working_dir: null,
  timeout_secs: 30,
  enabled: true,
  skip_if_running: true,
  ...more,
})

/** A database of its own for a test, and computers in it. */
export class TestStore {
  private readonly dir = mkdtempSync(join(tmpdir(), 'orb-cron-'))
  private readonly orgs = new Set<string>()
  store: Store

  constructor() {
    this.store = openStore(join(this.dir, 'orb.db'))
  }

  computer(id: string, orgId = 'org'): ComputerRow {
    if (!this.orgs.has(orgId)) {
      this.orgs.add(orgId)
      this.store.orgs.insert({ id: orgId, email: `${orgId}@example.com`, createdAt: 1 })
    }
    return this.store.computers.insert({
      id,
      shortId: id,
      orgId,
      name: 'c',
      runtimeMb: 512,
      diskMb: 1024,
      userId: null,
      swarmId: null,
      replicaIndex: null,
      base: 'host',
      createdAt: 1,
      updatedAt: 1,
    })
  }

  /** As after a start of orb. */
  reopen(): Store {
    this.store.close()
    this.store = openStore(join(this.dir, 'orb.db'))
    return this.store
  }

  remove(): void {
    this.store.close()
    rmSync(this.dir, { recursive: true })
  }
}
