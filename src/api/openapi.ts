import { swagger } from '@elysiajs/swagger'
import { type DocumentDecoration, Elysia } from 'elysia'
import { z } from 'zod'
import { type ErrorCode, OrbError } from '../errors.ts'
import { failure } from './cloud/schemas.ts'
import type { Route } from './route.ts'

/** Where the plugin's own routes lie; none of them is served. */
const PLUGIN_PATH = '/unserved'
const SPEC_PATH = '/unserved/openapi.json'

const DESCRIPTION = 'Computers for agents, which sleep while their agent waits for an LLM.'

type Json = Record<string, unknown>

/** The OpenAPI 3.1 document of the routes, from the very schemas that check requests and type answers. */
export async function openApiDocument(routes: Route[], info: { version: string; serverUrl: string }): Promise<Json> {
  // An application that is never served: the plugin's own page would load its script from the internet.
  const app = new Elysia().use(
    swagger({
      path: PLUGIN_PATH,
      specPath: SPEC_PATH,
      excludeStaticFile: false,
      documentation: { info: { title: 'orb', description: DESCRIPTION, version: info.version } },
    }),
  )
  const schemas: Json = {}
  for (const route of routes.filter(({ hidden }) => !hidden)) {
    // The plugin's types know OpenAPI 3.0 alone; its code passes a finished operation through.
    const detail = operationOf(route, schemas) as DocumentDecoration
    app.route(route.method, route.path.replace('*', ':path'), () => '', { detail })
  }
  const answer = await app.handle(new Request(`http://localhost${SPEC_PATH}`))
  const document: Json = await answer.json()
  return {
    ...document,
    openapi: '3.1.0',
    servers: [{ url: info.serverUrl }],
    components: {
      schemas,
      securitySchemes: { bearerAuth: { type: 'http', scheme: 'bearer', description: 'An API key or a login token' } },
    },
  }
}

/** The JSON Schema of `schema`. Those with an id, itself or inside it, go to `named` and are referred to. */
function schemaOf(schema: z.ZodType, io: 'input' | 'output', named: Json): Json {
  const { $schema, $defs = {}, ...rest } = atComponents(z.toJSONSchema(schema, { io }))
  Object.assign(named, $defs)
  return rest
}

const atComponents = (schema: Json): Json =>
  JSON.parse(JSON.stringify(schema).replaceAll('"#/$defs/', '"#/components/schemas/'))

function operationOf(route: Route, named: Json): Json {
  return {
    operationId: operationId(route),
    tags: [route.tag],
    summary: route.summary,
    security: route.access === 'public' ? [] : [{ bearerAuth: [] }],
    parameters: [...pathParameters(route), ...queryParameters(route)],
    ...requestBody(route, named),
    responses: responses(route, named),
  }
}

/** `postComputersIdAgents`: a name that code can be generated from. */
function operationId({ method, path }: Route): string {
  const words = path.split(/[^A-Za-z0-9*]+/).filter((word) => word !== '' && word !== 'api' && word !== 'v1')
  const name = words.map((word) => (word === '*' ? 'Path' : word.charAt(0).toUpperCase() + word.slice(1)))
  return method.toLowerCase() + name.join('')
}

const pathParameters = ({ path }: Route): Json[] =>
  path
    .split('/')
    .filter((part) => part.startsWith(':') || part === '*')
    .map((part) => ({
      name: part === '*' ? 'path' : part.slice(1),
      in: 'path',
      required: true,
      schema: { type: 'string' },
      ...(part === '*' ? { description: 'Path inside the computer without its first slash; may hold slashes' } : {}),
    }))

function queryParameters({ schemas }: Route): Json[] {
  if (!schemas.query) return []
  const { properties = {} } = z.toJSONSchema(schemas.query, { io: 'output' })
  return Object.entries(properties).map(([name, schema]) => ({ name, in: 'query', required: false, schema }))
}

function requestBody({ schemas, rawBody }: Route, named: Json): Json {
  if (schemas.body) {
    const schema = schemaOf(schemas.body, 'input', named)
    const required = Array.isArray(schema['required']) && schema['required'].length > 0
    return { requestBody: { required, content: { 'application/json': { schema } } } }
  }
  if (!rawBody) return {}
  const content = Object.fromEntries(rawBody.types.map((type) => [type, { schema: rawSchema(type) }]))
  return { requestBody: { required: rawBody.required, content } }
}

function responses(route: Route, named: Json): Json {
  const { answer } = route.schemas
  const content: Json = answer ? { 'application/json': { schema: schemaOf(answer, 'output', named) } } : {}
  for (const [type, description] of Object.entries(route.otherAnswers ?? {})) {
    content[type] = { schema: { ...rawSchema(type), description } }
  }
  const result: Json = { [route.status ?? 200]: { description: 'Success', content } }
  if (route.errors.includes('range_not_satisfiable')) {
    const bytes = content['application/octet-stream']
    result[206] = { description: 'The range that was asked for', content: { 'application/octet-stream': bytes } }
  }
  const byStatus = Map.groupBy(errorCodes(route), (code) => new OrbError(code, '').status)
  for (const [status, codes] of byStatus) {
    const schema = schemaOf(failure, 'output', named)
    result[status] = { description: codes.join(', '), content: { 'application/json': { schema } } }
  }
  if (route.failingStatus) result[route.failingStatus] = { description: 'The same body, bad news in it', content }
  return result
}

function errorCodes({ access, schemas, errors }: Route): ErrorCode[] {
  const fromKey: ErrorCode[] = access === 'public' ? [] : ['unauthorized', 'forbidden']
  const fromBody: ErrorCode[] = schemas.body ? ['invalid_json', 'invalid_request', 'payload_too_large'] : []
  const fromQuery: ErrorCode[] = schemas.query ? ['invalid_request'] : []
  const always: ErrorCode[] = ['headers_too_large', 'internal', 'shutting_down']
  return [...new Set([...fromKey, ...fromBody, ...fromQuery, ...errors, ...always])]
}

function rawSchema(type: string): Json {
  if (type === 'application/json') return { type: 'object' }
  return type === 'application/octet-stream' ? { type: 'string', format: 'binary' } : { type: 'string' }
}
