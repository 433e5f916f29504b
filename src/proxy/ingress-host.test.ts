import { describe, expect, test } from 'bun:test'
import { OrbError } from '../errors.ts'
import type { RequestHead } from './http1.ts'
import { destinationOf, portOf, splitTarget } from './ingress-host.ts'

const DOMAIN = 'orb.localhost'

const codeOf = (work: () => unknown): string => {
  try {
    work()
  } catch (error) {
    return error instanceof OrbError ? error.code : String(error)
  }
  return 'nothing thrown'
}

describe('destinationOf', () => {
  const COMPUTERS: [authority: string, label: string][] = [
    ['abc12345.orb.localhost', 'abc12345'],
    ['ABC12345.Orb.LOCALHOST', 'abc12345'],
    ['abc12345.orb.localhost:8787', 'abc12345'],
    ['abc12345.orb.localhost:', 'abc12345'],
    ['abc12345.orb.localhost.', 'abc12345'],
    ['abc12345.orb.localhost.:80', 'abc12345'],
    ['abc12345-0000-4000-8000-000000000000.orb.localhost', 'abc12345-0000-4000-8000-000000000000'],
    ['x.abc12345.orb.localhost', 'x.abc12345'],
    ['api.api.orb.localhost', 'api.api'],
    ['.orb.localhost', ''],
    ['..orb.localhost', '.'],
  ]
  test.each(COMPUTERS)('%s is a computer', (authority, label) => {
    expect(destinationOf(authority, DOMAIN)).toEqual({ kind: 'computer', label, host: `${label}.${DOMAIN}` })
  })

  const APIS = [
    ...[
      '',
      'orb.localhost',
      'ORB.localhost:8787',
      'api.orb.localhost',
      'API.orb.localhost:1',
      'localhost',
      'localhost:80',
    ],
    ...['127.0.0.1', '127.0.0.1:8787', '[::1]', '[::1]:8787', '10.42.0.1', 'example.com', 'xorb.localhost'],
    ...[
      'abc12345.orb.localhost.example.com',
      'abc12345.orb.localhost@example.com',
      'example.com@abc12345.orb.localhost',
    ],
    ...[
      'abc12345.orb.localhost:x',
      'abc12345.orb.localhost:123456',
      'abc12345.orb.localhost/',
      'abc12345.orb.localhost..',
    ],
    ...[
      'abc12345.orb.localhost, localhost',
      'abc12345.orb.localhost#',
      '%61bc12345.orb.localhost',
      'abc12345 .orb.localhost',
    ],
  ]
  test.each(APIS)('"%s" is not', (authority) => {
    expect(destinationOf(authority, DOMAIN)).toEqual({ kind: 'api' })
  })

  test('a port in the domain does not count', () => {
    expect(destinationOf('a.orb.example:1', 'orb.example:8787')).toEqual({
      kind: 'computer',
      label: 'a',
      host: 'a.orb.example',
    })
  })
})

describe('portOf', () => {
  const PORTS = [8000, 9000, 80]
  const INSIDE: [path: string, port: number, inside: string][] = [
    ['/', 8000, '/'],
    ['/a/b?c=d', 8000, '/a/b?c=d'],
    ['*', 8000, '*'],
    ['/_port/9000', 9000, '/'],
    ['/_port/9000/', 9000, '/'],
    ['/_port/9000/a/../b?c', 9000, '/a/../b?c'],
    ['/_port/9000?x=/y', 9000, '/?x=/y'],
    ['/_port/80//a', 80, '//a'],
    ['/_port/8000/_port/9000/x', 8000, '/_port/9000/x'],
    ['/_ports/9000/', 8000, '/_ports/9000/'],
    ['/_port?x', 8000, '/_port?x'],
    ['/%5Fport/9000/', 8000, '/%5Fport/9000/'],
    ['//_port/9000/', 8000, '//_port/9000/'],
    ['/x/_port/9000/', 8000, '/x/_port/9000/'],
  ]
  test.each(INSIDE)('%s leads to port %d, %s', (path, port, inside) => {
    expect(portOf(path, PORTS)).toEqual({ port, path: inside })
  })

  test.each([
    '/_port',
    '/_port/',
    '/_port/7000/',
    '/_port/09000/',
    '/_port/9000x/',
    '/_port/-1/',
    '/_port/90000/',
    '/_port/9000.0/',
    '/_port/9000%2f',
  ])('%s leads nowhere', (path) => {
    expect(codeOf(() => portOf(path, PORTS))).toBe('port_not_exposed')
  })

  test('nothing is exposed', () => {
    expect(codeOf(() => portOf('/', []))).toBe('port_not_exposed')
  })
})

describe('splitTarget', () => {
  const head = (method: string, target: string): RequestHead => ({
    method,
    target,
    minorVersion: 1,
    headers: [{ name: 'host', value: 'host', line: 'Host: host' }],
    framing: { kind: 'none' },
    keepAlive: true,
  })
  test.each([
    ['/a?b', 'host', '/a?b'],
    ['*', 'host', '*'],
    ['http://Other:1/a?b', 'Other:1', '/a?b'],
    ['HTTPS://other', 'other', '/'],
    ['http://other?b', 'other', '/?b'],
    ['http://[::1]:80/', '[::1]:80', '/'],
  ])('%s', (target, authority, path) => {
    expect(splitTarget(head('GET', target))).toEqual({ authority, path })
  })

  test.each(['http://', 'ftp://other/', 'http://user@other/', 'other', '?x'])('%s is refused', (target) => {
    expect(codeOf(() => splitTarget(head('GET', target)))).toBe('invalid_request')
  })

  test('CONNECT is refused', () => {
    expect(codeOf(() => splitTarget(head('CONNECT', 'other:443')))).toBe('invalid_request')
  })
})
