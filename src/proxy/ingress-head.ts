import { encodeHead, endToEndHeaders } from './headers.ts'
import type { RequestHead, ResponseHead } from './http1.ts'
import { connectionOptions, type Header } from './http1-head.ts'

/** What is known of a request's sender. */
export interface Sender {
  /** `unix` for the peer of a unix socket. */
  address: string
  secure: boolean
  /** The peer is a proxy whose X-Forwarded headers are believed (ORB_TRUST_PROXY). */
  trusted: boolean
}

const FORWARDED = ['x-forwarded-for', 'x-forwarded-proto', 'x-forwarded-host']

/** The request asks for a WebSocket: no other upgrade is passed on. */
export const wantsWebSocket = ({ method, headers, framing, minorVersion }: RequestHead): boolean =>
  method === 'GET' &&
  minorVersion === 1 &&
  framing.kind === 'none' &&
  connectionOptions(headers).includes('upgrade') &&
  headers.some(({ name, value }) => name === 'upgrade' && value.toLowerCase() === 'websocket')

/** The head that an app gets: header lines as they came, hop-by-hop fields exchanged, X-Forwarded-* set. */
export function appRequestHead(request: RequestHead, authority: string, path: string, sender: Sender): Buffer {
  // What nobody vouches for would pass for the truth in an app that believes its proxy.
  const dropped = sender.trusted ? FORWARDED : [...FORWARDED, 'forwarded']
  const addresses = [
    ...believed(request, sender, 'x-forwarded-for'),
    ...(sender.address === 'unix' ? [] : [sender.address]),
  ]
  const lines = [
    ...keptLines(request, authority, dropped),
    ...(addresses.length > 0 ? [`X-Forwarded-For: ${addresses.join(', ')}`] : []),
    `X-Forwarded-Proto: ${believed(request, sender, 'x-forwarded-proto')[0] ?? (sender.secure ? 'https' : 'http')}`,
    `X-Forwarded-Host: ${believed(request, sender, 'x-forwarded-host')[0] ?? authority}`,
  ]
  return requestHead(request, path, lines)
}

/** The head that the API gets: as it came, with a line that tells who sent it. */
export function apiRequestHead(request: RequestHead, authority: string, path: string, peer: Header): Buffer {
  return requestHead(request, path, [...keptLines(request, authority, [peer.name]), peer.line])
}

function keptLines(request: RequestHead, authority: string, dropped: string[]): string[] {
  const lines = endToEndHeaders(request.headers)
    .filter(({ name }) => !dropped.includes(name))
    .map(({ name, value, line }) => (name === 'host' && value !== authority ? `Host: ${authority}` : line))
  return request.headers.some(({ name }) => name === 'host') ? lines : [`Host: ${authority || 'localhost'}`, ...lines]
}

/** One connection serves one request: an app that slept cannot have let an idle one time out meanwhile. */
function requestHead(request: RequestHead, path: string, lines: string[]): Buffer {
  if (request.framing.kind === 'chunked') lines.push('Transfer-Encoding: chunked')
  lines.push(...(wantsWebSocket(request) ? WEBSOCKET : ['Connection: close']))
  return encodeHead(`${request.method} ${path} HTTP/1.1`, lines)
}

const WEBSOCKET = ['Connection: Upgrade', 'Upgrade: websocket']

/** The values of a header that the trusted peer sent, in order. */
const believed = ({ headers }: RequestHead, sender: Sender, name: string): string[] =>
  sender.trusted
    ? headers.filter((header) => header.name === name && header.value !== '').map((header) => header.value)
    : []

/** How the answer goes to the client, and with which head. */
export interface AnswerForm {
  head: Buffer
  chunked: boolean
  close: boolean
}

/** @param close the connection must not be used again */
export function answerForm(request: RequestHead, answer: ResponseHead, close: boolean): AnswerForm {
  const lines = endToEndHeaders(answer.headers).map(({ line }) => line)
  const start = `HTTP/1.1 ${answer.status} ${answer.reason}`
  if (answer.status === 101) return { head: encodeHead(start, [...lines, ...WEBSOCKET]), chunked: false, close: false }
  const old = request.minorVersion === 0
  const endless = answer.framing.kind === 'chunked' || answer.framing.kind === 'close'
  const mustClose = close || (endless && old)
  if (endless && !old) lines.push('Transfer-Encoding: chunked')
  if (mustClose) lines.push('Connection: close')
  else if (old) lines.push('Connection: keep-alive')
  return { head: encodeHead(start, lines), chunked: endless && !old, close: mustClose }
}

/** An interim response, such as 100 Continue. */
export const interimHead = (status: number, reason: string, headers: Header[]): Buffer =>
  encodeHead(
    `HTTP/1.1 ${status} ${reason}`,
    endToEndHeaders(headers).map(({ line }) => line),
  )
