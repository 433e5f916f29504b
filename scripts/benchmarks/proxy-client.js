// A client of HTTP/1.1 for the agents of the benchmarks `proxy` and `streams`: a bare socket, so that what is measured is
// the way and not a library.
import { connect } from 'node:net'

const HEAD_END = Buffer.from('\r\n\r\n')
const CRLF = Buffer.from('\r\n')
const EMPTY = Buffer.alloc(0)

/** A connection that is kept for one call after another. */
export class Connection {
  #socket
  #rest = EMPTY
  #take = null
  #failed = null

  static open(url) {
    const { hostname, port } = new URL(url)
    return new Promise((resolve, reject) => {
      const socket = connect({ host: hostname, port: Number(port), noDelay: true })
      socket.once('error', reject)
      socket.once('connect', () => {
        socket.off('error', reject)
        resolve(new Connection(socket))
      })
    })
  }

  constructor(socket) {
    this.#socket = socket
    socket.on('data', (bytes) => {
      this.#rest = this.#rest.length === 0 ? bytes : Buffer.concat([this.#rest, bytes])
      this.#take?.()
    })
    const fail = (error) => {
      this.#failed ??= error
      this.#take?.()
    }
    socket.on('error', fail)
    socket.on('close', () => fail(new Error('the connection was closed')))
  }

  close() {
    this.#socket.destroy()
  }

  /**
   * Sends the bytes of a request and resolves with the answer's body once it is whole; @param onPiece gets its pieces
   * as they come. Rejects for any status but 200.
   */
  call(request, onPiece = () => {}) {
    return new Promise((resolve, reject) => {
      const reader = new AnswerReader(onPiece)
      this.#take = () => {
        try {
          this.#rest = reader.push(this.#rest)
          if (!reader.ended && this.#failed === null) return
          this.#take = null
          if (reader.ended) resolve(reader.body())
          else reject(this.#failed)
        } catch (error) {
          this.#take = null
          reject(error)
        }
      }
      this.#socket.write(request)
    })
  }
}

class AnswerReader {
  ended = false
  #onPiece
  #pieces = []
  /** Bytes left of the body or of a chunk; null: the head is still to come, or a chunk's line. */
  #left = null
  #chunked = null

  constructor(onPiece) {
    this.#onPiece = onPiece
  }

  body() {
    return Buffer.concat(this.#pieces)
  }

  /** Returns what it cannot use yet. */
  push(bytes) {
    let rest = bytes
    for (;;) {
      if (this.ended) return rest
      const after = this.#chunked === null ? this.#head(rest) : this.#chunked ? this.#chunk(rest) : this.#fixed(rest)
      if (after === null) return rest
      rest = after
    }
  }

  #head(bytes) {
    const end = bytes.indexOf(HEAD_END)
    if (end === -1) return null
    const head = bytes.toString('latin1', 0, end)
    if (!/^HTTP\/1\.1 200 /.test(head)) throw new Error(head.split('\r\n', 1)[0])
    this.#chunked = /^transfer-encoding: *chunked/im.test(head)
    this.#left = this.#chunked ? null : Number(/^content-length: *(\d+)/im.exec(head)[1])
    this.ended = this.#left === 0
    return bytes.subarray(end + HEAD_END.length)
  }

  #fixed(bytes) {
    if (bytes.length === 0) return null
    const piece = bytes.subarray(0, this.#left)
    this.#left -= piece.length
    this.#give(piece)
    this.ended = this.#left === 0
    return bytes.subarray(piece.length)
  }

  #chunk(bytes) {
    const lineEnd = bytes.indexOf(CRLF)
    if (lineEnd === -1) return null
    const size = Number.parseInt(bytes.toString('latin1', 0, lineEnd), 16)
    const end = lineEnd + CRLF.length + size
    if (bytes.length < end + CRLF.length) return null
    if (size === 0) this.ended = true
    else this.#give(bytes.subarray(lineEnd + CRLF.length, end))
    return bytes.subarray(end + CRLF.length)
  }

  #give(piece) {
    this.#pieces.push(piece)
    this.#onPiece(piece)
  }
}

/** The bytes of a POST. */
export function requestBytes(url, headers, body) {
  const { host, pathname } = new URL(url)
  const lines = Object.entries({ host, 'content-length': Buffer.byteLength(body), ...headers })
  return Buffer.from(
    `POST ${pathname} HTTP/1.1\r\n${lines.map(([name, value]) => `${name}: ${value}\r\n`).join('')}\r\n${body}`,
  )
}

/** Now, in ms since the epoch: processes of one machine agree on it but for what their starts differ by. */
export const clockMs = () => performance.timeOrigin + performance.now()

/** What the benchmark is told: by the agent, on the upstream's own address. */
export async function report(url, what) {
  const connection = await Connection.open(url)
  await connection.call(requestBytes(`${url}/report`, {}, JSON.stringify(what)))
  connection.close()
}
