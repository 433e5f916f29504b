import { randomBytes } from 'node:crypto'
import stylePath from '../../build/console/terminal.css' with { type: 'file' }
import scriptPath from '../../build/console/terminal.js' with { type: 'file' }
import { page } from './terminal/page.ts'

/** Paths of the files that the page of a terminal loads, and what each is. */
export const TERMINAL_ASSETS = [
  { path: '/console/terminal.js', type: 'text/javascript; charset=utf-8', file: scriptPath },
  { path: '/console/terminal.css', type: 'text/css; charset=utf-8', file: stylePath },
]

const NONCE_BYTES = 16
/** A host as it may stand in a policy. */
const HOST_PATTERN = /^[\w.:[\]-]+$/

/**
 * The page of a terminal, the same for all computers, and the policy that it is under. Scripts come from here alone and
 * none is inline; of styles only those are taken that bear the nonce, as those do that the terminal emulator makes.
 * @param host of the request: older browsers do not count WebSockets as the page's own
 */
export function terminalPage(host: string): { html: string; policy: string } {
  const nonce = randomBytes(NONCE_BYTES).toString('base64')
  const sockets = HOST_PATTERN.test(host) ? ` ws://${host} wss://${host}` : ''
  const policy = [
    "default-src 'none'",
    "script-src 'self'",
    `style-src 'self' 'nonce-${nonce}'`,
    'img-src data:',
    `connect-src 'self'${sockets}`,
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
  ].join('; ')
  return { html: page(nonce), policy }
}
