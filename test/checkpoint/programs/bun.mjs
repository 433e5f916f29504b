/** A common Bun program: data in memory, its own server, timer, child, worker, SQLite. */
import { Database } from 'bun:sqlite'
import { ask, expect, report } from './harness.mjs'

const sha = (data) => new Bun.CryptoHasher('sha256').update(data).digest('hex')
const memory = new Uint8Array(40 << 20)
for (let at = 0; at < memory.length; at += 65536) crypto.getRandomValues(memory.subarray(at, at + 65536))
const digest = sha(memory)
const child = Bun.spawn(['cat'], { stdin: 'pipe', stdout: 'pipe' })
const echoes = child.stdout.getReader()
const database = new Database('/agent/data/bun.db', { create: true })
database.run('pragma journal_mode = wal')
database.run('create table beats (number integer primary key)')
const code = 'let beats = 0; setInterval(() => beats++, 50); onmessage = ({ data }) => postMessage([data, beats])'
const worker = new Worker(URL.createObjectURL(new Blob([code], { type: 'application/javascript' })))
let beats = 0
setInterval(() => beats++, 50)
let checks = 0

async function check() {
  checks++
  expect('memory', sha(memory), digest)
  child.stdin.write(`${checks}\n`)
  child.stdin.flush()
  expect('echo of the child', new TextDecoder().decode((await echoes.read()).value), `${checks}\n`)
  database.run('insert into beats values (?)', [checks])
  expect('rows', database.query('select count(*) as n from beats').get(), { n: checks })
  const answered = new Promise((resolve) => worker.addEventListener('message', resolve, { once: true }))
  worker.postMessage(checks)
  const [number, workerBeats] = (await answered).data
  expect('echo of the worker', number, checks)
  return { checks, 'beats of a timer': beats, 'beats of a worker': workerBeats }
}

Bun.serve({
  port: 8000,
  hostname: '127.0.0.1',
  async fetch(request) {
    const { searchParams } = new URL(request.url)
    if (request.method !== 'POST') return Response.json(await report(check))
    void ask(searchParams.get('id'), searchParams.get('kind'))
    return Response.json({})
  },
})
console.log('ready')
