import { z } from 'zod'
import type { Services } from '../../services/types.ts'
import { json } from '../errors.ts'
import { queryInteger, text } from '../fields.ts'
import { keyRoute, type Route } from '../route.ts'
import { cronJobs, cronRuns, cronTriggered } from './schemas.ts'

/** Orb Cloud contract §15.3. */
const MAX_RUNS = 500
const DEFAULT_RUNS = 50
const COULD_NOT_RUN = 502
const MAX_NAME_CHARACTERS = 64

export const cronRoutes = ({ cron }: Services): Route[] => [
  keyRoute({
    method: 'GET',
    path: '/v1/computers/:id/cron',
    tag: 'Cron',
    summary: 'List the jobs of /agent/.orb/cron.json, and what is wrong with it',
    answer: cronJobs,
    errors: ['not_found'],
    handle: ({ who, params }) => cron.list(who, params['id'] ?? ''),
  }),
  keyRoute({
    method: 'GET',
    path: '/v1/computers/:id/cron/runs',
    tag: 'Cron',
    summary: 'List runs of jobs, newest first',
    query: z.object({
      job: text(1, MAX_NAME_CHARACTERS).optional(),
      limit: queryInteger(1, MAX_RUNS).default(DEFAULT_RUNS),
    }),
    answer: cronRuns,
    errors: ['not_found'],
    handle: ({ who, params, query }) => cron.runs(who, params['id'] ?? '', query),
  }),
  keyRoute({
    method: 'POST',
    path: '/v1/computers/:id/cron/:name/trigger',
    tag: 'Cron',
    summary: 'Run a job now, enabled or not; answers when it has ended',
    answer: cronTriggered,
    failingStatus: COULD_NOT_RUN,
    errors: ['not_found', 'job_not_found', 'too_many_sessions'],
    async handle({ who, params }) {
      const run = await cron.trigger(who, params['id'] ?? '', params['name'] ?? '')
      return run.status === 'error' ? json(run, COULD_NOT_RUN) : run
    },
  }),
]
