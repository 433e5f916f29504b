import { isoTime } from '../time.ts'

const LAST_MS = Date.UTC(9999, 11, 31, 23, 59, 59)

/**
 * A moment that comes from inside a computer (a file's time, a log's stamp) in the form of every timestamp. What does not
 * fit into four digits of a year becomes the nearest moment that does.
 */
export const timestamp = (ms: number): string => isoTime(Math.min(Math.max(ms, 0), LAST_MS))
