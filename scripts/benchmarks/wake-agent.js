// The agent of the benchmarks of wakes: holds BENCH_MB of memory, asks, reads the answer, asks the next question at once.
// Its only knowledge is in memory: the number of its questions and the checksum of its data.
import { createHash, randomFillSync } from 'node:crypto'
import { Agent, request } from 'node:http'

const MEMORY_BYTES = Number(process.env.BENCH_MB ?? 100) * 1024 * 1024
const url = process.argv[2] ?? process.env.ORB_PROXY_URL
const checksumOf = (bytes) => createHash('sha256').update(bytes).digest('hex')
const memory = randomFillSync(Buffer.alloc(MEMORY_BYTES))
const checksum = checksumOf(memory)
const agent = new Agent({ keepAlive: true, maxSockets: 1 })

const ask = (question) =>
  new Promise((resolve, reject) => {
    const call = request(`${url}/v1/messages`, { agent, method: 'POST' }, (response) => {
      let answer = ''
      response.on('data', (chunk) => (answer += chunk))
      response.on('end', () => resolve(answer))
      response.on('error', reject)
    })
    call.on('error', reject)
    call.end(JSON.stringify(question))
  })

let intact = null
for (let round = 0; ; round++) {
  const answer = await ask({ round, intact })
  intact = answer === 'check' ? checksumOf(memory) === checksum : null
}
