/** HTTP status of each error code (the error table of the Orb Cloud contract, §1.3). */
const STATUS = {
  invalid_json: 400,
  invalid_request: 400,
  invalid_toml: 400,
  invalid_config: 400,
  missing_secrets: 400,
  invalid_path: 400,
  no_source: 400,
  missing_scopes: 400,
  unauthorized: 401,
  forbidden: 403,
  registration_closed: 403,
  quota_exceeded: 403,
  not_found: 404,
  config_not_found: 404,
  agent_not_found: 404,
  port_not_found: 404,
  job_not_found: 404,
  port_not_exposed: 404,
  unknown_host: 404,
  method_not_allowed: 405,
  email_taken: 409,
  name_taken: 409,
  no_config: 409,
  agent_exists: 409,
  agent_failed: 409,
  is_a_directory: 409,
  not_a_directory: 409,
  payload_too_large: 413,
  range_not_satisfiable: 416,
  spawn_failed: 422,
  build_failed: 422,
  unsupported_source: 422,
  rate_limited: 429,
  too_many_sessions: 429,
  headers_too_large: 431,
  internal: 500,
  checkpoint_failed: 500,
  restore_failed: 500,
  not_supported: 501,
  app_unreachable: 502,
  upstream_unreachable: 502,
  upstream_forbidden: 502,
  github_error: 502,
  agent_not_running: 503,
  wake_failed: 503,
  checkpoint_unavailable: 503,
  no_capacity: 503,
  shutting_down: 503,
  upstream_timeout: 504,
  wake_timeout: 504,
  disk_full: 507,
} as const

export type ErrorCode = keyof typeof STATUS

/**
 * The one error class. Whatever a client may see is one of these: `code` goes out as `error`, `message` as `message`,
 * `fields` beside them. Anything else that is thrown is a defect and answers 500 `internal`.
 */
export class OrbError extends Error {
  readonly status: number

  constructor(
    readonly code: ErrorCode,
    message: string,
    readonly fields: Record<string, unknown> = {},
    options?: ErrorOptions,
  ) {
    super(message, options)
    this.name = 'OrbError'
    this.status = STATUS[code]
  }
}

/** The message of anything that was thrown. */
export const messageOf = (thrown: unknown): string => (thrown instanceof Error ? thrown.message : String(thrown))
