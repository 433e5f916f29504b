/** Length of an X25519 public key. */
const PUBLIC_KEY_BYTES = 32

/**
 * Encrypts for the holder of a key alone, in libsodium's sealed box, the form in which GitHub takes secrets. The key and the
 * result are base64. Null when the key is none.
 */
export async function seal(text: string, publicKey: string): Promise<string | null> {
  const key = Buffer.from(publicKey, 'base64')
  if (key.length !== PUBLIC_KEY_BYTES) return null
  // Loaded here: it compiles WebAssembly, for which a server that never speaks to GitHub has no use.
  const { default: sodium } = await import('libsodium-wrappers')
  await sodium.ready
  return Buffer.from(sodium.crypto_box_seal(text, key)).toString('base64')
}
