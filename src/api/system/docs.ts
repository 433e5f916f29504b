import stylePath from 'swagger-ui-dist/swagger-ui.css' with { type: 'file' }
import scriptPath from 'swagger-ui-dist/swagger-ui-bundle.js' with { type: 'file' }
import { publicRoute, type Route } from '../route.ts'

/** Nothing from elsewhere, no inline script; the inline styles are those that the page's library sets. */
const POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'"

const PAGE = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>orb API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
`

/** Without `validatorUrl: null` the page would ask a validator on the internet. */
const START = `SwaggerUIBundle({ url: '/openapi.json', dom_id: '#ui', validatorUrl: null, deepLinking: true })
`

/** `/docs` and what its page loads, all from the binary. `document` makes the OpenAPI document, once. */
export function docsRoutes(document: () => Promise<unknown>): Route[] {
  let made: Promise<unknown> | null = null
  const assets: [path: string, type: string, body: () => string | Blob][] = [
    ['/docs/swagger-ui.css', 'text/css; charset=utf-8', () => Bun.file(stylePath)],
    ['/docs/swagger-ui-bundle.js', 'text/javascript; charset=utf-8', () => Bun.file(scriptPath)],
    ['/docs/start.js', 'text/javascript; charset=utf-8', () => START],
  ]
  return [
    publicRoute({
      method: 'GET',
      path: '/openapi.json',
      tag: 'System',
      summary: 'This document',
      otherAnswers: { 'application/json': 'OpenAPI 3.1' },
      errors: [],
      handle: async () => {
        made ??= document()
        return Response.json(await made)
      },
    }),
    publicRoute({
      method: 'GET',
      path: '/docs',
      tag: 'System',
      summary: 'This document as a page',
      otherAnswers: { 'text/html': 'The page; all that it loads comes from here' },
      errors: [],
      handle: () => asset('text/html; charset=utf-8', PAGE),
    }),
    ...assets.map(([path, type, body]) =>
      publicRoute({
        method: 'GET',
        path,
        hidden: true,
        tag: 'System',
        summary: 'Part of the page',
        errors: [],
        handle: () => asset(type, body()),
      }),
    ),
  ]
}

const asset = (type: string, body: string | Blob): Response =>
  new Response(body, {
    headers: { 'content-type': type, 'content-security-policy': POLICY, 'x-content-type-options': 'nosniff' },
  })
