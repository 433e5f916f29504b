import { OrbError } from '../errors.ts'
import type { ConfigRow } from '../store/types.ts'
import { isoTime } from '../time.ts'
import type { PlainHttpAllowed } from './config/fields.ts'
import { fromJson, type ParsedConfig, parseInline, parseToml, summary, toJson } from './orb-toml.ts'
import type { Principal, Services } from './types.ts'

/** The part of the store that is needed here. */
export interface ConfigStore {
  get(computerId: string, kind: ConfigRow['kind']): ConfigRow | null
  /** Replaces the one of the same computer and kind. */
  put(row: ConfigRow): void
}

export interface ConfigsDeps {
  configs: ConfigStore
  /** The caller's computer, by id or short id. Throws `not_found`, for another organisation's too. */
  findComputer(who: Principal, id: string): { id: string }
  plainHttpAllowed: PlainHttpAllowed
  /** Milliseconds since the epoch. */
  now(): number
}

/** Orb Cloud contract §20. */
export const MAX_CONFIG_BYTES = 256 * 1024

/** Stored configurations, Orb Cloud contract §5. Nothing is built or restarted here. */
export function createConfigs(deps: ConfigsDeps): Services['configs'] {
  return {
    upload(who, id, raw, kind) {
      const computer = deps.findComputer(who, id)
      if (raw.length > MAX_CONFIG_BYTES) {
        throw new OrbError('payload_too_large', `a configuration may have at most ${MAX_CONFIG_BYTES} bytes`)
      }
      const { config, warnings } =
        kind === 'toml' ? parseToml(raw, deps.plainHttpAllowed) : parseJson(raw, deps.plainHttpAllowed)
      deps.configs.put({
        computerId: computer.id,
        kind: 'stored',
        json: toJson(config),
        toml: kind === 'toml' ? new TextDecoder().decode(raw) : null,
        source: 'uploaded',
        updatedAt: deps.now(),
      })
      return { computer_id: computer.id, config_summary: summary(config), source: 'uploaded', warnings }
    },

    get(who, id) {
      const computer = deps.findComputer(who, id)
      const row = deps.configs.get(computer.id, 'stored')
      if (!row) throw new OrbError('config_not_found', 'this computer has no configuration yet')
      const config = fromJson(row.json)
      return {
        computer_id: computer.id,
        config: config.raw,
        toml: row.toml,
        config_summary: summary(config),
        source: row.source,
        updated_at: isoTime(row.updatedAt),
      }
    },
  }
}

const parseJson = (raw: Uint8Array, plainHttpAllowed: PlainHttpAllowed): ParsedConfig => {
  const json = jsonOf(raw)
  if (typeof json !== 'object' || json === null || Array.isArray(json)) {
    throw new OrbError('invalid_json', 'the body must be a JSON object')
  }
  return parseInline(json, plainHttpAllowed)
}

const jsonOf = (raw: Uint8Array): unknown => {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(raw))
  } catch {
    throw new OrbError('invalid_json', 'the body is not JSON')
  }
}
