import { expect, setDefaultTimeout, test } from 'bun:test'
import { join } from 'node:path'
import { startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'
import { until } from '../support/sweep.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

test('what nobody caught is in the log with its stack, and orb goes on', async () => {
  const orb = await startOrb({ preload: join(import.meta.dir, '../support/throw-on-signal.ts') })
  try {
    process.kill(orb.pid, 'SIGUSR2')
    const logged = (event: string, message: string) =>
      orb.log.split('\n').some((line) => line.includes(`error not caught event=${event}`) && line.includes(message))
    const both = () =>
      logged('uncaughtException', 'Error: thrown for the test\\n') &&
      logged('unhandledRejection', 'Error: rejected for the test\\n')
    expect(await until(both, 10_000)).toBe(true)
    expect((await orb.call('GET', '/v1/computers')).status).toBe(200)
  } finally {
    await orb.stop()
  }
})
