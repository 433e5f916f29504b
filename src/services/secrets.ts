import { OrbError } from '../errors.ts'
import type { SecretRepository } from '../store/configs.ts'
import type { Vault } from './vault.ts'

/** Orb Cloud contract §20. */
export const MAX_SECRETS = 200

export type Secrets = ReturnType<typeof createSecrets>

/** The `org_secrets` of computers: sealed in the database, bound to their computer. */
export function createSecrets(deps: { secrets: SecretRepository; vault: Vault }) {
  const { secrets, vault } = deps

  function check(computerId: string, sent: Record<string, string> = {}): void {
    const names = new Set([...secrets.list(computerId).map(({ name }) => name), ...Object.keys(sent)])
    if (names.size <= MAX_SECRETS) return
    throw new OrbError('invalid_request', `org_secrets: a computer may have at most ${MAX_SECRETS} secrets`)
  }

  return {
    /** Throws `invalid_request` when the computer would have too many with those that are sent now. */
    check,

    /** All that are stored, in plain text. */
    all: (computerId: string): Record<string, string> =>
      Object.fromEntries(secrets.list(computerId).map(({ name, sealed }) => [name, vault.open(sealed, computerId)])),

    /** Stores those that were sent now; others stay as they are (Orb Cloud contract §7.2). Throws as `check`: none then. */
    keep(computerId: string, sent: Record<string, string> = {}): void {
      check(computerId, sent)
      secrets.put(
        Object.entries(sent).map(([name, value]) => ({ computerId, name, sealed: vault.seal(value, computerId) })),
      )
    },
  }
}
