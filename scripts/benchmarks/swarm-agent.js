// The agent of the benchmark `swarm`: asks its LLM one question, says what the answer was, waits for visitors. It needs
// what the build has made, and knows its replica.
import { readFileSync } from 'node:fs'
import { createServer } from 'node:http'

const { ORB_REPLICA_INDEX: index, ORB_REPLICA_COUNT: count, ORB_PROXY_URL: proxy } = process.env
const built = readFileSync('built/stamp', 'utf8').trim()
let answer = null

createServer((_, response) => response.end(JSON.stringify({ index: Number(index), answer, built }))).listen(8000)
const response = await fetch(`${proxy}/v1/ask`, { method: 'POST', body: JSON.stringify({ index, count }) })
answer = await response.text()
