import { readFileSync } from 'node:fs'
import type { Settings } from '../config.ts'
import { type Front, type FrontOptions, startFront } from '../proxy/ingress.ts'
import type { PublicDirectory } from '../proxy/ingress-types.ts'

export type { Front } from '../proxy/ingress.ts'
export type { PublicDirectory } from '../proxy/ingress-types.ts'

/** Opens the front door where the settings say, or on another `host` of the same port. @throws when it cannot listen */
export function openFront(
  settings: Settings,
  directory: PublicDirectory,
  api: FrontOptions['api'],
  host?: string,
): Front {
  const { listen, tls } = settings
  return startFront({
    listen: listen.kind === 'tcp' && host !== undefined ? { ...listen, host } : listen,
    tls: tls && { cert: readFileSync(tls.certFile), key: readFileSync(tls.keyFile) },
    domain: settings.domain,
    directory,
    api,
    trustProxy: settings.trustProxy,
    wakeTimeoutMs: settings.wakeTimeoutMs,
  })
}
