import { TERMINAL_ASSETS, terminalPage } from '../../console/terminal-page.ts'
import { publicRoute, type Route } from '../route.ts'

/** The page is asked for with a key now and then, which no other site is to learn. */
const HEADERS = { 'referrer-policy': 'no-referrer', 'x-content-type-options': 'nosniff' }
const ASSET_HEADERS = { ...HEADERS, 'cache-control': 'no-cache' }

/** The page of a terminal and what it loads, all from the binary. It is the same for all computers and knows of none. */
export const terminalPageRoutes = (): Route[] => [
  publicRoute({
    method: 'GET',
    path: '/terminal/:id',
    tag: 'Terminal',
    summary: 'A terminal in the browser; it asks for a key, or takes that of `?key=`',
    otherAnswers: { 'text/html': 'The page; all that it loads comes from here' },
    errors: [],
    handle({ request }) {
      const { html, policy } = terminalPage(new URL(request.url).host)
      const headers = { ...HEADERS, 'cache-control': 'no-store', 'content-security-policy': policy }
      return new Response(html, { headers: { ...headers, 'content-type': 'text/html; charset=utf-8' } })
    },
  }),
  ...TERMINAL_ASSETS.map(({ path, type, file }) =>
    publicRoute({
      method: 'GET',
      path,
      hidden: true,
      tag: 'Terminal',
      summary: 'Part of the page',
      errors: [],
      handle: () => new Response(Bun.file(file), { headers: { ...ASSET_HEADERS, 'content-type': type } }),
    }),
  ),
]
