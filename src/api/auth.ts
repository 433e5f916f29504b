import { OrbError } from '../errors.ts'
import type { Principal, Services } from '../services/types.ts'

const SHORT_ID_CHARACTERS = 8

/**
 * Who a route is for. `key`: holders of a full key, viewers only for reading. `deploy`: also keys that are bound to the
 * computer in the path (Orb Cloud contract §2).
 */
export type Access = 'public' | 'key' | 'deploy'

/** The credential of `Authorization: Bearer …`, or null. */
export function bearer(request: Request): string | null {
  const match = /^bearer +(\S+)$/i.exec(request.headers.get('authorization')?.trim() ?? '')
  return match?.[1] ?? null
}

/**
 * The caller of a request that needs a credential. Throws `unauthorized`.
 * @param keyInQuery whether that may be the query parameter `key`: browsers cannot give a WebSocket a header
 */
export async function authenticate(
  request: Request,
  accounts: Services['accounts'],
  keyInQuery = false,
): Promise<Principal> {
  const credential = bearer(request) ?? (keyInQuery ? new URL(request.url).searchParams.get('key') : null)
  if (credential === null) throw new OrbError('unauthorized', 'the header Authorization: Bearer <API key> is missing')
  return accounts.authenticate(credential)
}

/** Throws `forbidden` when the caller's key does not reach this far. */
export function authorize(
  who: Principal,
  call: { access: Access; changes: boolean; computerId: string | undefined },
): void {
  const bound = /^deploy:(.+)$/.exec(who.scope)?.[1]
  if (who.scope !== 'full' && (call.access !== 'deploy' || !isSameComputer(bound, call.computerId))) {
    throw new OrbError('forbidden', 'this key may only deploy its own computer')
  }
  if (who.role === 'viewer' && call.changes) throw new OrbError('forbidden', 'a viewer may only read')
}

const isSameComputer = (bound: string | undefined, asked: string | undefined): boolean =>
  bound !== undefined && (asked === bound || asked === bound.slice(0, SHORT_ID_CHARACTERS))
