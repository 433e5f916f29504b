// The agent of the benchmarks `density` and `ingress`: a small Node program with an HTTP server. All that it knows is in
// memory: who it is and how often it was visited.
import { createServer } from 'node:http'
import { hostname } from 'node:os'

const PORT = 8000
const KEEP_ALIVE_MS = 600_000
const name = hostname()
let visits = 0

const server = createServer((_, response) => {
  response.end(JSON.stringify({ name, visits: ++visits, rssBytes: process.memoryUsage.rss() }))
})
server.keepAliveTimeout = KEEP_ALIVE_MS
server.listen(PORT)
