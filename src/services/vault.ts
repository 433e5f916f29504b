import { createCipheriv, createDecipheriv, hkdfSync, randomBytes, randomUUID } from 'node:crypto'
import { closeSync, fsyncSync, linkSync, openSync, readFileSync, rmSync, writeSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { OrbError } from '../errors.ts'

const MASTER_KEY_BYTES = 32
/** Nonce and tag of AES-256-GCM (NIST SP 800-38D §5.2.1.1, §5.2.1.2). */
const NONCE_BYTES = 12
const TAG_BYTES = 16
const JWT_SECRET_BYTES = 32

export interface Vault {
  /** AES-256-GCM: nonce, ciphertext, tag. `context` (the computer id) is bound to it and needed again to open it. */
  seal(plain: string, context: string): Uint8Array
  /** Throws `internal` when the bytes were changed, or sealed for another context or under another master key. */
  open(sealed: Uint8Array, context: string): string
  /** The key of login tokens. */
  jwtSecret: Uint8Array
}

/** Opens the vault over `DATA/master.key`, which it makes (0600) the first time. Throws when the file is not a key. */
export function openVault(dataDir: string): Vault {
  const path = join(dataDir, 'master.key')
  const master = readKey(path) ?? createKey(path)
  if (master.length !== MASTER_KEY_BYTES) {
    throw new Error(`${path} is damaged: ${master.length} bytes instead of ${MASTER_KEY_BYTES}`)
  }
  return {
    seal(plain, context) {
      const nonce = randomBytes(NONCE_BYTES)
      const cipher = createCipheriv('aes-256-gcm', master, nonce)
      cipher.setAAD(Buffer.from(context))
      return Buffer.concat([nonce, cipher.update(plain, 'utf8'), cipher.final(), cipher.getAuthTag()])
    },
    open(sealed, context) {
      try {
        const decipher = createDecipheriv('aes-256-gcm', master, sealed.subarray(0, NONCE_BYTES), {
          authTagLength: TAG_BYTES,
        })
        decipher.setAAD(Buffer.from(context))
        decipher.setAuthTag(sealed.subarray(-TAG_BYTES))
        const plain = [decipher.update(sealed.subarray(NONCE_BYTES, -TAG_BYTES)), decipher.final()]
        return Buffer.concat(plain).toString('utf8')
      } catch (cause) {
        throw new OrbError('internal', 'a stored secret cannot be read with the present master key', {}, { cause })
      }
    },
    jwtSecret: new Uint8Array(hkdfSync('sha256', master, '', 'orb login tokens', JWT_SECRET_BYTES)),
  }
}

function readKey(path: string): Buffer | null {
  try {
    return readFileSync(path)
  } catch (error) {
    if (isCode(error, 'ENOENT')) return null
    throw error
  }
}

/**
 * Writes a new key under another name, then links it into place: whoever comes second keeps the first one's key, and a crash
 * never leaves half a key behind.
 */
function createKey(path: string): Buffer {
  const draft = `${path}.${randomUUID()}`
  try {
    const fd = openSync(draft, 'wx', 0o600)
    try {
      writeSync(fd, randomBytes(MASTER_KEY_BYTES))
      fsyncSync(fd)
    } finally {
      closeSync(fd)
    }
    linkSync(draft, path)
  } catch (error) {
    if (!isCode(error, 'EEXIST')) throw error
  } finally {
    rmSync(draft, { force: true })
  }
  syncDirectory(dirname(path))
  return readFileSync(path)
}

function syncDirectory(path: string): void {
  const fd = openSync(path, 'r')
  fsyncSync(fd)
  closeSync(fd)
}

const isCode = (error: unknown, code: string): boolean =>
  error instanceof Error && 'code' in error && error.code === code
