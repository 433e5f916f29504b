import { createHash } from 'node:crypto'
import sodium from 'libsodium-wrappers'
import { z } from 'zod'

/** What a token may do: `null` scopes are those of a fine-grained token, which has permissions instead. */
interface Token {
  scopes: string | null
}

interface Repository {
  /** Files of each branch: path to content. */
  branches: Map<string, Map<string, string>>
  secrets: Map<string, string>
}

export interface GitHubServer extends AsyncDisposable {
  /** For ORB_GITHUB_API, with a path as an enterprise server has it. */
  url: string
  /** `GET /repos/o/r`, in the order of their coming. */
  requests: { line: string; headers: Headers; body: string }[]
  tokens: Map<string, Token>
  /** By `owner/name`. */
  repositories: Map<string, Repository>
  /** Answers that take the place of the usual ones, by request line without query. */
  failing: Map<string, { status: number; body: string }>
}

const BASE = '/api/v3'
const KEY_ID = '568250167242549743'

const SecretBody = z.object({ encrypted_value: z.base64(), key_id: z.literal(KEY_ID) })
const FileBody = z.object({
  message: z.string().min(1),
  content: z.base64(),
  branch: z.string().default('main'),
  sha: z.string().optional(),
})
const DeleteBody = z.object({ message: z.string().min(1), sha: z.string(), branch: z.string().default('main') })

/** The part of GitHub's REST API (version 2022-11-28) that auto-deploy uses, with its rules, on loopback. */
export async function startGitHub(): Promise<GitHubServer> {
  await sodium.ready
  const keys = sodium.crypto_box_keypair()
  const requests: GitHubServer['requests'] = []
  const tokens: GitHubServer['tokens'] = new Map()
  const repositories: GitHubServer['repositories'] = new Map()
  const failing: GitHubServer['failing'] = new Map()

  const opened = (encrypted: string): string | null => {
    try {
      return sodium.to_string(
        sodium.crypto_box_seal_open(Buffer.from(encrypted, 'base64'), keys.publicKey, keys.privateKey),
      )
    } catch {
      return null
    }
  }

  function answer(method: string, url: URL, headers: Headers, body: string): Response {
    if (!headers.get('user-agent')) return new Response('Request forbidden by administrative rules.', { status: 403 })
    if (headers.get('accept') !== 'application/vnd.github+json') return failure(415, 'Unsupported Media Type')
    if (headers.get('x-github-api-version') !== '2022-11-28') return failure(400, 'Bad version')
    const token = tokens.get(/^Bearer (.+)$/.exec(headers.get('authorization') ?? '')?.[1] ?? '')
    if (!token) return failure(401, 'Bad credentials')
    const [, name, rest = ''] = new RegExp(`^${BASE}/repos/([^/]+/[^/]+)(.*)$`).exec(url.pathname) ?? []
    const repository = repositories.get(name ?? '')
    if (!repository) return failure(404, 'Not Found')
    const planned = failing.get(`${method} ${url.pathname.slice(BASE.length)}`)
    if (planned) return new Response(planned.body, { status: planned.status })
    if (method === 'GET' && rest === '') {
      const scopes: Record<string, string> = token.scopes === null ? {} : { 'x-oauth-scopes': token.scopes }
      return Response.json({ id: 1, full_name: name, default_branch: 'main' }, { headers: scopes })
    }
    if (method === 'GET' && rest === '/actions/secrets/public-key') {
      return Response.json({ key_id: KEY_ID, key: Buffer.from(keys.publicKey).toString('base64') })
    }
    const secret = /^\/actions\/secrets\/([A-Z_][A-Z0-9_]*)$/.exec(rest)?.[1]
    if (secret) return secretAnswer(repository, method, secret, body)
    const path = /^\/contents\/(.+)$/.exec(rest)?.[1]
    if (path) return contentAnswer(repository, method, decodeURIComponent(path), url, body)
    return failure(404, 'Not Found')
  }

  function secretAnswer({ secrets }: Repository, method: string, name: string, body: string): Response {
    if (method === 'DELETE') {
      return secrets.delete(name) ? new Response(null, { status: 204 }) : failure(404, 'Not Found')
    }
    const sent = SecretBody.safeParse(jsonOf(body))
    const value = sent.success ? opened(sent.data.encrypted_value) : null
    if (method !== 'PUT' || value === null) return failure(422, 'Bad encrypted_value or key_id')
    const isNew = !secrets.has(name)
    secrets.set(name, value)
    return isNew ? Response.json({}, { status: 201 }) : new Response(null, { status: 204 })
  }

  const server = Bun.serve({
    hostname: '127.0.0.1',
    port: 0,
    async fetch(request) {
      const url = new URL(request.url)
      const body = await request.text()
      requests.push({ line: `${request.method} ${url.pathname.slice(BASE.length)}`, headers: request.headers, body })
      return answer(request.method, url, request.headers, body)
    },
  })
  return {
    url: `http://127.0.0.1:${server.port}${BASE}`,
    requests,
    tokens,
    repositories,
    failing,
    async [Symbol.asyncDispose]() {
      await server.stop(true)
    },
  }
}

function contentAnswer({ branches }: Repository, method: string, path: string, url: URL, body: string): Response {
  const sent = method === 'GET' ? null : (method === 'PUT' ? FileBody : DeleteBody).safeParse(jsonOf(body))
  if (sent?.success === false) return failure(422, 'Invalid request')
  const branch = sent ? sent.data.branch : (url.searchParams.get('ref') ?? 'main')
  const files = branches.get(branch)
  if (!files) return failure(404, method === 'GET' ? `No commit found for the ref ${branch}` : 'Branch not found')
  const content = files.get(path)
  if (method === 'GET') {
    if (content === undefined) return failure(404, 'Not Found')
    return Response.json({ type: 'file', path, sha: blobSha(content), content: btoa(content), encoding: 'base64' })
  }
  if (content !== undefined && sent?.data.sha === undefined) return failure(422, `"sha" wasn't supplied.`)
  if (sent?.data.sha !== undefined && (content === undefined || sent.data.sha !== blobSha(content))) {
    return failure(409, `${path} does not match ${sent.data.sha}`)
  }
  const commit = { sha: createHash('sha1').update(crypto.randomUUID()).digest('hex'), message: sent?.data.message }
  if (method === 'DELETE') {
    files.delete(path)
    return Response.json({ content: null, commit })
  }
  const written = Buffer.from(FileBody.parse(sent?.data).content, 'base64').toString()
  files.set(path, written)
  return Response.json(
    { content: { path, sha: blobSha(written) }, commit },
    { status: content === undefined ? 201 : 200 },
  )
}

/** git's hash of a file. */
const blobSha = (content: string): string =>
  createHash('sha1')
    .update(`blob ${Buffer.byteLength(content)}\0${content}`)
    .digest('hex')

const failure = (status: number, message: string): Response =>
  Response.json({ message, documentation_url: 'https://docs.github.com/rest', status: String(status) }, { status })

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return null
  }
}
