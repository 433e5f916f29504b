/* A server whose kernel gives huge pages to everybody, as Debian's does. The setting is the machine's: here for one test. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from 'bun:test'
import { readFileSync, writeFileSync } from 'node:fs'
import { type LlmServer, startLlmServer } from '../support/llm-server.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

const SETTING = '/sys/kernel/mm/transparent_hugepage/enabled'
const DATA_MB = 60
/** From the second on, pages that the last wake needed are filled in among those that wait to be fetched. */
const WAKES = 6

let before: string
let orb: Orb
let llm: LlmServer
beforeAll(async () => {
  before = /\[(\w+)\]/.exec(readFileSync(SETTING, 'utf8'))?.[1] ?? ''
  expect(before).not.toBe('')
  writeFileSync(SETTING, 'always')
  llm = startLlmServer({})
  orb = await startOrb()
})
afterAll(async () => {
  if (before) writeFileSync(SETTING, before)
  await orb?.stop()
  await llm?.stop()
})

test('an agent wakes with all its memory, again and again, and has huge pages afterwards', async () => {
  const computer = await orb.computer({ runtime_mb: 256, disk_mb: 512 })
  await computer.deployAgent({ llmPort: llm.port, env: { DATA_MB: String(DATA_MB) } })
  for (let wake = 1; wake <= WAKES; wake++) {
    expect((await computer.call('POST', '/agents/demote')).status).toBe(200)
    const { status, json } = await computer.call('POST', '/agents/promote')
    expect(status).toBe(200)
    await computer.ask({ id: `after-${wake}`, prompt: 'hello' })
    expect(await computer.outcome(`after-${wake}`)).toMatchObject({ answer: 'echo: hello', count: wake, intact: true })
    expect(readFileSync(`/proc/${json['pid']}/status`, 'utf8')).toMatch(/^THP_enabled:\s*1$/m)
  }
  await computer.expectStarts(1)
})
