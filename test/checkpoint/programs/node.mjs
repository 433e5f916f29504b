/** A common Node program: data in memory, a timer, a child behind pipes, a worker thread, a watched directory. */
import { spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdirSync, watch, writeFileSync } from 'node:fs'
import { Worker } from 'node:worker_threads'
import { expect, run } from './harness.mjs'

const WATCHED = '/agent/data/watched'
const sha = (data) => createHash('sha256').update(data).digest('hex')
const memory = randomBytes(40 << 20)
const digest = sha(memory)
const child = spawn('cat', { stdio: ['pipe', 'pipe', 'inherit'] })
const worker = new Worker(
  `const { parentPort } = require('node:worker_threads')
  let beats = 0
  setInterval(() => beats++, 50)
  parentPort.on('message', (number) => parentPort.postMessage({ number, beats }))`,
  { eval: true },
)
mkdirSync(WATCHED)
const seen = new Set()
watch(WATCHED, (_, name) => seen.add(name))
let beats = 0
setInterval(() => beats++, 50)
let checks = 0

run(async () => {
  checks++
  expect('memory', sha(memory), digest)
  child.stdin.write(`${checks}\n`)
  const [echo] = await once(child.stdout, 'data')
  expect('echo of the child', String(echo), `${checks}\n`)
  worker.postMessage(checks)
  const [told] = await once(worker, 'message')
  expect('echo of the worker', told.number, checks)
  writeFileSync(`${WATCHED}/${checks}`, '')
  while (!seen.has(String(checks))) await new Promise((resolve) => setTimeout(resolve, 5))
  return { checks, 'beats of a timer': beats, 'beats of a worker': told.beats }
})
