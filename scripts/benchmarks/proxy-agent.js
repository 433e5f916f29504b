// The agent of the benchmark `proxy`: the same call by each way in turn, and each way's times in its report.
import { clockMs, Connection, report, requestBytes } from './proxy-client.js'

const { upstream, gateway, calls, largeCalls, streams, warmUp, newConnections, headers } = JSON.parse(process.env.BENCH_PLAN)
/** What an agent sends in the middle of its work: the whole conversation. */
const LARGE_BYTES = 64 * 1024
const SENTENCE = 'You are the other side of a benchmark. '
const question = (stream, bytes = 1024) =>
  JSON.stringify({
    model: 'bench',
    stream,
    messages: [
      { role: 'system', content: SENTENCE.repeat(bytes / SENTENCE.length) },
      { role: 'user', content: 'How long does this take?' },
    ],
  })

const WAYS = { direct: upstream, orb: process.env.ORB_PROXY_URL, gateway }
const ways = Object.entries(WAYS).map(([name, base]) => ({
  name,
  base,
  call: requestBytes(`${base}/v1/chat/completions`, headers, question(false)),
  large: requestBytes(`${base}/v1/chat/completions`, headers, question(false, LARGE_BYTES)),
  stream: requestBytes(`${base}/v1/chat/completions`, headers, question(true)),
  connection: null,
  times: { call: [], large: [], chunk: [], first: [] },
}))

/** Who comes first changes from round to round. */
const inTurn = (round) => ways.map((_, index) => ways[(index + round) % ways.length])

/** @param kind `call` or `large` */
async function plainCalls(kind, count, before) {
  for (let round = -before; round < count; round++) {
    for (const way of inTurn(round + before)) {
      const began = performance.now()
      await way.connection.call(way[kind])
      const took = performance.now() - began
      if (round >= 0) way.times[kind].push(took)
    }
  }
}

async function streamedCalls() {
  for (let round = -1; round < streams; round++) {
    for (const way of inTurn(round + 1)) {
      const late = []
      const body = await way.connection.call(way.stream, (piece) => {
        const now = clockMs()
        for (const [, sent] of piece.toString('latin1').matchAll(/"sent":([\d.]+)/g)) late.push(now - Number(sent))
      })
      if (!body.toString('latin1').trimEnd().endsWith('data: [DONE]')) throw new Error(`${way.name}: no end`)
      if (round >= 0) way.times.chunk.push(...late)
    }
  }
}

async function firstCalls() {
  for (let round = 0; round < newConnections; round++) {
    for (const way of inTurn(round)) {
      const began = performance.now()
      const connection = await Connection.open(way.base)
      await connection.call(way.call)
      way.times.first.push(performance.now() - began)
      connection.close()
    }
  }
}

async function reconnect() {
  for (const way of ways) {
    way.connection?.close()
    way.connection = await Connection.open(way.base)
  }
}

try {
  await reconnect()
  await plainCalls('call', calls, warmUp)
  await plainCalls('large', largeCalls, warmUp / 10)
  await report(upstream, { progress: 'plain calls are done' })
  await reconnect()
  await streamedCalls()
  await report(upstream, { progress: 'streamed calls are done' })
  await firstCalls()
  await report(upstream, { times: Object.fromEntries(ways.map(({ name, times }) => [name, times])) })
} catch (error) {
  await report(upstream, { error: String(error?.stack ?? error) })
}
setInterval(() => {}, 60_000)
