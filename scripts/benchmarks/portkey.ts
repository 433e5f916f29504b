/** The peer of the LLM proxy: the gateway of Portkey, from npm, started as its README says. */
import { createServer } from 'node:net'
import { join } from 'node:path'

const PACKAGE = join(import.meta.dir, '../../node_modules/@portkey-ai/gateway')
const READY_TIMEOUT_MS = 20_000
const POLL_MS = 50

export interface Portkey {
  port: number
  version: string
  stop(): Promise<void>
}

/** @param upstream host:port that its callers may name as their host */
export async function startPortkey(upstream: string): Promise<Portkey> {
  const port = await freePort()
  const child = Bun.spawn(['node', join(PACKAGE, 'build/start-server.js'), `--port=${port}`, '--headless'], {
    env: { ...process.env, TRUSTED_CUSTOM_HOSTS: upstream.split(':')[0] ?? '' },
    stdio: ['ignore', 'ignore', 'inherit'],
  })
  const stop = async () => {
    child.kill()
    await child.exited
  }
  const deadline = performance.now() + READY_TIMEOUT_MS
  while (!(await answers(port))) {
    if (child.exitCode === null && performance.now() < deadline) {
      await Bun.sleep(POLL_MS)
      continue
    }
    await stop()
    throw new Error('the gateway of Portkey did not start')
  }
  const { version } = await Bun.file(join(PACKAGE, 'package.json')).json()
  return { port, version, stop }
}

/** What a request carries for the gateway to pass it on to `url`. */
export const portkeyHeaders = (url: string): Record<string, string> => ({
  'x-portkey-provider': 'openai',
  'x-portkey-custom-host': `${url}/v1`,
})

const answers = (port: number): Promise<boolean> =>
  fetch(`http://127.0.0.1:${port}/`).then(
    () => true,
    () => false,
  )

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const server = createServer()
    server.once('error', reject)
    server.listen(0, '127.0.0.1', () => {
      const address = server.address()
      server.close(() => resolve(typeof address === 'object' && address !== null ? address.port : 0))
    })
  })
}
