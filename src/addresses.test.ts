import { describe, expect, test } from 'bun:test'
import { allowed, isPrivate, parseAllowList } from './addresses.ts'

describe('isPrivate', () => {
  test.each([
    ['127.0.0.1', true],
    ['127.255.255.254', true],
    ['0.0.0.0', true],
    ['10.1.2.3', true],
    ['172.15.255.255', false],
    ['172.16.0.1', true],
    ['172.31.255.255', true],
    ['172.32.0.1', false],
    ['192.168.1.1', true],
    ['169.254.169.254', true],
    ['100.64.0.1', true],
    ['100.128.0.1', false],
    ['224.0.0.1', true],
    ['255.255.255.255', true],
    ['8.8.8.8', false],
    ['1.1.1.1', false],
    ['::1', true],
    ['::', true],
    ['fe80::1', true],
    ['fe80::1%eth0', true],
    ['fd00:ec2::254', true],
    ['fc00::1', true],
    ['ff02::1', true],
    ['2606:4700::1111', false],
    ['2a00:1450:4001:81b::200e', false],
    ['::ffff:127.0.0.1', true],
    ['::ffff:7f00:1', true],
    ['::ffff:a9fe:a9fe', true],
    ['::ffff:8.8.8.8', false],
    ['::127.0.0.1', true],
    ['64:ff9b::10.0.0.1', true],
    ['64:ff9b::8.8.8.8', false],
    ['2002:7f00:1::', true],
    ['2002:808:808::', false],
    ['not an address', true],
    ['', true],
  ])('%s → %p', (ip, expected) => {
    expect(isPrivate(ip)).toBe(expected)
  })
})

describe('allowed', () => {
  test.each([
    ['', 'localhost', 80, '127.0.0.1', false],
    ['*', 'localhost', 80, '127.0.0.1', true],
    ['10.0.0.0/8', 'db.internal', 443, '10.9.9.9', true],
    ['10.0.0.0/8', 'db.internal', 443, '11.0.0.1', false],
    ['10.0.0.0/8', 'x', 443, '::ffff:10.0.0.1', true],
    ['10.0.0.0/8', '10.0.0.0', 443, '::a00:1', false],
    ['fd00::/8', 'x', 443, 'fd12::1', true],
    ['0.0.0.0/0', 'x', 443, 'fd12::1', false],
    ['localhost:8080', 'localhost', 8080, '127.0.0.1', true],
    ['localhost:8080', 'LOCALHOST.', 8080, '127.0.0.1', true],
    ['localhost:8080', 'localhost', 8081, '127.0.0.1', false],
    ['localhost', 'localhost', 1, '127.0.0.1', true],
    ['localhost', 'evil.localhost', 1, '127.0.0.1', false],
    ['127.0.0.1:9', '127.0.0.1', 9, '127.0.0.1', true],
    ['[::1]:9', '[::1]', 9, '::1', true],
    ['::1', '::1', 9, '::1', true],
    ['a.test , 192.168.0.0/16', 'b.test', 9, '192.168.3.4', true],
  ])('%p lets %s:%d at %s through: %p', (list, host, port, ip, expected) => {
    expect(allowed(parseAllowList(list), host, port, ip)).toBe(expected)
  })

  test.each(['10.0.0.0/33', 'x/8', 'http://a.test', 'a b', 'a.test:0', 'a.test:70000', '[::1', 'fd00::/129'])(
    'refuses the entry %p and names it',
    (entry) => {
      expect(() => parseAllowList(entry)).toThrow(entry)
    },
  )
})
