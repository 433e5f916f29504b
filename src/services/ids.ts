import { createHash, randomInt } from 'node:crypto'

/** Orb Cloud contract §1.2. */
const ALPHABET = 'abcdefghijklmnopqrstuvwxyz0123456789'
const LENGTH = 16

/** A new id such as `build_` with 16 letters and digits behind it. */
export const newId = (prefix: 'build' | 'whk' | 'evt' | 'run'): string =>
  `${prefix}_${Array.from({ length: LENGTH }, () => ALPHABET[randomInt(ALPHABET.length)]).join('')}`

/** The id of a job of cron: it has no row that it could be kept in, and must be the same after each change of the file. */
export const jobId = (computerId: string, name: string): string => {
  const hash = createHash('sha256').update(`${computerId} ${name}`).digest()
  return `job_${[...hash.subarray(0, LENGTH)].map((byte) => ALPHABET[byte % ALPHABET.length]).join('')}`
}
