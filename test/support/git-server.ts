import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const TOKEN_USER = 'x-access-token'

export interface GitServer extends AsyncDisposable {
  port: number
  /** Makes a bare repository `<name>.git`, where the name may have slashes; with a token it demands that one. */
  create(name: string, token?: string): Promise<void>
  /** Commits these files on a branch (`main`) and removes all others. Returns the commit. */
  commit(name: string, files: Record<string, string>, branch?: string): Promise<string>
  /** Requests for `<name>.git`, the Authorization header of each or null. */
  requests: { path: string; authorization: string | null }[]
  /** Paths that answer with a redirect. */
  redirects: Map<string, string>
}

/** git over plain HTTP, by git's own http-backend, on `hostname` and a free port. */
export async function startGitServer(hostname: string): Promise<GitServer> {
  const root = await mkdtemp(join(tmpdir(), 'orb-git-'))
  const tokens = new Map<string, string>()
  const requests: GitServer['requests'] = []
  const redirects: GitServer['redirects'] = new Map()
  const server = Bun.serve({
    hostname,
    port: 0,
    async fetch(request) {
      const url = new URL(request.url)
      const authorization = request.headers.get('authorization')
      requests.push({ path: url.pathname, authorization })
      for (const [from, to] of redirects) {
        if (url.pathname.startsWith(from))
          return Response.redirect(to + url.pathname.slice(from.length) + url.search, 301)
      }
      const token = [...tokens].find(([name]) => new RegExp(`^/${name}(\\.git)?(/|$)`).test(url.pathname))?.[1]
      const expected = `Basic ${Buffer.from(`${TOKEN_USER}:${token}`).toString('base64')}`
      if (token !== undefined && authorization !== expected) {
        return new Response('no', { status: 401, headers: { 'www-authenticate': 'Basic realm="git"' } })
      }
      return backend(root, request, url)
    },
  })
  const git = async (cwd: string, ...args: string[]): Promise<string> => {
    const identity = ['-c', 'user.name=t', '-c', 'user.email=t@example.com', '-c', 'safe.directory=*']
    const child = Bun.spawn(['git', ...identity, ...args], { cwd, stdout: 'pipe', stderr: 'pipe' })
    const [out, err, code] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
      child.exited,
    ])
    if (code !== 0) throw new Error(`git ${args.join(' ')}: ${err}`)
    return out.trim()
  }
  return {
    port: server.port ?? 0,
    requests,
    redirects,
    async create(name, token) {
      await git(root, 'init', '--quiet', '--bare', '--initial-branch=main', `${name}.git`)
      if (token !== undefined) tokens.set(name, token)
    },
    async commit(name, files, branch = 'main') {
      const work = await mkdtemp(join(root, 'work-'))
      await git(work, 'init', '--quiet', `--initial-branch=${branch}`)
      await Promise.all(Object.entries(files).map(([path, text]) => Bun.write(join(work, path), text)))
      await writeFile(join(work, '.commit'), crypto.randomUUID())
      await git(work, 'add', '--all')
      await git(work, 'commit', '--quiet', '--message', 'commit')
      await git(work, 'push', '--quiet', '--force', join(root, `${name}.git`), branch)
      return git(work, 'rev-parse', 'HEAD')
    },
    async [Symbol.asyncDispose]() {
      await server.stop(true)
      await rm(root, { recursive: true, force: true })
    },
  }
}

/** One request through git's CGI program, git-http-backend(1). */
async function backend(root: string, request: Request, url: URL): Promise<Response> {
  const body = await request.arrayBuffer()
  const child = Bun.spawn(['git', 'http-backend'], {
    stdin: new Uint8Array(body),
    stdout: 'pipe',
    stderr: 'ignore',
    env: {
      PATH: process.env['PATH'] ?? '',
      GIT_PROJECT_ROOT: root,
      GIT_HTTP_EXPORT_ALL: '1',
      GIT_CONFIG_COUNT: '1',
      GIT_CONFIG_KEY_0: 'safe.directory',
      GIT_CONFIG_VALUE_0: '*',
      PATH_INFO: decodeURIComponent(url.pathname),
      QUERY_STRING: url.search.slice(1),
      REQUEST_METHOD: request.method,
      CONTENT_TYPE: request.headers.get('content-type') ?? '',
      HTTP_CONTENT_ENCODING: request.headers.get('content-encoding') ?? '',
      GIT_PROTOCOL: request.headers.get('git-protocol') ?? '',
      CONTENT_LENGTH: String(body.byteLength),
    },
  })
  const output = Buffer.from(await new Response(child.stdout).arrayBuffer())
  const end = output.indexOf('\r\n\r\n')
  const headers = new Headers()
  for (const line of output.subarray(0, end).toString().split('\r\n')) {
    const [name = '', ...value] = line.split(':')
    headers.append(name, value.join(':').trim())
  }
  const status = Number.parseInt(headers.get('status') ?? '200', 10)
  headers.delete('status')
  return new Response(output.subarray(end + 4), { status, headers })
}
