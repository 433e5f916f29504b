import { Computer, ComputerList } from './answers.ts'
import { Api, computerPath } from './api.ts'
import { findTarget } from './credentials.ts'
import { ApiFailure, CommandFailure } from './failure.ts'

/** What options say which server is spoken to. */
export const connect = (values: { url?: string | undefined }): Api => new Api(findTarget(values.url, process.env))

const ID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/
const SHORT_ID_LENGTH = 8

export const shortIdOf = (computer: Computer): string => computer.short_id ?? computer.id.slice(0, SHORT_ID_LENGTH)

/** The computer that a full id, a short id or a name means; refused where several have the name. */
export async function findComputer(api: Api, wanted: string): Promise<Computer> {
  if (ID.test(wanted)) return api.ask(Computer, 'GET', computerPath(wanted))
  const found = pickComputer(await listComputers(api), wanted)
  if (found) return found
  throw new ApiFailure(404, 'not_found', `no computer ${wanted} on ${api.target.url}; orb computers lists them`)
}

export const listComputers = async (api: Api): Promise<Computer[]> =>
  (await api.ask(ComputerList, 'GET', '/v1/computers')).computers

/** Ids go before names. Null where nothing fits. */
export function pickComputer(computers: Computer[], wanted: string): Computer | null {
  const byId = computers.find((one) => one.id === wanted || shortIdOf(one) === wanted)
  if (byId) return byId
  const named = computers.filter(({ name }) => name === wanted)
  if (named.length <= 1) return named[0] ?? null
  const candidates = named.map((one) => `  ${shortIdOf(one)}  ${one.status}, made ${one.created_at ?? 'some time ago'}`)
  throw new CommandFailure(
    `${named.length} computers are named ${wanted}; say which by its id:\n${candidates.join('\n')}`,
  )
}
