import type { Database } from 'bun:sqlite'
import type { GitHubDeployRow } from './types.ts'

export type GitHubDeployRepository = ReturnType<typeof gitHubDeployRepository>

export function gitHubDeployRepository(db: Database) {
  const put = db.query<void, { [field in keyof GitHubDeployRow]: GitHubDeployRow[field] }>(
    `INSERT INTO github_deploys (computer_id, owner, repository, branch, made_key_id)
     VALUES ($computerId, $owner, $repository, $branch, $madeKeyId)
     ON CONFLICT (computer_id) DO UPDATE SET owner = excluded.owner, repository = excluded.repository,
       branch = excluded.branch, made_key_id = excluded.made_key_id`,
  )
  const get = db.query<GitHubDeployRow, { computerId: string }>(
    `SELECT computer_id AS computerId, owner, repository, branch, made_key_id AS madeKeyId
     FROM github_deploys WHERE computer_id = $computerId`,
  )
  const remove = db.query<void, { computerId: string }>('DELETE FROM github_deploys WHERE computer_id = $computerId')
  return {
    /** Replaces the one of the same computer. */
    put: (row: GitHubDeployRow): void => void put.run({ ...row }),
    get: (computerId: string): GitHubDeployRow | null => get.get({ computerId }),
    remove: (computerId: string): void => void remove.run({ computerId }),
  }
}
