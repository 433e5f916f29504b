/**
 * Asks its LLM one question after the other for as long as it lives, and knows all answers so far by a hash that goes into
 * the next question: an answer that was lost, taken twice or taken by a second copy of it shows in what it asks next.
 */
import { createHash, randomUUID } from 'node:crypto'
import { appendFileSync } from 'node:fs'

const RETRY_PAUSE_MS = 200
const life = randomUUID()
let chain = ''
appendFileSync('/agent/data/lives', `${life}\n`)
console.log('ready')

for (let number = 0; ; number++) {
  const question = JSON.stringify({ life, number, chain })
  const answer = await ask(question)
  chain = createHash('sha256').update(`${chain} ${answer}`).digest('hex')
}

/** As client libraries do: the same request again when the connection breaks. */
async function ask(question) {
  for (;;) {
    try {
      const response = await fetch(`${process.env.ORB_PROXY_URL}/v1/messages`, { method: 'POST', body: question })
      if (!response.ok) throw new Error(`status ${response.status}`)
      return await response.text()
    } catch {
      await new Promise((resolve) => setTimeout(resolve, RETRY_PAUSE_MS))
    }
  }
}
