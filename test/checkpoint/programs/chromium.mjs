/**
 * Chromium without a window, driven over its debugging pipe, on a page of this program's own server: scripts, a timer, a
 * worker, a canvas, storage and an open event stream.
 */
import { spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { createServer } from 'node:http'
import { expect, run } from './harness.mjs'

const PAGE_PORT = 9000
const PAGE = `<!doctype html><title>page</title><canvas id=canvas width=200 height=200></canvas><script>
  const life = Math.random(), worker = new Worker('/worker.js'), events = new EventSource('/events')
  let beats = 0, event, problem = null
  setInterval(() => beats++, 50)
  events.onmessage = ({ data }) => {
    if (event !== undefined && Number(data) !== event + 1) problem = 'event ' + data + ' after ' + event
    event = Number(data)
  }
  const echo = (number) => new Promise((resolve) => {
    worker.onmessage = ({ data }) => resolve(data)
    worker.postMessage(number)
  })
  async function check(number) {
    const canvas = document.getElementById('canvas').getContext('2d')
    canvas.fillStyle = 'rgb(' + number + ',2,3)'
    canvas.fillRect(0, 0, 200, 200)
    localStorage.setItem('number', Number(localStorage.getItem('number')) + 1)
    const fetched = await (await fetch('/number?' + number)).text()
    const pixel = canvas.getImageData(10, 10, 1, 1).data[0]
    return { life, beats, event, problem, fetched, pixel, worker: await echo(number), stored: localStorage.getItem('number') }
  }
</script>`

const listeners = new Set()
let sent = 0
createServer((request, response) => {
  const { pathname, search } = new URL(request.url, 'http://localhost')
  if (pathname === '/events') {
    response.writeHead(200, { 'content-type': 'text/event-stream' }).flushHeaders()
    listeners.add(response)
    return
  }
  if (pathname === '/number') return response.end(search.slice(1))
  if (pathname === '/worker.js') {
    return response
      .writeHead(200, { 'content-type': 'text/javascript' })
      .end('onmessage = ({ data }) => postMessage(data)')
  }
  response.writeHead(200, { 'content-type': 'text/html' }).end(PAGE)
}).listen(PAGE_PORT, '127.0.0.1')
setInterval(() => {
  sent++
  for (const listener of listeners) listener.write(`data: ${sent}\n\n`)
}, 100)

const flags = ['--headless', '--no-sandbox', '--disable-gpu', '--remote-debugging-pipe', '--no-first-run']
const browser = spawn('chromium', [...flags, `--user-data-dir=/agent/data/profile-${randomUUID()}`, 'about:blank'], {
  stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'],
})
browser.on('exit', (code, signal) => {
  console.error(`chromium ended: ${code ?? signal}`)
  process.exit(1)
})
const [, , , commands, answers] = browser.stdio
const waiting = new Map()
let text = ''
answers.setEncoding('utf8').on('data', (piece) => {
  const messages = (text + piece).split('\0')
  text = messages.pop()
  for (const message of messages.map((one) => JSON.parse(one))) {
    waiting.get(message.id)?.(message)
    waiting.delete(message.id)
  }
})
let lastId = 0
async function command(method, params = {}, sessionId = undefined) {
  const id = ++lastId
  commands.write(`${JSON.stringify({ id, method, params, sessionId })}\0`)
  const { result, error } = await new Promise((resolve) => waiting.set(id, resolve))
  if (error) throw new Error(`${method}: ${error.message}`)
  return result
}

const { targetInfos } = await command('Target.getTargets')
const { targetId } = targetInfos.find(({ type }) => type === 'page')
const { sessionId } = await command('Target.attachToTarget', { targetId, flatten: true })
await command('Page.enable', {}, sessionId)
await command('Page.navigate', { url: `http://127.0.0.1:${PAGE_PORT}/` }, sessionId)

async function inPage(expression) {
  const { result, exceptionDetails } = await command(
    'Runtime.evaluate',
    { expression, awaitPromise: true, returnByValue: true },
    sessionId,
  )
  if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text)
  return result.value
}

while ((await inPage('typeof event')) !== 'number') await new Promise((resolve) => setTimeout(resolve, 20))
let checks = 0
let life
run(async () => {
  checks++
  const page = await inPage(`check(${checks})`)
  life ??= page.life
  const { beats, event, ...rest } = page
  const number = String(checks)
  expect('the page', rest, { life, problem: null, fetched: number, pixel: checks, worker: checks, stored: number })
  return { checks, 'beats of the page': beats, 'events that came to the page': event }
})
