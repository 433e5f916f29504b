import { describe, expect, test } from 'bun:test'
import { parseAllowList } from '../../addresses.ts'
import { checkedTarget } from './target.ts'

const check = (url: string, allow = '') => checkedTarget(url, parseAllowList(allow))

test('says where the URL leads', () => {
  expect(check('https://Hooks.Example.com/a%20b?c=d#e')).toEqual({
    secure: true,
    host: 'hooks.example.com',
    port: 443,
    authority: 'hooks.example.com',
    target: '/a%20b?c=d',
  })
  expect(check('https://[2606:4700::1]:8443')).toMatchObject({ host: '2606:4700::1', port: 8443, target: '/' })
})

describe('refuses', () => {
  test.each([
    ['', 'https:// URL'],
    ['hooks.example.com', 'https:// URL'],
    ['ftp://example.com', 'https:// URL'],
    ['https://', 'https:// URL'],
    [`https://example.com/${'x'.repeat(2048)}`, '2048'],
    ['https://user@example.com', 'user name'],
    ['https://:pass@example.com', 'user name'],
    ['http://example.com', 'plain http'],
    ['http://93.184.215.14', 'plain http'],
    ['https://localhost/x', 'private'],
    ['https://a.localhost./x', 'private'],
    ['https://127.0.0.1', 'private'],
    ['https://2130706433', 'private'],
    ['https://0x7f.1', 'private'],
    ['https://10.0.0.1', 'private'],
    ['https://169.254.169.254/latest', 'private'],
    ['https://[::1]', 'private'],
    ['https://[::ffff:10.0.0.1]', 'private'],
    ['https://[fd00:ec2::254]', 'private'],
  ])('%j', (url, why) => {
    expect(() => check(url)).toThrow(why)
  })
})

test.each([
  ['http://127.0.0.1:9000', '127.0.0.0/8'],
  ['http://localhost:9000', '127.0.0.0/8'],
  ['http://hooks.internal', 'hooks.internal'],
  ['http://hooks.internal:81', 'hooks.internal:81'],
  ['https://10.1.2.3', '10.0.0.0/8'],
  ['http://[::1]', '*'],
])('the operator may allow %s', (url, allow) => {
  expect(check(url, allow).host).toBe(new URL(url).hostname.replace(/[[\]]/g, ''))
})

test('what is allowed is no more than what was named', () => {
  expect(() => check('http://hooks.internal:82', 'hooks.internal:81')).toThrow('plain http')
  expect(() => check('https://10.1.2.3', '10.2.0.0/16')).toThrow('private')
})
