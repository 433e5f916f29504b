/**
 * The app behind public traffic in the end-to-end tests; put into a computer as it is. `BIND` lists where it listens, as
 * `ADDRESS:PORT` separated by commas.
 */
import { createHash, randomUUID } from 'node:crypto'
import { createServer } from 'node:http'

const life = randomUUID()
let count = 0
const streams = new Set()

const answer = (response, value) => {
  const body = JSON.stringify(value)
  response.writeHead(200, { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(body) })
  response.end(body)
}

const server = createServer({ keepAliveTimeout: 1000 }, (request, response) => {
  const url = new URL(request.url, 'http://app')
  switch (url.pathname) {
    case '/state':
      return answer(response, { life, count: ++count })
    case '/upload': {
      const hash = createHash('sha256')
      let size = 0
      const read = () => {
        request.on('data', (chunk) => {
          size += chunk.length
          hash.update(chunk)
        })
        request.on('end', () => answer(response, { size, hash: hash.digest('hex') }))
      }
      return setTimeout(read, Number(url.searchParams.get('after') ?? 0))
    }
    case '/download': {
      response.writeHead(200, { 'Content-Type': 'application/octet-stream' })
      const chunk = Buffer.alloc(1024 * 1024, 'x')
      let left = Number(url.searchParams.get('mb'))
      const more = () => {
        while (left > 0) {
          left--
          if (!response.write(chunk)) return response.once('drain', more)
        }
        response.end()
      }
      return more()
    }
    case '/events':
      response.writeHead(200, { 'Content-Type': 'text/event-stream' })
      response.write(': open\n\n')
      streams.add(response)
      return response.on('close', () => streams.delete(response))
    case '/say':
      for (const stream of streams) stream.write(`data: ${url.searchParams.get('text')}\n\n`)
      return answer(response, { streams: streams.size })
    case '/streams':
      return answer(response, { streams: streams.size })
    case '/status':
      return response.writeHead(Number(url.searchParams.get('code'))).end()
    case '/ask':
      // The LLM answers when the test lets it.
      return fetch(`${process.env.OPENAI_BASE_URL}/v1/chat/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json', 'x-question': url.searchParams.get('id') },
        body: JSON.stringify({ model: 'm', messages: [{ role: 'user', content: 'hello' }] }),
      }).then(async (reply) => answer(response, { status: reply.status, text: await reply.text(), life }))
    case '/hang-up':
      return request.socket.destroy()
    case '/nonsense':
      return request.socket.end('this is not HTTP\r\n\r\n')
    default:
      return answer(response, {
        life,
        method: request.method,
        url: request.url,
        headers: request.rawHeaders,
        port: request.socket.localPort,
        address: request.socket.localAddress,
      })
  }
})

/** Echoes text frames of up to 125 bytes (RFC 6455 §5.2), with the number of the message in this life before them. */
server.on('upgrade', (request, socket) => {
  const key = request.headers['sec-websocket-key']
  const accept = createHash('sha1').update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest('base64')
  socket.write(
    `HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\nX-Path: ${request.url}\r\n\r\n`,
  )
  let messages = 0
  let buffer = Buffer.alloc(0)
  socket.on('data', (bytes) => {
    buffer = Buffer.concat([buffer, bytes])
    while (buffer.length >= 6 && buffer.length >= 6 + (buffer[1] & 0x7f)) {
      const length = buffer[1] & 0x7f
      const opcode = buffer[0] & 0x0f
      const mask = buffer.subarray(2, 6)
      const text = Buffer.from(buffer.subarray(6, 6 + length).map((byte, at) => byte ^ mask[at % 4]))
      buffer = buffer.subarray(6 + length)
      if (opcode === 8) {
        return socket.end(Buffer.concat([Buffer.from([0x88, text.length]), text]))
      }
      const reply = Buffer.from(`${++messages} ${text}`)
      socket.write(Buffer.concat([Buffer.from([0x81, reply.length]), reply]))
    }
  })
  socket.on('error', () => undefined)
  socket.on('end', () => {
    console.log('websocket gone')
    socket.destroy()
  })
})

const [first, ...others] = process.env.BIND.split(',').map((place) => {
  const colon = place.lastIndexOf(':')
  return [Number(place.slice(colon + 1)), place.slice(0, colon)]
})
const listen = (target, [port, host]) => new Promise((resolve) => target.listen(port, host, resolve))
await listen(server, first)
for (const place of others) {
  await listen(
    createServer((...both) => server.emit('request', ...both)),
    place,
  )
}
console.log('app ready')
