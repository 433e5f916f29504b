import { existsSync, mkdirSync, realpathSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { startApi } from './api/server.ts'
import { clientHelp, clientSummaries, isClientCommand, runClient } from './client/index.ts'
import { loadSettings, readFlags, type Settings } from './config.ts'
import { messageOf } from './errors.ts'
import { log } from './log.ts'
import { lockFile } from './runtime/lock.ts'
import { createAccounts } from './services/accounts.ts'
import { runDoctor } from './services/doctor.ts'
import { takeDown } from './services/down.ts'
import { startServices } from './services/index.ts'
import { openVault } from './services/vault.ts'
import { openStore } from './store/store.ts'
import { VERSION } from './version.ts'

const EXIT_FAILURE = 1
const EXIT_BAD_SETTING = 2
/** Open requests get this long when orb is told to stop (Orb Cloud contract §1.1). */
const STOP_GRACE_MS = 10_000

const SERVE_HELP = `orb serve     run the server (as root)
  --data-dir DIR      where everything is kept            [/var/lib/orb]
  --listen HOST:PORT  API and public URLs, or unix:PATH   [127.0.0.1:8787]
  --domain NAME       computers are <short id>.NAME       [orb.localhost]
  --public-url URL    the API as clients reach it         [http://<listen>]
  --config FILE       settings as TOML                    [/etc/orb/config.toml]

Every setting is also an environment variable (ORB_DATA_DIR, ORB_LISTEN, …); flags win over
the environment, the environment wins over the file. README.md lists them all.`

/** Of the commands for the server itself; those that speak to one are the client's. */
const SERVER_HELP: Record<string, string> = {
  serve: SERVE_HELP,
  down: `orb down [--data-dir DIR]
Takes the computers of a stopped orb out of the kernel: processes, mounts, network; disks, checkpoints and database
stay, and the next serve brings them up again as they are wanted.`,
  doctor: `orb doctor [--data-dir DIR]
Checks what this host needs, and names the fix for what is missing.`,
}

const HELP = `orb ${VERSION}: an agent cloud on one Linux server

On a server, as root:
  orb serve       run the server
  orb down        take the computers of a stopped orb out of the kernel; their data stays
  orb doctor      check what this host needs, and name the fix for what is missing
  orb keys create --email E [--name N]
                  print a new API key of an account; works while orb serves

With a server, from anywhere:
${clientSummaries()}

  orb version     print the version
  orb help [COMMAND]
                  print this, or all about a command
`

async function main(argv: string[]): Promise<number> {
  const [command, ...rest] = argv
  switch (command) {
    case 'serve':
      return serve(rest)
    case 'doctor':
      return runDoctor(settingsFrom(rest))
    case 'down':
      return down(rest)
    case 'version':
    case '--version':
      console.log(`orb ${VERSION}`)
      return 0
    case 'help':
    case '--help':
    case '-h':
      return help(rest[0])
    default:
      if (command === 'keys' && rest.includes('--email')) return keys(rest)
      if (isClientCommand(command)) return runClient(argv)
      console.error(command === undefined ? HELP : `orb: unknown command ${command}; see orb help`)
      return EXIT_BAD_SETTING
  }
}

function help(topic: string | undefined): number {
  const text = topic === undefined ? HELP : (SERVER_HELP[topic] ?? clientHelp(topic))
  if (text !== null) console.log(text)
  else console.error(`orb: unknown command ${topic}; see orb help`)
  return text === null ? EXIT_BAD_SETTING : 0
}

class SettingError extends Error {}

function settingsFrom(argv: string[]): Settings {
  try {
    const settings = loadSettings({ flags: readFlags(argv), env: process.env })
    // The kernel tells real paths: mounts and programs are found again only by these.
    return existsSync(settings.dataDir) ? { ...settings, dataDir: realpathSync(settings.dataDir) } : settings
  } catch (thrown) {
    throw new SettingError(messageOf(thrown))
  }
}

async function serve(argv: string[]): Promise<number> {
  if (process.getuid?.() !== 0) throw new Error('orb serve must run as root')
  mkdirSync(settingsFrom(argv).dataDir, { recursive: true, mode: 0o700 })
  const settings = await withPort(settingsFrom(argv))
  const unlock = lockFile(join(settings.dataDir, 'orb.lock'))
  if (!unlock) throw new Error(`another orb serves ${settings.dataDir}`)

  const running = await startServices(settings)
  const api = startApi({
    services: running.services,
    settings,
    metrics: running.metrics,
    version: VERSION,
    publicDirectory: running.publicDirectory,
    // From inside a computer the API is at the gateway, whatever else it listens on.
    ...(settings.listen.kind === 'tcp' && !isWildcard(settings.listen.host) ? { alsoOn: running.gateway } : {}),
  })
  console.log(`orb ${VERSION} ready: ${api.url}, domain ${settings.domain}, data ${settings.dataDir}`)

  const signal = await new Promise<string>((resolve) => {
    for (const name of ['SIGTERM', 'SIGINT'] as const) process.once(name, () => resolve(name))
  })
  log('info', 'stopping; agents stay as they are', { signal })
  await running.stop(STOP_GRACE_MS, api.stop(STOP_GRACE_MS))
  unlock()
  return 0
}

const isWildcard = (host: string): boolean => host === '0.0.0.0' || host === '::'

/** Port 0 means any: it is chosen here, because computers and URLs must know it before anything listens. */
async function withPort(settings: Settings): Promise<Settings> {
  const { listen } = settings
  if (listen.kind !== 'tcp' || listen.port !== 0) return settings
  const port = await new Promise<number>((resolve, reject) => {
    const server = createServer().once('error', reject)
    server.listen(0, listen.host, () => {
      const address = server.address()
      server.close(() => resolve(address !== null && typeof address === 'object' ? address.port : 0))
    })
  })
  return { ...settings, listen: { ...listen, port }, publicUrl: settings.publicUrl.replace(/:0$/, `:${port}`) }
}

async function down(argv: string[]): Promise<number> {
  const settings = settingsFrom(argv)
  if (process.getuid?.() !== 0) throw new Error('orb down must run as root')
  const count = await takeDown(settings)
  console.log(
    count === null
      ? 'nothing of it is up'
      : `${count} ${count === 1 ? 'computer' : 'computers'} taken down, data kept in ${settings.dataDir}`,
  )
  return 0
}

async function keys(argv: string[]): Promise<number> {
  const [action, ...rest] = argv
  const email = flagValue(rest, '--email')
  if (action !== 'create' || email === null) {
    console.error('orb: usage: orb keys create --email E [--name N] [--data-dir DIR]')
    return EXIT_BAD_SETTING
  }
  const others = without(rest, ['--email', '--name'])
  const settings = settingsFrom(others)
  const store = openStore(join(settings.dataDir, 'orb.db'))
  try {
    const accounts = createAccounts({
      store,
      jwtSecret: openVault(settings.dataDir).jwtSecret,
      registration: settings.registration,
    })
    console.log(accounts.createKeyFor(email, flagValue(rest, '--name') ?? 'recovery'))
    return 0
  } finally {
    store.close()
  }
}

function flagValue(argv: string[], flag: string): string | null {
  const at = argv.indexOf(flag)
  return at === -1 ? null : (argv[at + 1] ?? null)
}

const without = (argv: string[], flags: string[]): string[] =>
  argv.filter((word, index) => !flags.includes(word) && !flags.includes(argv[index - 1] ?? ''))

// Bun goes on after these while main runs, and so do the other tenants' agents: one callback's failure does not stop them.
for (const event of ['uncaughtException', 'unhandledRejection'] as const) {
  process.on(event, (thrown: unknown) => {
    log('error', 'not caught', { event, error: thrown instanceof Error ? thrown.stack : thrown })
  })
}

try {
  process.exitCode = await main(process.argv.slice(2))
} catch (thrown) {
  console.error(`orb: ${messageOf(thrown)}`)
  process.exitCode = thrown instanceof SettingError ? EXIT_BAD_SETTING : EXIT_FAILURE
}
process.exit()
