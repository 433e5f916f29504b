import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { openStore, type Store } from '../../store/store.ts'
import type { ComputerRow } from '../../store/types.ts'

/** A database of its own for a test, and computers in it. */
export class TestStore {
  private readonly dir = mkdtempSync(join(tmpdir(), 'orb-cron-'))
  store: Store

  constructor() {
    this.store = openStore(join(this.dir, 'orb.db'))
    this.store.orgs.insert({ id: 'org', email: 'a@example.com', createdAt: 1 })
  }

  computer(id: string): ComputerRow {
    return this.store.computers.insert({
      id,
      shortId: id,
      orgId: 'org',
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
