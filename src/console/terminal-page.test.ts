import { expect, test } from 'bun:test'
import { TERMINAL_ASSETS, terminalPage } from './terminal-page.ts'

test('each page has a nonce of its own, which its policy knows', () => {
  const [first, second] = [terminalPage('orb.example:8787'), terminalPage('orb.example:8787')]
  const nonce = /nonce="([^"]+)"/.exec(first.html)?.[1] ?? ''
  expect(first.policy).toContain(`style-src 'self' 'nonce-${nonce}'`)
  expect(first.policy).toContain("connect-src 'self' ws://orb.example:8787 wss://orb.example:8787;")
  expect(second.html).not.toContain(nonce)
})

test.each(['a;script-src', 'a b', "a'", 'a,b', ''])('the host %j does not get into the policy', (host) => {
  expect(terminalPage(host).policy).toContain("connect-src 'self'; ")
})

test('all that the page loads is there', async () => {
  const loaded = [...terminalPage('a').html.matchAll(/(?:src|href)="(\/[^"]+)"/g)].map(([, path]) => path)
  expect(loaded.toSorted()).toEqual(TERMINAL_ASSETS.map(({ path }) => path).toSorted())
  for (const { file } of TERMINAL_ASSETS) expect((await Bun.file(file).text()).length).toBeGreaterThan(1000)
})
