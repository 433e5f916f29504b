import { describe, expect, test } from 'bun:test'
import { cloneEnvironment, sameRepository, stepEnvironment, tokenForms } from './git.ts'

const TOKEN = 'ghp_secret'
const url = new URL('https://git.example.com:8443/team/project.git')

/** The settings of git that an environment holds, in order. */
const settingsOf = (env: Record<string, string>): string[] =>
  Array.from(
    { length: Number(env['GIT_CONFIG_COUNT']) },
    (_, index) => `${env[`GIT_CONFIG_KEY_${index}`]}=${env[`GIT_CONFIG_VALUE_${index}`]}`,
  )

describe('the token', () => {
  test('stands in one variable alone, and is given to the host of the source alone', () => {
    for (const env of [
      cloneEnvironment({ url, token: TOKEN, pins: [] }),
      stepEnvironment({ url, token: TOKEN, pins: [] }),
    ]) {
      expect(Object.entries(env).filter(([, value]) => value.includes(TOKEN))).toEqual([['ORB_GIT_TOKEN', TOKEN]])
      const helpers = settingsOf(env).filter((setting) => setting.startsWith('credential.'))
      expect(helpers[0]).toBe('credential.https://git.example.com:8443.helper=')
      expect(helpers[1]).toStartWith('credential.https://git.example.com:8443.helper=!')
      expect(helpers).toHaveLength(2)
    }
  })

  test('is answered by git itself for that host, and for no other', async () => {
    const ask = async (host: string) => {
      const child = Bun.spawn(['git', 'credential', 'fill'], {
        stdin: Buffer.from(`protocol=https\nhost=${host}\n\n`),
        stdout: 'pipe',
        stderr: 'ignore',
        env: {
          PATH: process.env['PATH'] ?? '',
          HOME: '/nonexistent',
          ...cloneEnvironment({ url, token: TOKEN, pins: [] }),
        },
      })
      return new Response(child.stdout).text()
    }
    expect(await ask('git.example.com:8443')).toContain(`username=x-access-token\npassword=${TOKEN}\n`)
    for (const other of ['git.example.com', 'git.example.com:443', 'evil.git.example.com:8443', 'example.com:8443']) {
      expect(await ask(other)).not.toContain(TOKEN)
    }
  })

  test('leaves everything as it is when there is none', () => {
    const env = stepEnvironment({ url, token: null, pins: [] })
    expect(settingsOf(env)).toEqual(['safe.directory=*'])
    expect(env).not.toHaveProperty('ORB_GIT_TOKEN')
  })

  test('is hidden in the form of HTTP too', () => {
    expect(tokenForms(TOKEN)).toEqual([TOKEN, btoa(`x-access-token:${TOKEN}`)])
    expect(tokenForms(null)).toEqual([])
  })
})

test('a clone asks nothing, runs no hook, and follows redirects to https alone', () => {
  const env = cloneEnvironment({ url, token: null, pins: ['git.example.com:8443:10.0.0.1'] })
  expect(env).toMatchObject({ GIT_TERMINAL_PROMPT: '0', GIT_ASKPASS: '', GIT_ALLOW_PROTOCOL: 'https' })
  const settings = settingsOf(env)
  for (const setting of [
    'core.hooksPath=/dev/null',
    'submodule.recurse=false',
    'filter.lfs.smudge=',
    'filter.lfs.process=',
    'http.followRedirects=initial',
    'http.curloptResolve=git.example.com:8443:10.0.0.1',
  ]) {
    expect(settings).toContain(setting)
  }
})

test('a clone over plain http follows no redirect', () => {
  const env = cloneEnvironment({ url: new URL('http://git.example.com/x'), token: null, pins: [] })
  expect(env['GIT_ALLOW_PROTOCOL']).toBe('http')
  expect(settingsOf(env)).toContain('http.followRedirects=false')
})

test('steps may use other protocols, hooks and submodules', () => {
  const env = stepEnvironment({ url, token: TOKEN, pins: [] })
  expect(env).not.toHaveProperty('GIT_ALLOW_PROTOCOL')
  expect(settingsOf(env).some((setting) => /hooksPath|submodule|lfs|followRedirects/.test(setting))).toBe(false)
})

test.each([
  ['https://example.com/a/b', 'https://example.com/a/b.git', true],
  ['https://example.com/a/b/', 'https://user:old@EXAMPLE.com/a/b.git', true],
  ['https://example.com/a/b', 'https://example.com/a/c', false],
  ['https://example.com/a/b', 'http://example.com/a/b', false],
  ['https://example.com/a/b', '', false],
])('%s and %s are the same repository: %p', (a, b, same) => {
  expect(sameRepository(a, b)).toBe(same)
})
