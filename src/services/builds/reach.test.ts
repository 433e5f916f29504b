import { expect, test } from 'bun:test'
import { parseAllowList } from '../../addresses.ts'
import { type Cidr, parseCidr } from '../../cidr.ts'
import { openGitHost } from './reach.ts'

const sandbox = [parseCidr('10.8.0.0/16')].filter((cidr): cidr is Cidr => cidr !== null)

async function open(address: string, allow: string, resolved: string[]) {
  const events: string[] = []
  const reach = await openGitHost(new URL(address), {
    allowPrivate: parseAllowList(allow),
    sandboxAllow: sandbox,
    permit: (ip, port) => {
      events.push(`open ${ip}:${port}`)
      return () => events.push(`close ${ip}:${port}`)
    },
    resolve: async () => resolved,
  })
  const { pins } = reach
  reach.close()
  return { pins, events }
}

const NOTHING = { pins: [], events: [] }

test.each([
  ['a public host', 'https://git.test/x', '', ['8.8.8.8'], NOTHING],
  ['an unknown name', 'https://git.test/x', '', [], NOTHING],
  ['an address that computers may reach', 'https://git.test/x', '', ['10.8.1.1'], NOTHING],
  ['plain http to a public host that is allowed', 'http://git.test/x', 'git.test', ['8.8.8.8'], NOTHING],
  [
    'a private host that is allowed',
    'https://git.test:8443/x',
    'git.test:8443',
    ['10.1.1.1', '10.1.1.2'],
    {
      pins: ['git.test:8443:10.1.1.1,10.1.1.2'],
      events: ['open 10.1.1.1:8443', 'open 10.1.1.2:8443', 'close 10.1.1.1:8443', 'close 10.1.1.2:8443'],
    },
  ],
  [
    'a private address that is allowed',
    'http://10.1.1.1/x',
    '10.1.0.0/16',
    [],
    { pins: [], events: ['open 10.1.1.1:80', 'close 10.1.1.1:80'] },
  ],
])('%s', async (_, address, allow, resolved, expected) => {
  expect(await open(address, allow, resolved)).toEqual(expected)
})

test.each([
  ['a private host', 'https://git.test/x', '', ['10.1.1.1'], 'did not allow'],
  ['another port', 'https://git.test/x', 'git.test:8443', ['10.1.1.1'], 'did not allow'],
  ['plain http', 'http://git.test/x', '', ['8.8.8.8'], 'plain http'],
  ['plain http to an unknown name', 'http://git.test/x', '10.0.0.0/8', [], 'plain http'],
  ['loopback, though allowed', 'http://git.test/x', '*', ['127.0.0.1', '::1'], 'loopback'],
  ['cloud metadata', 'https://git.test/x', '10.0.0.0/8', ['169.254.169.254'], 'did not allow'],
])('refuses %s', async (_, address, allow, resolved, message) => {
  await expect(open(address, allow, resolved)).rejects.toThrow(message)
})
