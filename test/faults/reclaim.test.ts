import { afterAll, beforeAll, expect, setDefaultTimeout, test } from 'bun:test'
import { Scene } from './scene.ts'

/** The test goes through all operations of a transition. */
setDefaultTimeout(15 * 60_000)

/** Answers that orb wants to have seen before it takes a wait for a short one. */
const KNOWN_WAITS = 4
/** Fewer operations would mean that they are not seen. */
const FEW = 10

let scene: Scene

beforeAll(async () => {
  scene = await Scene.start({ ORB_SWAP_GB: '1' })
})
afterAll(() => scene?.stop())

test('no failed operation of a sleep in swap harms the agent or loses its answer', async () => {
  for (let known = 0; known < KNOWN_WAITS; known++) {
    await scene.ask()
    await scene.expectAnswer()
  }
  expect(await scene.callAtEach('fail')).toBeGreaterThan(FEW)
  const reclaims = (await scene.computer.lines('orb')).filter((line) => line.startsWith('reclaimed'))
  expect(reclaims.length).toBeGreaterThan(FEW)
})
