import { OrbError } from '../errors.ts'
import type { Store } from '../store/store.ts'
import type { ComputerRow } from '../store/types.ts'
import type { Principal } from './types.ts'

/** Finds the caller's computer by id or short id. Another organisation's answers exactly like one that never was. */
export type FindComputer = (who: Principal, id: string) => ComputerRow

/** @param deleting ids of computers that are on their way out: they are not found any more. @throws OrbError not_found */
export const createFindComputer =
  (store: Store, deleting: ReadonlySet<string>): FindComputer =>
  (who, id) => {
    const computer = store.computers.get(id)
    if (!computer || computer.orgId !== who.orgId || deleting.has(computer.id))
      throw new OrbError('not_found', 'no such computer')
    return computer
  }
