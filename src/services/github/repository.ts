import { OrbError } from '../../errors.ts'

/** A repository as GitHub names it. */
export interface Repository {
  owner: string
  name: string
}

/** Owners are letters, digits and hyphens; those of an enterprise's managed users have an underscore. */
const PATH = /^\/([A-Za-z0-9][A-Za-z0-9_-]{0,99})\/([A-Za-z0-9._-]{1,100}?)(?:\.git)?\/?$/

/** The repository that `source.git` names. Throws `unsupported_source` unless it is `<host>/<owner>/<name>`. */
export function repositoryOf(git: string, host: string): Repository {
  const url = URL.parse(git)
  const [, owner, name] = PATH.exec(url?.pathname ?? '') ?? []
  if (url?.host !== host || owner === undefined || name === undefined || /^\.{1,2}$/.test(name) || url.search !== '') {
    throw new OrbError('unsupported_source', `source.git must be https://${host}/<owner>/<repository> for this`)
  }
  return { owner, name }
}

export const fullName = ({ owner, name }: Repository): string => `${owner}/${name}`
