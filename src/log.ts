type Level = 'info' | 'warn' | 'error'

/** Writes one line to stderr: time, level, message, then `key=value` pairs. Callers never pass a secret or a key. */
export function log(level: Level, message: string, fields: Record<string, unknown> = {}): void {
  const pairs = Object.entries(fields).map(([key, value]) => ` ${key}=${format(value)}`)
  process.stderr.write(`${new Date().toISOString()} ${level} ${message}${pairs.join('')}\n`)
}

const format = (value: unknown): string => {
  const text = value instanceof Error ? value.message : String(value)
  return /^[\w.:/@-]+$/.test(text) ? text : JSON.stringify(text)
}
