// Counts with the help of an LLM. What it knows lies in its memory alone: the count, the conversation, and 100 MB of
// random bytes whose checksum it compares after each answer. Were a byte lost in its sleep, it would say so and end.
import { createHash, randomFillSync } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import Anthropic from '@anthropic-ai/sdk'

const MEMORY_BYTES = 100 * 1024 * 1024
const MODEL = process.env.MODEL || 'claude-haiku-5-5'
/** Each call costs money with a real LLM: the agent stops asking after this many and stays as it is. */
const COUNT_TO = Number(process.env.COUNT_TO || 5)
const PAUSE_MS = 1000
const MAX_TOKENS = 60

const checksumOf = (bytes) => createHash('sha256').update(bytes).digest('hex')

const memory = randomFillSync(Buffer.alloc(MEMORY_BYTES))
const checksum = checksumOf(memory)
// ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL come from the environment. No retries: what is lost shall be seen.
const anthropic = new Anthropic({ maxRetries: 0 })
const conversation = []

console.log(`ready: ${MEMORY_BYTES} bytes of my own, checksum ${checksum.slice(0, 12)}`)

for (let count = 1; count <= COUNT_TO; count++) {
  conversation.push({ role: 'user', content: `Which number comes after ${count - 1}? Answer in one short sentence.` })
  console.log(`call ${count}: asking`)
  const asked = Date.now()
  const stream = anthropic.messages.stream({ model: MODEL, max_tokens: MAX_TOKENS, messages: conversation })
  let pieces = 0
  stream.on('text', () => pieces++)
  const text = await stream.finalText()
  const seconds = ((Date.now() - asked) / 1000).toFixed(1)
  conversation.push({ role: 'assistant', content: text })
  console.log(`call ${count}: after ${seconds} s, in ${pieces} pieces: ${text}`)

  if (checksumOf(memory) !== checksum) {
    console.error(`call ${count}: my memory has changed`)
    process.exit(1)
  }
  console.log(`call ${count}: counted to ${count}, ${conversation.length} messages remembered, memory intact`)
  await sleep(PAUSE_MS)
}

console.log('done')
// It stays in memory, so that it can be sent to sleep and woken by hand.
setInterval(() => {}, 2 ** 30)
