import { z } from 'zod'
import type { Services } from '../../services/types.ts'
import { text } from '../fields.ts'
import { createRateLimit } from '../rate-limit.ts'
import { type Call, publicRoute, type Route } from '../route.ts'
import { loggedIn, registered } from './schemas.ts'

/** Calls of register and login together, per minute and address (Orb Cloud contract §20). */
const AUTH_CALLS_PER_MINUTE = 120

const MAX_CREDENTIAL_CHARACTERS = 256

export function authRoutes({ accounts }: Services): Route[] {
  const limit = createRateLimit(AUTH_CALLS_PER_MINUTE)
  const guard = ({ address, setHeader }: Call) => {
    const { allowance, refusal } = limit(address)
    setHeader('ratelimit-limit', String(allowance.limit))
    setHeader('ratelimit-remaining', String(allowance.remaining))
    setHeader('ratelimit-reset', String(allowance.resetSecs))
    if (refusal) throw refusal
  }
  return [
    publicRoute({
      method: 'POST',
      path: '/api/v1/auth/register',
      aliases: ['/v1/auth/register'],
      tag: 'Auth',
      summary: 'Make an account and its first key',
      body: z.object({ email: text(3, 254) }),
      answer: registered,
      status: 201,
      errors: ['registration_closed', 'email_taken', 'rate_limited'],
      guard,
      handle: ({ body }) => accounts.register(body.email),
    }),
    publicRoute({
      method: 'POST',
      path: '/api/v1/auth/login',
      aliases: ['/v1/auth/login'],
      tag: 'Auth',
      summary: 'Exchange a key for a token of 24 hours',
      body: z.object({ api_key: text(1, MAX_CREDENTIAL_CHARACTERS) }),
      answer: loggedIn,
      errors: ['unauthorized', 'rate_limited'],
      guard,
      handle: ({ body }) => accounts.login(body.api_key),
    }),
  ]
}
