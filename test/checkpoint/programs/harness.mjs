/** What the JavaScript programs of the matrix share; the protocol is that of harness.py. */
import { randomUUID } from 'node:crypto'
import { appendFileSync, mkdirSync } from 'node:fs'
import { createServer } from 'node:http'

const ANSWERS = '/agent/data/answers'
const life = randomUUID()
mkdirSync(ANSWERS, { recursive: true })

/** Calls the LLM; each piece of the answer is in its file as soon as it is here. */
export async function ask(id, kind) {
  let end = ''
  try {
    const response = await fetch(`${process.env.ORB_PROXY_URL}/${kind}`, {
      method: 'POST',
      headers: { 'x-question': id, 'content-type': 'application/json' },
      body: '{}',
    })
    for await (const piece of response.body) appendFileSync(`${ANSWERS}/${id}`, piece)
  } catch (error) {
    end = String(error)
  }
  appendFileSync(`${ANSWERS}/${id}.end`, `${end}\n`)
}

/** @param check resolves to numbers by name, each larger at every call; rejects when something is not as it was */
export async function report(check) {
  try {
    return { life, counts: await check(), problem: null }
  } catch (error) {
    return { life, counts: {}, problem: String(error?.stack ?? error) }
  }
}

/** Serves for ever. */
export function run(check) {
  let turn = Promise.resolve()
  createServer(async (request, response) => {
    const url = new URL(request.url, 'http://localhost')
    if (request.method === 'POST') {
      void ask(url.searchParams.get('id'), url.searchParams.get('kind'))
      response.end('{}')
      return
    }
    turn = turn.then(() => report(check))
    response.end(JSON.stringify(await turn))
  }).listen(8000, '127.0.0.1', () => console.log('ready'))
}

export function expect(what, seen, wanted) {
  const [is, shall] = [JSON.stringify(seen), JSON.stringify(wanted)]
  if (is !== shall) throw new Error(`${what}: ${is}, expected ${shall}`)
}
