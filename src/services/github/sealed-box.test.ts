import { expect, test } from 'bun:test'
import sodium from 'libsodium-wrappers'
import { seal } from './sealed-box.ts'

test('what is sealed is opened by the private key alone, and never looks the same', async () => {
  await sodium.ready
  const { publicKey, privateKey } = sodium.crypto_box_keypair()
  const key = Buffer.from(publicKey).toString('base64')
  const boxes = await Promise.all([seal('orb_schlüssel', key), seal('orb_schlüssel', key)])
  expect(boxes[0]).not.toBe(boxes[1])
  for (const box of boxes) {
    const open = (secret: Uint8Array) =>
      sodium.crypto_box_seal_open(Buffer.from(box ?? '', 'base64'), publicKey, secret)
    expect(sodium.to_string(open(privateKey))).toBe('orb_schlüssel')
    expect(() => open(sodium.crypto_box_keypair().privateKey)).toThrow()
  }
})

test.each(['', 'x', btoa('x'.repeat(31)), btoa('x'.repeat(33))])('%s is no public key', async (key) => {
  expect(await seal('text', key)).toBeNull()
})
