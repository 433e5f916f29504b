import { z } from 'zod'
import { OrbError } from '../../errors.ts'
import type { UpstreamLinks } from '../../proxy/upstream-link.ts'
import { requestUpstream, type UpstreamAnswer } from '../../proxy/upstream-request.ts'
import { fullName, type Repository } from './repository.ts'
import { seal } from './sealed-box.ts'

export interface GitHubAccess {
  links: UpstreamLinks
  /** ORB_GITHUB_API. */
  baseUrl: string
  /** orb's version: GitHub refuses requests without a User-Agent. */
  version: string
  /** Visible ASCII. */
  pat: string
}

/** A file of a repository, on one branch. */
export interface Place {
  path: string
  branch: string
}

const API_VERSION = '2022-11-28'
const LIMITS = { timeoutMs: 30_000, maxBytes: 4 * 1024 * 1024 }
/** Shown of a body in an error; GitHub's own errors are far shorter. */
const MAX_SHOWN_CHARACTERS = 64 * 1024
const NOT_FOUND = 404
const MASK = '***'

/** What a classic token must be allowed to (Orb Cloud contract §17). */
const SCOPES = ['repo', 'workflow']
/** Fine-grained tokens have permissions and no scopes. */
const FINE_GRAINED = 'github_pat_'

const PublicKey = z.object({ key_id: z.string(), key: z.string() })
const File = z.object({ sha: z.string() })
const Change = z.object({ commit: z.object({ sha: z.string() }) })
const Failure = z.object({ message: z.string() })

/** What orb does in a repository with somebody's token. Every method throws OrbError `github_error` and `upstream_…`. */
export class GitHubApi {
  private readonly path: string

  constructor(
    private readonly access: GitHubAccess,
    repository: Repository,
  ) {
    this.path = `/repos/${fullName(repository)}`
  }

  /** Throws `missing_scopes` too. */
  async checkAccess(): Promise<void> {
    const answer = await this.must('GET', '')
    const header = answer.headers.find(({ name }) => name === 'x-oauth-scopes')
    if (header === undefined || (header.value === '' && this.access.pat.startsWith(FINE_GRAINED))) return
    const scopes = header.value.split(',').map((scope) => scope.trim())
    const missing = SCOPES.filter((scope) => !scopes.includes(scope))
    if (missing.length > 0) {
      throw new OrbError('missing_scopes', `the token lacks the scopes: ${missing.join(', ')}`, { missing })
    }
  }

  async putSecret(name: string, value: string): Promise<void> {
    const answer = await this.must('GET', '/actions/secrets/public-key')
    const { key, key_id } = this.read(PublicKey, answer)
    const encrypted = await seal(value, key)
    if (encrypted === null) throw this.failure(answer, 'the public key is not one')
    await this.must('PUT', `/actions/secrets/${name}`, { encrypted_value: encrypted, key_id })
  }

  /** False when there was none. */
  async deleteSecret(name: string): Promise<boolean> {
    return (await this.mayMiss('DELETE', `/actions/secrets/${name}`)) !== null
  }

  /** Writes a file in a commit of its own, whose hash it answers. */
  async putFile(place: Place, content: string, message: string): Promise<string> {
    const sha = await this.fileSha(place)
    const answer = await this.must('PUT', `/contents/${place.path}`, {
      message,
      content: Buffer.from(content).toString('base64'),
      branch: place.branch,
      ...(sha === null ? {} : { sha }),
    })
    return this.read(Change, answer).commit.sha
  }

  /** False when there was none. */
  async deleteFile(place: Place, message: string): Promise<boolean> {
    const sha = await this.fileSha(place)
    if (sha === null) return false
    const body = { message, sha, branch: place.branch }
    return (await this.mayMiss('DELETE', `/contents/${place.path}`, body)) !== null
  }

  private async fileSha({ path, branch }: Place): Promise<string | null> {
    const answer = await this.mayMiss('GET', `/contents/${path}?ref=${encodeURIComponent(branch)}`)
    return answer && this.read(File, answer).sha
  }

  private async mayMiss(method: string, path: string, body?: object): Promise<UpstreamAnswer | null> {
    const answer = await this.call(method, path, body)
    if (answer.status === NOT_FOUND) return null
    return this.checked(answer, method, path)
  }

  private async must(method: string, path: string, body?: object): Promise<UpstreamAnswer> {
    return this.checked(await this.call(method, path, body), method, path)
  }

  private checked(answer: UpstreamAnswer, method: string, path: string): UpstreamAnswer {
    if (answer.status >= 200 && answer.status < 300) return answer
    const said = Failure.safeParse(jsonOf(answer.body)).data?.message
    throw this.failure(answer, `${answer.status} to ${method} ${this.path}${path}${said ? `: ${said}` : ''}`)
  }

  private call(method: string, path: string, body?: object): Promise<UpstreamAnswer> {
    const { links, baseUrl, version, pat } = this.access
    const request = {
      method,
      url: new URL(`${baseUrl}${this.path}${path}`),
      headers: {
        Authorization: `Bearer ${pat}`,
        Accept: 'application/vnd.github+json',
        'X-GitHub-Api-Version': API_VERSION,
        'User-Agent': `orb/${version}`,
        ...(body ? { 'Content-Type': 'application/json' } : {}),
      },
      ...(body ? { body: JSON.stringify(body) } : {}),
    }
    return requestUpstream(links, request, LIMITS)
  }

  private read<S extends z.ZodType>(schema: S, answer: UpstreamAnswer): z.output<S> {
    const parsed = schema.safeParse(jsonOf(answer.body))
    if (parsed.success) return parsed.data
    throw this.failure(answer, 'something that orb does not understand')
  }

  private failure(answer: UpstreamAnswer, what: string): OrbError {
    const hidden = (text: string) => text.replaceAll(this.access.pat, MASK)
    return new OrbError('github_error', hidden(`GitHub answered ${what}`), {
      github_status: answer.status,
      github_response: hidden(answer.body).slice(0, MAX_SHOWN_CHARACTERS),
    })
  }
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return null
  }
}
