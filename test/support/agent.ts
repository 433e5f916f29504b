/**
 * The agent of the end-to-end tests. It holds data in memory, asks LLMs through the official SDKs when it is told to,
 * and answers on a port of its own computer, where exec reaches it with curl. Bundled by agent-bundle.ts; runs on Node.
 *
 * Environment: `DATA_MB` of data to hold.
 */
import { spawn } from 'node:child_process'
import { createHash, randomUUID } from 'node:crypto'
import { appendFileSync } from 'node:fs'
import { createServer, type IncomingMessage } from 'node:http'
import Anthropic from '@anthropic-ai/sdk'
import OpenAI from 'openai'

const PORT = 8000
const MB = 1024 * 1024

/** What POST /ask takes. */
export interface Question {
  id: string
  prompt: string
  sdk?: 'anthropic' | 'openai'
  stream?: boolean
  /** Before the answer's first byte, and between two words of a streamed one. */
  delayMs?: number
  gapMs?: number
  maxRetries?: number
}

/** One life of the program: another id means that its memory was lost. */
const life = randomUUID()
let count = 0
const data = Buffer.alloc(Number(process.env['DATA_MB'] ?? 1) * MB)
for (let at = 0; at < data.length; at += 4) data.writeUInt32LE((at * 2654435761) >>> 0, at)
const digest = () => createHash('sha256').update(data).digest('hex')
const digestAtStart = digest()

const say = (line: Record<string, unknown>) => console.log(JSON.stringify(line))

async function ask(question: Question): Promise<string> {
  const { sdk = 'anthropic', maxRetries = 0, prompt, stream = false, delayMs = 0, gapMs = 0 } = question
  const headers = { 'x-delay-ms': String(delayMs), 'x-gap-ms': String(gapMs), 'x-question': question.id }
  const messages = [{ role: 'user' as const, content: prompt }]
  if (sdk === 'anthropic') {
    const client = new Anthropic({ apiKey: 'sk-ant-test', maxRetries })
    const request = { model: 'stand-in', max_tokens: 100, messages }
    if (!stream) {
      const answer = await client.messages.create(request, { headers })
      return answer.content.map((block) => (block.type === 'text' ? block.text : '')).join('')
    }
    const pieces: string[] = []
    for await (const event of await client.messages.create({ ...request, stream: true }, { headers })) {
      if (event.type === 'content_block_delta' && event.delta.type === 'text_delta') pieces.push(event.delta.text)
    }
    return pieces.join('')
  }
  const client = new OpenAI({ apiKey: 'sk-test', maxRetries })
  const request = { model: 'stand-in', messages }
  if (!stream) {
    const answer = await client.chat.completions.create(request, { headers })
    return answer.choices[0]?.message.content ?? ''
  }
  const pieces: string[] = []
  for await (const chunk of await client.chat.completions.create({ ...request, stream: true }, { headers })) {
    pieces.push(chunk.choices[0]?.delta.content ?? '')
  }
  return pieces.join('')
}

async function body(request: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = []
  for await (const chunk of request) chunks.push(chunk)
  return Buffer.concat(chunks).toString()
}

const server = createServer(async (request, response) => {
  response.setHeader('connection', 'close')
  switch (request.url) {
    case '/state':
      count++
      return response.end(JSON.stringify({ life, count }))
    case '/env':
      return response.end(JSON.stringify(process.env))
    case '/ask': {
      const question: Question = JSON.parse(await body(request))
      const { id } = question
      ask(question).then(
        (answer) => say({ id, answer, life, count: ++count, intact: digest() === digestAtStart }),
        (error) => say({ id, error: String(error), life, count }),
      )
      return response.end('{}')
    }
    case '/spawn':
      // A process of the agent's own tree.
      spawn('bash', ['-c', await body(request)], { stdio: 'inherit' })
      return response.end('{}')
    default:
      return response.writeHead(404).end()
  }
})

// What a file in the computer says of its starts outlives the process: two lives would be two lines.
appendFileSync('/agent/data/lives', `${life}\n`)
server.listen(PORT, '127.0.0.1', () => say({ ready: life }))
