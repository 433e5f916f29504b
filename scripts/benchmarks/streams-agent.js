// The agent of the benchmark `streams`: many streaming calls at once through orb's proxy, every byte of them checked.
import { Connection, report, requestBytes } from './proxy-client.js'
import { streamChunk } from './stream-text.js'

const { upstream, streams, chunks, everyMs, startOverMs } = JSON.parse(process.env.BENCH_PLAN)
const WARM_UP_STREAMS = 20
const proxy = process.env.ORB_PROXY_URL
const faults = []
let gaps = []

async function stream(id) {
  const connection = await Connection.open(proxy)
  try {
    let index = 0
    let text = ''
    let last = null
    const body = JSON.stringify({ model: 'bench', stream: true, id })
    await connection.call(requestBytes(`${proxy}/v1/messages`, { 'content-type': 'application/json' }, body), (piece) => {
      text += piece.toString('latin1')
      for (let whole = streamChunk(id, index); text.length >= whole.length; whole = streamChunk(id, index)) {
        if (!text.startsWith(whole)) throw new Error(`stream ${id}: chunk ${index} is not what was sent`)
        text = text.slice(whole.length)
        index++
        const now = performance.now()
        if (last !== null) gaps.push(now - last)
        last = now
        if (index === chunks) break
      }
    })
    if (index !== chunks || text !== '') throw new Error(`stream ${id}: ${index} of ${chunks} chunks and ${text.length} bytes`)
    return true
  } catch (error) {
    faults.push(String(error))
    return false
  } finally {
    connection.close()
  }
}

const wave = (count) =>
  Promise.all(
    Array.from({ length: count }, async (_, id) => {
      await new Promise((resolve) => setTimeout(resolve, (id / count) * startOverMs))
      return stream(id)
    }),
  )

try {
  await wave(WARM_UP_STREAMS)
  gaps = []
  await report(upstream, { progress: 'warm' })
  const whole = (await wave(streams)).filter(Boolean).length
  const late = gaps.map((gap) => gap - everyMs)
  await report(upstream, { whole, faults: faults.slice(0, 5), late: late.filter((_, index) => index % 5 === 0) })
} catch (error) {
  await report(upstream, { error: String(error?.stack ?? error) })
}
setInterval(() => {}, 60_000)
