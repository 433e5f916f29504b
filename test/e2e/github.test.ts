/** Auto-deploy on push, against a stand-in for GitHub's API and a real git server. Needs root. */
import { afterAll, beforeAll, beforeEach, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { z } from 'zod'
import { bootstrapped, buildRecord, keyList } from '../../src/api/cloud/schemas.ts'
import type { Computer } from '../support/computer.ts'
import { type GitServer, startGitServer } from '../support/git-server.ts'
import { type GitHubServer, startGitHub } from '../support/github-server.ts'
import { type Answer, type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'
import { until } from '../support/sweep.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

const PAT = 'ghp_theTokenThatMustNotBeSeen0123456789'
const FILE = '.github/workflows/orb-deploy.yml'
/** Where GitHub puts values into a workflow. */
const KEY_PLACE = `\${{ secrets.ORB_API_KEY }}`
const TOKEN_PLACE = `\${{ github.token }}`
const FILES = { 'main.mjs': 'setInterval(() => {}, 1000)' }

const WorkflowFile = z.object({
  on: z.object({ push: z.object({ branches: z.array(z.string()) }) }),
  jobs: z.object({
    deploy: z.object({
      steps: z.tuple([z.object({ shell: z.literal('bash'), run: z.string(), env: z.record(z.string(), z.string()) })]),
    }),
  }),
})

let orb: Orb
let git: GitServer
let github: GitHubServer
let gitHost: string

beforeAll(async () => {
  github = await startGitHub()
  orb = await startOrb()
  git = await startGitServer('0.0.0.0')
  gitHost = `${orb.gateway}:${git.port}`
  Object.assign(orb.env, {
    ORB_GITHUB_API: github.url,
    ORB_GITHUB_HOST: gitHost,
    ORB_ALLOW_PRIVATE: `127.0.0.0/8,${gitHost}`,
    ORB_LISTEN: new URL(orb.url).host,
  })
  await orb.terminate()
  await orb.restart()
})
beforeEach(() => {
  github.requests.length = 0
  github.failing.clear()
  github.tokens.clear()
  github.tokens.set(PAT, { scopes: 'gist, repo, workflow' })
})
afterAll(async () => {
  await orb?.stop()
  await git?.[Symbol.asyncDispose]()
  await github?.[Symbol.asyncDispose]()
})

interface Scene {
  computer: Computer
  /** `owner/name` */
  name: string
  repository: GitHubServer['repositories'] extends Map<string, infer R> ? R : never
}

/** A computer whose source is a private repository, for which the token is needed. */
async function scene(branch = 'main'): Promise<Scene> {
  const name = `octo/hello-${crypto.randomUUID().slice(0, 8)}`
  const repository = { branches: new Map([[branch, new Map<string, string>()]]), secrets: new Map<string, string>() }
  github.repositories.set(name, repository)
  await git.create(name, PAT)
  await git.commit(name, FILES, branch)
  const computer = await orb.computer()
  await configure(computer, `http://${gitHost}/${name}.git`, branch)
  return { computer, name, repository }
}

const configure = (computer: Computer, source: string, branch = 'main', more = '') =>
  computer.call(
    'POST',
    '/config',
    `[agent]\nname = "a"\nlang = "node"\nentry = "main.mjs"\n[source]\ngit = "${source}"\nbranch = "${branch}"\n${more}`,
  )

const bootstrap = (computer: Computer, more: Record<string, unknown> = {}): Promise<Answer> =>
  computer.call('POST', '/github/bootstrap', { pat: PAT, ...more })

async function connect(computer: Computer): Promise<z.output<typeof bootstrapped>> {
  const { status, json, text } = await bootstrap(computer)
  if (status !== 200) throw new Error(text)
  return bootstrapped.parse(json)
}

async function builtBy(computer: Computer, id: string) {
  let build = null
  await until(async () => {
    build = (await computer.call('GET', `/builds/${id}`)).json
    return build['finished_at'] !== null
  })
  return buildRecord.parse(build)
}

const keys = async () => (await orb.ask(keyList, 'GET', '/v1/keys')).keys

const workflowOf = ({ repository }: Scene, branch = 'main') =>
  WorkflowFile.parse(Bun.YAML.parse(repository.branches.get(branch)?.get(FILE) ?? ''))

/** What GitHub would run on a push, with its placeholders filled. */
async function push(at: Scene): Promise<{ code: number; output: string }> {
  const [step] = workflowOf(at).jobs.deploy.steps
  const fill = (text: string) =>
    text.replaceAll(KEY_PLACE, at.repository.secrets.get('ORB_API_KEY') ?? '').replaceAll(TOKEN_PLACE, PAT)
  const env = Object.fromEntries(Object.entries(step.env).map(([name, value]) => [name, fill(value)]))
  const child = Bun.spawn(['bash', '--noprofile', '--norc', '-eo', 'pipefail', '-c', fill(step.run)], {
    env: { PATH: process.env['PATH'] ?? '', ...env },
    stdout: 'pipe',
    stderr: 'pipe',
  })
  const [output, errors, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  return { code, output: output + errors }
}

describe('bootstrap', () => {
  test('puts workflow and key into the repository and builds with the token', async () => {
    const at = await scene()
    const made = await connect(at.computer)
    expect(made).toMatchObject({ workflow_path: FILE, secret_name: 'ORB_API_KEY' })
    expect(made.workflow_commit_sha).toMatch(/^[0-9a-f]{40}$/)
    expect(github.requests.map(({ line }) => line)).toEqual([
      `GET /repos/${at.name}`,
      `GET /repos/${at.name}/actions/secrets/public-key`,
      `PUT /repos/${at.name}/actions/secrets/ORB_API_KEY`,
      `GET /repos/${at.name}/contents/${FILE}`,
      `PUT /repos/${at.name}/contents/${FILE}`,
    ])
    for (const { headers } of github.requests) expect(headers.get('authorization')).toBe(`Bearer ${PAT}`)
    expect(workflowOf(at).on.push.branches).toEqual(['main'])
    expect(workflowOf(at).jobs.deploy.steps[0].env).toMatchObject({
      ORB_BUILD_URL: `${orb.url}/v1/computers/${at.computer.id}/build`,
      ORB_BUILD_BODY: `{"redeploy":true,"git_token":"${TOKEN_PLACE}"}`,
    })

    const build = await builtBy(at.computer, made.first_build_id)
    expect(build).toMatchObject({ status: 'success', cloned: true, redeployed: false })
    expect(await at.computer.get('agent/code/main.mjs')).toBe(FILES['main.mjs'])
  })

  test('makes a key that builds and deploys its own computer and does nothing else', async () => {
    const at = await scene()
    const other = await orb.computer()
    const made = await connect(at.computer)
    await builtBy(at.computer, made.first_build_id)
    const authorization = `Bearer ${at.repository.secrets.get('ORB_API_KEY')}`
    const status = async (method: string, path: string, body?: object) =>
      (await orb.call(method, path, body, { authorization })).status
    const C = `/v1/computers/${at.computer.id}`
    expect((await keys()).find(({ key_id }) => key_id === made.api_key_id)).toMatchObject({
      scope: `deploy:${at.computer.id}`,
    })
    for (const path of ['', '/agents', '/builds', `/builds/${made.first_build_id}`, '/logs'])
      expect([path, await status('GET', C + path)]).toEqual([path, 200])
    expect(await status('POST', `${C}/build`, {})).toBe(200)
    expect(await status('POST', `${C}/agents`, {})).toBe(201)
    const refused: [string, string, object?][] = [
      ['GET', '/v1/computers'],
      ['GET', '/v1/keys'],
      ['POST', '/v1/keys', { name: 'more' }],
      ['GET', `/v1/computers/${other.id}`],
      ['POST', `/v1/computers/${other.id}/build`, {}],
      ['DELETE', C],
      ['GET', `${C}/config`],
      ['GET', `${C}/files/agent/code`],
      ['POST', `${C}/exec`, { command: 'true' }],
      ['POST', `${C}/restart`],
      ['POST', `${C}/github/bootstrap`, { pat: PAT }],
      ['POST', `${C}/github/disconnect`, { pat: PAT }],
    ]
    for (const [method, path, body] of refused)
      expect([method, path, await status(method, path, body)]).toEqual([method, path, 403])
  })

  test('repeated, updates both and takes the former key back', async () => {
    const at = await scene()
    const first = await connect(at.computer)
    const formerKey = at.repository.secrets.get('ORB_API_KEY')
    at.repository.branches.get('main')?.set(FILE, 'edited by somebody')
    const second = await connect(at.computer)
    expect(second.workflow_commit_sha).not.toBe(first.workflow_commit_sha)
    expect(workflowOf(at).on.push.branches).toEqual(['main'])
    const key = at.repository.secrets.get('ORB_API_KEY')
    expect(key).not.toBe(formerKey)
    const status = async (credential: string | undefined) =>
      (await at.computer.call('GET', '', undefined, { authorization: `Bearer ${credential}` })).status
    expect([await status(formerKey), await status(key)]).toEqual([401, 200])
    const scoped = (await keys()).filter(({ scope }) => scope === `deploy:${at.computer.id}`)
    expect(scoped.map(({ key_id }) => key_id)).toEqual([second.api_key_id])
  })

  test('twice at once leaves a key in the repository that works', async () => {
    const at = await scene()
    const answers = await Promise.all([bootstrap(at.computer), bootstrap(at.computer)])
    expect(answers.map(({ status }) => status)).toEqual([200, 200])
    const authorization = `Bearer ${at.repository.secrets.get('ORB_API_KEY')}`
    expect((await at.computer.call('GET', '', undefined, { authorization })).status).toBe(200)
  })

  test('takes a key of the organisation and a branch', async () => {
    const at = await scene()
    at.repository.branches.set('release/1', new Map())
    const given = await orb.call('POST', '/v1/keys', { name: 'mine' })
    const before = (await keys()).length
    const { json } = await bootstrap(at.computer, { api_key: given.json['api_key'], branch: 'release/1' })
    expect(json['api_key_id']).toBe(given.json['key_id'])
    expect(at.repository.secrets.get('ORB_API_KEY')).toBe(String(given.json['api_key']))
    expect(workflowOf(at, 'release/1').on.push.branches).toEqual(['release/1'])
    expect(at.repository.branches.get('main')?.size).toBe(0)
    expect((await keys()).length).toBe(before)
  })

  test('of a fine-grained token needs no scopes', async () => {
    const at = await scene()
    github.tokens.set(PAT, { scopes: null })
    expect((await bootstrap(at.computer)).status).toBe(200)
  })
})

describe('a push', () => {
  test('builds and starts the agent anew; one that fails to build fails the workflow', async () => {
    const at = await scene()
    const made = await connect(at.computer)
    await builtBy(at.computer, made.first_build_id)
    expect((await at.computer.call('POST', '/agents')).status).toBe(201)
    const before = await at.computer.agent()

    const commit = await git.commit(at.name, { 'main.mjs': 'console.log("new"); setInterval(() => {}, 1000)' })
    const good = await push(at)
    expect(good.output).toContain('HTTP 200')
    expect(good.code).toBe(0)
    expect(good.output).not.toContain(PAT)
    const after = await at.computer.agent()
    expect(after?.code_version).toBe(commit.slice(0, 7))
    expect(after?.pid).not.toBe(before?.pid)

    await configure(at.computer, `http://${gitHost}/${at.name}.git`, 'main', '[build]\nsteps = ["exit 3"]')
    const bad = await push(at)
    expect(bad.output).toContain('"exit_code":3')
    expect(bad.code).not.toBe(0)
    at.repository.secrets.set('ORB_API_KEY', 'orb_revoked')
    expect((await push(at)).code).not.toBe(0)
  })

  test('is what every build brings the agent along for, unless told otherwise', async () => {
    const at = await scene()
    const build = async (body: object) =>
      (await at.computer.call('POST', '/build', { git_token: PAT, ...body })).json['redeployed']
    expect(await build({})).toBe(false)
    await at.computer.call('POST', '/agents')
    expect(await build({})).toBe(false)
    const made = await connect(at.computer)
    expect(await builtBy(at.computer, made.first_build_id)).toMatchObject({ redeployed: true })
    expect(await build({})).toBe(true)
    expect(await build({ redeploy: false })).toBe(false)
    await at.computer.call('POST', '/github/disconnect', { pat: PAT })
    expect(await build({})).toBe(false)
  })
})

describe('a failed bootstrap', () => {
  const STEPS: [string, (name: string) => string, number, string][] = [
    ['repository', (name) => `GET /repos/${name}`, 503, 'unicorn'],
    ['public key', (name) => `GET /repos/${name}/actions/secrets/public-key`, 403, '{"message":"no rights"}'],
    [
      'a public key that is none',
      (name) => `GET /repos/${name}/actions/secrets/public-key`,
      200,
      '{"key":"x","key_id":"1"}',
    ],
    ['secret', (name) => `PUT /repos/${name}/actions/secrets/ORB_API_KEY`, 422, '{"message":"bad"}'],
    ['file', (name) => `GET /repos/${name}/contents/${FILE}`, 500, `{"message":"you sent ${PAT}"}`],
    ['commit', (name) => `PUT /repos/${name}/contents/${FILE}`, 409, '{"message":"protected branch"}'],
    ['a commit without a hash', (name) => `PUT /repos/${name}/contents/${FILE}`, 201, '[]'],
  ]
  test.each(STEPS)('at the %s says what GitHub said and leaves no key', async (_, line, status, body) => {
    const at = await scene()
    const before = await keys()
    github.failing.set(line(at.name), { status, body })
    const answer = await bootstrap(at.computer)
    expect([answer.status, answer.json['error']]).toEqual([502, 'github_error'])
    expect(answer.json['github_status']).toBe(status)
    expect(answer.json['github_response']).toBe(body.replaceAll(PAT, '***'))
    expect(await keys()).toEqual(before)
    const key = at.repository.secrets.get('ORB_API_KEY')
    if (key) {
      const headers = { authorization: `Bearer ${key}` }
      expect((await at.computer.call('GET', '', undefined, headers)).status).toBe(401)
    }
    expect((await at.computer.call('GET', '/builds')).json['builds']).toEqual([])
  })

  const REFUSED: [string, () => Promise<Answer>, number, string, string][] = [
    [
      'no token',
      async () => (await scene()).computer.call('POST', '/github/bootstrap', {}),
      400,
      'invalid_request',
      'pat is required',
    ],
    ['an empty token', async () => bootstrap((await scene()).computer, { pat: '' }), 400, 'invalid_request', 'pat'],
    [
      'a token of two lines',
      async () => bootstrap((await scene()).computer, { pat: 'a\r\nX: y' }),
      400,
      'invalid_request',
      'pat',
    ],
    [
      'a wrong token',
      async () => bootstrap((await scene()).computer, { pat: 'ghp_wrong' }),
      502,
      'github_error',
      'Bad credentials',
    ],
    ['no configuration', async () => bootstrap(await orb.computer()), 400, 'no_source', '[source]'],
    [
      'a key of nobody',
      async () => bootstrap((await scene()).computer, { api_key: `orb_${'x'.repeat(43)}` }),
      400,
      'invalid_request',
      'api_key',
    ],
    [
      'a branch that is a pattern',
      async () => bootstrap((await scene()).computer, { branch: 'a*' }),
      400,
      'invalid_request',
      'branch',
    ],
    [
      'a branch that climbs',
      async () => bootstrap((await scene()).computer, { branch: 'a/../b' }),
      400,
      'invalid_request',
      'branch',
    ],
    [
      'a branch that is not there',
      async () => bootstrap((await scene()).computer, { branch: 'nowhere' }),
      502,
      'github_error',
      'Branch not found',
    ],
  ]
  test.each(REFUSED)('for %s', async (_, ask, status, error, says) => {
    const before = await keys()
    const answer = await ask()
    expect([answer.status, answer.json['error']]).toEqual([status, error])
    expect(String(answer.json['message'])).toContain(says)
    expect(await keys()).toEqual(before)
  })

  test('for a computer without a source, or with one elsewhere', async () => {
    const computer = await orb.computer()
    await computer.call('POST', '/config', '[agent]\nname = "a"\nlang = "node"\nentry = "x"')
    expect((await bootstrap(computer)).json['error']).toBe('no_source')
    for (const source of ['https://gitlab.com/octo/hello', `http://${gitHost}/octo`, `http://${gitHost}/octo/a/b`]) {
      await configure(computer, source)
      const answer = await bootstrap(computer)
      expect([answer.status, answer.json['error']]).toEqual([422, 'unsupported_source'])
    }
    expect(github.requests).toEqual([])
  })

  test.each(['', 'repo', 'workflow, public_repo'])('for a token with the scopes "%s"', async (scopes) => {
    const at = await scene()
    github.tokens.set(PAT, { scopes })
    const answer = await bootstrap(at.computer)
    expect([answer.status, answer.json['error']]).toEqual([400, 'missing_scopes'])
    expect(github.requests).toHaveLength(1)
  })

  test('for a key of another organisation, of another computer, or a login token', async () => {
    const at = await scene()
    const other = await scene()
    await connect(other.computer)
    const mine = orb.key
    await orb.register()
    const foreign = orb.key
    Object.assign(orb, { key: mine })
    const login = await orb.call('POST', '/api/v1/auth/login', { api_key: mine })
    for (const api_key of [foreign, other.repository.secrets.get('ORB_API_KEY'), login.json['token']]) {
      const answer = await bootstrap(at.computer, { api_key })
      expect([answer.status, answer.json['error']]).toEqual([400, 'invalid_request'])
      expect(answer.text).not.toContain(String(api_key))
    }
  })

  test('of a computer that is deleted meanwhile leaves nothing behind', async () => {
    const at = await scene()
    const before = await keys()
    const [answer] = await Promise.all([bootstrap(at.computer), at.computer.call('DELETE', '')])
    expect([200, 404]).toContain(answer.status)
    expect(await keys()).toEqual(before)
  })
})

describe('disconnect', () => {
  test('takes workflow and secret out of the repository that was connected; the key stays', async () => {
    const at = await scene('release')
    const made = await connect(at.computer)
    await builtBy(at.computer, made.first_build_id)
    await configure(at.computer, 'https://gitlab.com/octo/elsewhere')
    const disconnect = async (pat = PAT) => at.computer.call('POST', '/github/disconnect', { pat })
    expect((await disconnect('ghp_wrong')).json).toMatchObject({ error: 'github_error', github_status: 401 })
    github.failing.set(`DELETE /repos/${at.name}/actions/secrets/ORB_API_KEY`, { status: 500, body: 'oh' })
    expect((await disconnect()).json).toMatchObject({ error: 'github_error', github_status: 500 })
    github.failing.clear()
    expect((await disconnect()).json).toEqual({ disconnected: true, workflow_deleted: false, secret_deleted: true })
    expect(at.repository.branches.get('release')?.size).toBe(0)
    expect(at.repository.secrets.size).toBe(0)
    expect((await keys()).map(({ key_id }) => key_id)).toContain(made.api_key_id)

    await configure(at.computer, `http://${gitHost}/${at.name}.git`, 'release')
    expect((await disconnect()).json).toEqual({ disconnected: true, workflow_deleted: false, secret_deleted: false })
    await connect(at.computer)
    expect((await disconnect()).json).toEqual({ disconnected: true, workflow_deleted: true, secret_deleted: true })
    expect((await at.computer.call('POST', '/github/disconnect', {})).json['error']).toBe('invalid_request')
  })

  test('is not needed before a computer is deleted: its key goes with it', async () => {
    const at = await scene()
    const made = await connect(at.computer)
    await at.computer.call('DELETE', '')
    expect((await keys()).map(({ key_id }) => key_id)).not.toContain(made.api_key_id)
    const headers = { authorization: `Bearer ${at.repository.secrets.get('ORB_API_KEY')}` }
    expect((await at.computer.call('GET', '', undefined, headers)).status).toBe(401)
  })
})

test('an API in a private network that the operator did not allow is not called', async () => {
  const at = await scene()
  orb.env['ORB_ALLOW_PRIVATE'] = gitHost
  await orb.terminate()
  await orb.restart()
  const answer = await bootstrap(at.computer)
  expect([answer.status, answer.json['error']]).toEqual([502, 'upstream_forbidden'])
  expect(github.requests).toEqual([])
})

test('the token is nowhere: not in the log, not in the database, not in the computers', async () => {
  expect(orb.log).not.toContain(PAT)
  const files = readdirSync(orb.dataDir).filter((name) => name.startsWith('orb.db'))
  expect(files).toContain('orb.db')
  for (const file of files) expect(readFileSync(join(orb.dataDir, file)).includes(PAT)).toBe(false)
})
