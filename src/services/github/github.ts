import type { Settings } from '../../config.ts'
import { OrbError } from '../../errors.ts'
import { log } from '../../log.ts'
import { UpstreamLinks } from '../../proxy/upstream-link.ts'
import type { Store } from '../../store/store.ts'
import type { ComputerRow } from '../../store/types.ts'
import type { Accounts } from '../accounts.ts'
import type { Builds } from '../builds/builds.ts'
import { isBranch } from '../config/schema.ts'
import type { FindComputer } from '../lookup.ts'
import { fromJson } from '../orb-toml.ts'
import type { Principal, Services } from '../types.ts'
import { GitHubApi } from './api.ts'
import { fullName, type Repository, repositoryOf } from './repository.ts'
import { SECRET_NAME, WORKFLOW_PATH, workflow } from './workflow.ts'

export interface GitHubDeps {
  settings: Pick<Settings, 'allowPrivate' | 'githubApi' | 'githubHost' | 'publicUrl'>
  store: Store
  accounts: Pick<Accounts, 'authenticate' | 'draftKey'>
  builds: Pick<Builds, 'begin'>
  findComputer: FindComputer
  version: string
}

interface Target {
  repository: Repository
  branch: string
}

/** Auto-deploy on push (Orb Cloud contract §17). A token lives no longer than the request, or the first build, that it is for. */
export function createGitHub(deps: GitHubDeps): Services['github'] {
  const { settings, store, accounts, findComputer } = deps
  const links = new UpstreamLinks({ allowPrivate: settings.allowPrivate })
  const inTurn = createTurns()

  const apiFor = (pat: string, repository: Repository) =>
    new GitHubApi({ links, baseUrl: settings.githubApi, version: deps.version, pat }, repository)

  function sourceOf(computer: ComputerRow): Target {
    const row = store.configs.get(computer.id, 'stored')
    const source = row && fromJson(row.json).source
    if (!source) throw new OrbError('no_source', 'the configuration of this computer has no [source]')
    return { repository: repositoryOf(source.git, settings.githubHost), branch: source.branch }
  }

  /** Where auto-deploy was set up, though the configuration may name another repository by now. */
  function connected(computer: ComputerRow): Target {
    const row = store.githubDeploys.get(computer.id)
    if (!row) return sourceOf(computer)
    return { repository: { owner: row.owner, name: row.repository }, branch: row.branch }
  }

  /** The key that the workflow gets: one that was sent, or a new one, which counts only once it is stored. */
  async function keyFor(who: Principal, computer: ComputerRow, sent: string | undefined, repository: Repository) {
    const scope = `deploy:${computer.id}`
    if (sent === undefined) return accounts.draftKey(who, `github ${fullName(repository)}`, scope)
    const owner = await accounts.authenticate(sent).catch(() => null)
    const reaches = owner?.scope === 'full' || owner?.scope === scope
    if (!sent.startsWith('orb_') || owner?.orgId !== who.orgId || !reaches || owner.role === 'viewer') {
      throw new OrbError('invalid_request', 'api_key must be a key of this organisation that may build this computer')
    }
    return { key: sent, id: owner.keyId, store: null }
  }

  return {
    async bootstrap(who, id, { pat, api_key, branch }) {
      const computer = findComputer(who, id)
      const source = sourceOf(computer)
      const target: Target = { ...source, branch: branch ?? source.branch }
      if (!isBranch(target.branch)) throw new OrbError('invalid_request', 'branch must be a branch name such as main')
      return inTurn(computer.id, async () => {
        const { repository } = target
        const key = await keyFor(who, computer, api_key, repository)
        const api = apiFor(pat, repository)
        await api.checkAccess()
        await api.putSecret(SECRET_NAME, key.key)
        const file = workflow({ publicUrl: settings.publicUrl, computerId: computer.id, branch: target.branch })
        const place = { path: WORKFLOW_PATH, branch: target.branch }
        const commit = await api.putFile(place, file, 'Deploy to orb on push')

        // Throws when it was deleted meanwhile: then nothing is kept of the key.
        findComputer(who, id)
        store.transaction(() => {
          const former = store.githubDeploys.get(computer.id)?.madeKeyId
          key.store?.()
          store.githubDeploys.put({
            computerId: computer.id,
            owner: repository.owner,
            repository: repository.name,
            branch: target.branch,
            madeKeyId: key.store ? key.id : null,
          })
          // The repository has another one now.
          if (former && former !== key.id) store.keys.remove(who.orgId, former)
        })
        log('info', 'auto-deploy is set up', { computer: computer.shortId, repository: fullName(repository) })
        return {
          workflow_path: WORKFLOW_PATH,
          workflow_commit_sha: commit,
          secret_name: SECRET_NAME,
          api_key_id: key.id,
          first_build_id: deps.builds.begin(computer, { git_token: pat }),
        }
      })
    },

    async disconnect(who, id, pat) {
      const computer = findComputer(who, id)
      return inTurn(computer.id, async () => {
        const { repository, branch } = connected(computer)
        const api = apiFor(pat, repository)
        // What a token may not see is 404 too, and must not pass for gone.
        await api.checkAccess()
        const place = { path: WORKFLOW_PATH, branch }
        const workflowDeleted = await api.deleteFile(place, 'Stop deploying to orb')
        const secretDeleted = await api.deleteSecret(SECRET_NAME)
        store.githubDeploys.remove(computer.id)
        log('info', 'auto-deploy is disconnected', { computer: computer.shortId, repository: fullName(repository) })
        return { disconnected: true, workflow_deleted: workflowDeleted, secret_deleted: secretDeleted }
      })
    },
  }
}

/** Does the work of one computer after another: of two at once, one would leave the other's key in the repository. */
function createTurns() {
  const last = new Map<string, Promise<unknown>>()
  return async <T>(id: string, work: () => Promise<T>): Promise<T> => {
    const turn = (last.get(id) ?? Promise.resolve()).catch(() => undefined).then(work)
    last.set(id, turn)
    try {
      return await turn
    } finally {
      if (last.get(id) === turn) last.delete(id)
    }
  }
}
