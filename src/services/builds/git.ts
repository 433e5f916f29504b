import type { Environment } from '../environment.ts'

/** What git in a computer needs to reach the repository. */
export interface GitAccess {
  /** The address of `source.git`. */
  url: URL
  token: string | null
  /** `host:port:address` for names that orb resolved itself. */
  pins: string[]
}

type Setting = [key: string, value: string]

/** The user that tokens are sent with (Orb Cloud contract §6). */
const TOKEN_USER = 'x-access-token'
const TOKEN_VARIABLE = 'ORB_GIT_TOKEN'

/**
 * git asks this for credentials. Unlike a header, what it says goes to the host that asked alone, not to one that a
 * redirect leads to; and the token stands in no file and no command line.
 */
const HELPER = `!f() { test "$1" = get || exit 0; printf 'username=%s\\npassword=%s\\n' ${TOKEN_USER} "$${TOKEN_VARIABLE}"; }; f`

/** Settings of git that hold while orb itself clones or updates (Orb Cloud contract §6: no hooks, submodules, LFS). */
const CLONE_SETTINGS: Setting[] = [
  ['core.hooksPath', '/dev/null'],
  ['submodule.recurse', 'false'],
  ['fetch.recurseSubmodules', 'false'],
  // Empty commands: files that git-lfs keeps elsewhere arrive as the pointers that they are in the repository.
  ['filter.lfs.smudge', ''],
  ['filter.lfs.process', ''],
  ['filter.lfs.required', 'false'],
  // What git tidies up it does before it ends, not in a process that it leaves behind.
  ['gc.autoDetach', 'false'],
  ['maintenance.autoDetach', 'false'],
]

/** Environment that lets git in build steps reach the repository as orb does. */
export const stepEnvironment = (access: GitAccess): Environment => ({
  GIT_TERMINAL_PROMPT: '0',
  ...withToken(access),
  ...settings(accessSettings(access)),
})

/** Environment of orb's own clone and update. */
export const cloneEnvironment = (access: GitAccess): Environment => {
  const secure = access.url.protocol === 'https:'
  return {
    GIT_TERMINAL_PROMPT: '0',
    GIT_ASKPASS: '',
    SSH_ASKPASS: '',
    GIT_LFS_SKIP_SMUDGE: '1',
    // Holds for redirects too.
    GIT_ALLOW_PROTOCOL: secure ? 'https' : 'http',
    ...withToken(access),
    ...settings([
      ...accessSettings(access),
      ...CLONE_SETTINGS,
      // Plain http is allowed for this host alone, and a redirect could lead to any.
      ['http.followRedirects', secure ? 'initial' : 'false'],
    ]),
  }
}

/** What must not be seen in any output: the token, and the form in which HTTP carries it (RFC 7617 §2). */
export const tokenForms = (token: string | null): string[] =>
  token ? [token, Buffer.from(`${TOKEN_USER}:${token}`).toString('base64')] : []

/** Address of a repository without what clients write differently for the same one. */
export const sameRepository = (a: string, b: string): boolean => plainAddress(a) === plainAddress(b)

function plainAddress(address: string): string {
  const url = URL.parse(address)
  return (url === null ? address : url.origin + url.pathname).replace(/\/+$/, '').replace(/\.git$/, '')
}

const withToken = ({ token }: GitAccess): Environment => (token === null ? {} : { [TOKEN_VARIABLE]: token })

function accessSettings({ url, token, pins }: GitAccess): Setting[] {
  const helper = `credential.${url.origin}.helper`
  // The first, empty one clears helpers of the computer's own files: one of them might write the token to disk.
  const credentials: Setting[] =
    token === null
      ? []
      : [
          [helper, ''],
          [helper, HELPER],
        ]
  return [
    // /agent/code may belong to a user that the agent made.
    ['safe.directory', '*'],
    ...credentials,
    ...pins.map((pin): Setting => ['http.curloptResolve', pin]),
  ]
}

/** git-config(1), GIT_CONFIG_COUNT: settings that stand above those of all files. */
const settings = (list: Setting[]): Environment =>
  Object.fromEntries([
    ['GIT_CONFIG_COUNT', String(list.length)],
    ...list.flatMap(([key, value], index) => [
      [`GIT_CONFIG_KEY_${index}`, key],
      [`GIT_CONFIG_VALUE_${index}`, value],
    ]),
  ])
