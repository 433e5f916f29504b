import { z } from 'zod'
import type { Settings } from '../../config.ts'
import type { Services, SwarmProgress, SwarmReport } from '../../services/types.ts'
import { errorAnswer, json } from '../errors.ts'
import { integer, table, text, textMap } from '../fields.ts'
import { toJson } from '../json.ts'
import { type AuthorizedCall, keyRoute, type Route } from '../route.ts'
import { SECRET_BYTES } from './builds.ts'
import { DEFAULT_DISK_MB, DEFAULT_RUNTIME_MB, MIN_MB } from './computers.ts'
import { removedSwarm, swarm, swarmList, swarmReport } from './schemas.ts'

/** Limits of the Orb Cloud contract §13 and §20. */
const MAX_REPLICAS = 100
const NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/
const NAME_PROBLEM = 'must be 1 to 100 letters, digits, dots, underscores or hyphens, the first a letter or digit'
/** A build may take minutes and say nothing meanwhile. */
const PING_EVERY_MS = 15_000
const PING = ': ping\n\n'
/** All replicas are up; some are not. */
const ALL_UP = 201
const SOME_UP = 207

/** `pingEveryMs` is shorter in tests. */
export const swarmRoutes = ({ swarms }: Services, settings: Settings, pingEveryMs = PING_EVERY_MS): Route[] => [
  keyRoute({
    method: 'POST',
    path: '/v1/swarms',
    tag: 'Swarms',
    summary:
      'Make computers from one configuration, build once, deploy in each; answers when all are up or have failed',
    body: z.object({
      name: text(1, 100).regex(NAME, { error: NAME_PROBLEM }),
      replicas: integer(1, MAX_REPLICAS),
      orb_config: table(),
      org_secrets: textMap(SECRET_BYTES).optional(),
      runtime_mb: integer(MIN_MB, settings.maxRuntimeMb).default(Math.min(DEFAULT_RUNTIME_MB, settings.maxRuntimeMb)),
      disk_mb: integer(MIN_MB, settings.maxDiskMb).default(Math.min(DEFAULT_DISK_MB, settings.maxDiskMb)),
    }),
    answer: swarmReport,
    status: ALL_UP,
    failingStatus: SOME_UP,
    otherAnswers: {
      'text/event-stream': 'With Accept: text/event-stream, and status 200: events `progress`, at last one `result`',
    },
    errors: ['invalid_config', 'missing_secrets', 'name_taken', 'quota_exceeded', 'no_capacity'],
    handle(call) {
      if (wantsEvents(call.request)) {
        return eventsAnswer(call, pingEveryMs, (watch) => swarms.create(call.who, call.body, watch))
      }
      return swarms.create(call.who, call.body).then(reportAnswer)
    },
  }),
  keyRoute({
    method: 'GET',
    path: '/v1/swarms',
    tag: 'Swarms',
    summary: 'List swarms',
    answer: swarmList,
    errors: [],
    handle: ({ who }) => swarms.list(who),
  }),
  keyRoute({
    method: 'GET',
    path: '/v1/swarms/:id',
    tag: 'Swarms',
    summary: 'Show a swarm, by its id or name, and its computers',
    answer: swarm,
    errors: ['not_found'],
    handle: ({ who, params }) => swarms.get(who, params['id'] ?? ''),
  }),
  keyRoute({
    method: 'DELETE',
    path: '/v1/swarms/:id',
    tag: 'Swarms',
    summary: 'Delete a swarm, by its id or name, with all its computers; repeat it while some are left',
    answer: removedSwarm,
    failingStatus: SOME_UP,
    errors: ['not_found'],
    async handle({ who, params }) {
      const removed = await swarms.remove(who, params['id'] ?? '')
      return removed.failed.length > 0 ? json(removed, SOME_UP) : removed
    },
  }),
]

const wantsEvents = (request: Request): boolean => /\btext\/event-stream\b/i.test(request.headers.get('accept') ?? '')

const reportAnswer = (report: SwarmReport): Response => json(report, report.failed.length > 0 ? SOME_UP : ALL_UP)

const asEvent = (event: string, data: unknown): string => `event: ${event}\ndata: ${toJson(data)}\n\n`

/** What is refused is refused before the first byte; whoever leaves ends nothing. */
function eventsAnswer(
  call: AuthorizedCall,
  pingEveryMs: number,
  begin: (watch: (progress: SwarmProgress) => void) => Promise<SwarmReport>,
): Response {
  const encoder = new TextEncoder()
  const early: string[] = []
  let send = (text: string): void => void early.push(text)
  let pings: Timer | undefined
  const report = begin((progress) => send(asEvent('progress', progress)))
  const body = new ReadableStream<Uint8Array>({
    start(controller) {
      send = (text) => controller.enqueue(encoder.encode(text))
      for (const text of early) send(text)
      pings = setInterval(() => send(PING), pingEveryMs)
      report
        .then(
          (done) => asEvent('result', done),
          async (thrown) => asEvent('error', await errorAnswer(thrown, call.requestId).json()),
        )
        .then((last) => {
          clearInterval(pings)
          send(last)
          controller.close()
        })
        // The client has left meanwhile.
        .catch(() => undefined)
    },
    cancel() {
      clearInterval(pings)
      send = () => undefined
    },
  })
  return new Response(body, {
    // x-accel-buffering keeps a reverse proxy from collecting the stream before it passes it on.
    headers: {
      'content-type': 'text/event-stream; charset=utf-8',
      'cache-control': 'no-cache',
      'x-accel-buffering': 'no',
    },
  })
}
