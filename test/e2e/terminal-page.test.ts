/** The page of a terminal (Orb Cloud contract §14.2) in a real browser, from the executable that is handed out. */
import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import type { Browser, BrowserContext, Page } from 'playwright-core'
import { type Relay, startBrowser, startRelay } from '../support/browser.ts'
import type { Computer } from '../support/computer.ts'
import { type Orb, startOrb, TEST_TIMEOUT_MS } from '../support/orb.ts'
import { until } from '../support/sweep.ts'

setDefaultTimeout(TEST_TIMEOUT_MS)

const BINARY = process.env['ORB_TEST_BINARY'] ?? join(import.meta.dir, '../../dist/orb')
/** Pictures of the page are put here, to be looked at. */
const PICTURES = join(import.meta.dir, '../../build/pictures')
const WAIT_MS = 20_000

let orb: Orb
let relay: Relay
let browser: Browser
let computer: Computer
let context: BrowserContext | null = null
/** What the page must never cause: errors, violations of its policy, requests to others. */
let complaints: string[] = []

beforeAll(async () => {
  if (!existsSync(BINARY)) throw new Error(`${BINARY} is missing: run scripts/build first`)
  await mkdir(PICTURES, { recursive: true })
  browser = await startBrowser()
  orb = await startOrb({ binary: BINARY })
  relay = startRelay(orb.url)
  computer = await orb.computer({ name: 'night-shift' })
})
afterAll(async () => {
  await browser?.close()
  relay?.stop()
  await orb?.stop()
})
afterEach(async () => {
  await context?.close()
  context = null
  const seen = complaints
  complaints = []
  expect(seen).toEqual([])
})

interface View {
  width: number
  height: number
}
const DESKTOP: View = { width: 1280, height: 800 }
const PHONE: View = { width: 390, height: 760 }

async function newPage(view = DESKTOP): Promise<Page> {
  context ??= await browser.newContext({ viewport: view })
  context.setDefaultTimeout(WAIT_MS)
  const page = await context.newPage()
  page.on('pageerror', (error) => complaints.push(`error: ${error.message}`))
  page.on('console', (message) => {
    // What the server refuses, or is not there for, the browser logs as an error by itself.
    if (message.type() === 'error' && !/WebSocket connection|Failed to load resource/.test(message.text()))
      complaints.push(`console: ${message.text()}`)
  })
  page.on('request', (request) => {
    const url = request.url()
    if (!url.startsWith(relay.url) && !url.startsWith('data:')) complaints.push(`request: ${url}`)
    if (/key=/.test(request.headers()['referer'] ?? '')) complaints.push(`referer: ${url}`)
  })
  return page
}

const address = (query = '', of = computer) => `${relay.url}/terminal/${of.id}${query}`

/** A page that is connected, with a prompt. */
async function open(query = '', view = DESKTOP): Promise<Page> {
  const page = await newPage(view)
  await page.goto(address(`?key=${orb.key}${query}`))
  await shows(page, /root@\S+:~# $/)
  return page
}

/** What is on the screen of the terminal, without spaces at the ends of lines. */
const screenOf = async (page: Page): Promise<string> => {
  const lines = await page.locator('.xterm-rows > div').allInnerTexts()
  return lines
    .map((line) => line.replaceAll('\u00a0', ' '))
    .join('\n')
    .replace(/\n+$/, '')
}

/** The screen, once it is as wanted. */
async function shows(page: Page, what: RegExp): Promise<string> {
  let screen = ''
  const there = await until(async () => {
    screen = await screenOf(page)
    return what.test(screen) || what.test(`${screen.trimEnd()} `)
  }, WAIT_MS)
  if (!there) throw new Error(`${what} is not on the screen:\n${screen}`)
  return screen
}

async function run(page: Page, command: string): Promise<void> {
  await page.keyboard.type(command)
  await page.keyboard.press('Enter')
}

const status = (page: Page, text: string) => page.locator('#status', { hasText: text }).waitFor()

/** A picture for people to look at; the test only sees to it that one is taken. */
const picture = (page: Page, name: string) => page.screenshot({ path: join(PICTURES, `${name}.png`) })

describe('the page', () => {
  test('loads without a key, says nothing of the computer, and is under a strict policy', async () => {
    const pages = await Promise.all(
      [address(), address('', { id: crypto.randomUUID() } as Computer)].map(async (url) => {
        const answer = await fetch(url)
        expect(answer.status).toBe(200)
        const policy = answer.headers.get('content-security-policy') ?? ''
        const nonce = /'nonce-([^']+)'/.exec(policy)?.[1] ?? ''
        expect(nonce.length).toBeGreaterThan(16)
        expect(answer.headers.get('referrer-policy')).toBe('no-referrer')
        return { policy: policy.replace(nonce, ''), html: (await answer.text()).replace(nonce, '') }
      }),
    )
    expect(pages[0]).toEqual(pages[1]!)
    expect(pages[0]?.policy).toContain("default-src 'none'; script-src 'self';")
    expect(pages[0]?.policy).not.toContain('unsafe')
    expect(pages[0]?.html).not.toContain('night-shift')
    expect(pages[0]?.html).not.toMatch(/<script(?![^>]*\bsrc="\/)/)
  })

  test('asks for the key, refuses a wrong one, and opens with the right one', async () => {
    const page = await newPage()
    await page.goto(address())
    await page.locator('#key').waitFor()
    await picture(page, 'sign-in')
    await page.locator('#key').fill('orb_wrong')
    await page.keyboard.press('Enter')
    await page.locator('#key-problem', { hasText: 'not valid' }).waitFor()
    await page.locator('#key').fill(orb.key)
    await page.keyboard.press('Enter')
    await shows(page, /root@\S+:~# $/)
    await page.locator('h1', { hasText: 'night-shift' }).waitFor()
    await run(page, 'echo $((6 * 7))')
    await shows(page, /\n42\n/)
    // The tab keeps the key.
    await page.reload()
    await shows(page, /\n42\n/)
  })

  test('takes the key of its address and drops it there', async () => {
    const page = await newPage()
    await page.goto(address(`?key=${orb.key}&session=mine`))
    await shows(page, /root@\S+:~# $/)
    expect(page.url()).toBe(address('?session=mine'))
    expect(orb.log).not.toContain(orb.key)
  })

  test('says when there is no such computer', async () => {
    const page = await newPage()
    await page.goto(address(`?key=${orb.key}`, { id: crypto.randomUUID() } as Computer))
    await page.locator('#key-problem', { hasText: 'no such computer' }).waitFor()
  })
})

describe('the terminal', () => {
  test('fits the window, and its shell hears of it', async () => {
    const page = await open()
    let asked = 0
    const size = async () => {
      asked++
      await run(page, `clear; echo size ${asked}: $(stty size)`)
      const screen = await shows(page, new RegExp(`^size ${asked}: \\d+ \\d+\\n`))
      const [, rows, columns] = /: (\d+) (\d+)\n/.exec(screen) ?? []
      return { rows: Number(rows), columns: Number(columns) }
    }
    const large = await size()
    expect(large.rows).toBe(await page.locator('.xterm-rows > div').count())
    expect(large.columns).toBeGreaterThan(120)
    await page.setViewportSize(PHONE)
    expect(await until(async () => (await size()).columns < 60, WAIT_MS)).toBe(true)
    const small = await size()
    expect(small.rows).toBe(await page.locator('.xterm-rows > div').count())
    // Nothing is cut off or to be scrolled for.
    const box = await page.locator('.xterm-screen').boundingBox()
    expect((box?.x ?? 0) + (box?.width ?? 0)).toBeLessThanOrEqual(PHONE.width)
    expect((box?.y ?? 0) + (box?.height ?? 0)).toBeLessThanOrEqual(PHONE.height)
  })

  test('shows colours, and programs that take the whole screen', async () => {
    await computer.put('root/colours.sh', COLOURS)
    const page = await open()
    await run(page, 'clear; bash colours.sh')
    await shows(page, /all of them/)
    const styles = await page
      .locator('.xterm-rows span')
      .evaluateAll((spans) => [...new Set(spans.map((span) => getComputedStyle(span).color))])
    expect(styles.length).toBeGreaterThan(6)
    await picture(page, 'desktop')
    await run(page, 'seq 300 | less')
    await shows(page, /^1\n2\n3\n/)
    await page.keyboard.press('q')
    await shows(page, /all of them/)
  })

  test('looks the same on a phone', async () => {
    await computer.put('root/colours.sh', COLOURS)
    const page = await open('', PHONE)
    await run(page, 'clear; bash colours.sh')
    await shows(page, /all of them/)
    await picture(page, 'phone')
  })

  test('keeps 10,000 lines, and finds text in them', async () => {
    const page = await open()
    await run(page, 'seq -f "<%05g>" 20000; echo en""d')
    await shows(page, /end\n/)
    await page.keyboard.press('Control+Shift+F')
    const find = async (text: string, count: RegExp) => {
      await page.locator('#search-text').fill(text)
      await page.locator('#search-count', { hasText: count }).waitFor()
    }
    await find('<10100>', /^1 of 1$/)
    await shows(page, /<10100>/)
    await find('<09900>', /^0$/)
    await find('<1999', /^\d+ of 10$/)
    await picture(page, 'search')
    await page.keyboard.press('Escape')
    await run(page, 'echo typed')
    await shows(page, /\ntyped\n/)
  })

  test('can be stopped in a flood', async () => {
    const page = await open()
    await run(page, 'yes flood')
    await shows(page, /flood\nflood\n/)
    await page.keyboard.press('Control+C')
    await run(page, 'clear; echo al""ive')
    await shows(page, /^alive\n/)
  })

  test('makes links of addresses', async () => {
    const page = await open()
    await run(page, `clear; echo; echo ${relay.url}/health`)
    await shows(page, /\nhttp:\S+\/health\n/)
    const row = page.locator('.xterm-rows > div', { hasText: /^http/ })
    const box = await row.boundingBox()
    const at = { x: (box?.x ?? 0) + 60, y: (box?.y ?? 0) + 8 }
    await page.mouse.move(at.x, at.y)
    await page.locator('.xterm-cursor-pointer').waitFor()
    const popup = page.waitForEvent('popup')
    await page.mouse.click(at.x, at.y)
    expect((await popup).url()).toBe(`${relay.url}/health`)
  })

  test('takes dropped files to /root', async () => {
    const page = await open()
    const files = await page.evaluateHandle(() => {
      const transfer = new DataTransfer()
      transfer.items.add(new File(['dropped ü'], 'a note.txt'))
      transfer.items.add(new File([new Uint8Array(3_000_000).fill(65)], 'large.bin'))
      return transfer
    })
    await page.dispatchEvent('#screen', 'dragover', { dataTransfer: files })
    await page.locator('#drop').waitFor()
    await picture(page, 'drop')
    await page.dispatchEvent('#screen', 'drop', { dataTransfer: files })
    await page.locator('#uploads li', { hasText: 'Uploaded to /root/large.bin' }).waitFor()
    await page.locator('#uploads li', { hasText: 'Uploaded to /root/a note.txt' }).waitFor()
    await picture(page, 'uploads')
    expect(await computer.get('root/a%20note.txt')).toBe('dropped ü')
    expect((await computer.get('root/large.bin')).length).toBe(3_000_000)
    await page.locator('#upload-files').setInputFiles({ name: 'picked', mimeType: '', buffer: Buffer.from('picked') })
    await page.locator('#uploads li', { hasText: 'Uploaded to /root/picked' }).waitFor()
    await computer.sh('mkdir /root/taken')
    await page.locator('#upload-files').setInputFiles({ name: 'taken', mimeType: '', buffer: Buffer.from('x') })
    await page.locator('#uploads li[data-state="failed"]', { hasText: 'taken: ' }).waitFor()
  })
})

describe('a terminal whose connection breaks', () => {
  test('comes back with its shell and what it showed', async () => {
    const page = await open()
    await run(page, 'kept=yes; clear; echo be""fore')
    await shows(page, /^before\n/)
    relay.off()
    relay.cut()
    await status(page, 'Connecting')
    await picture(page, 'reconnecting')
    relay.on()
    await status(page, 'Connected')
    await shows(page, /^before\n/)
    await run(page, 'echo kept=$kept')
    await shows(page, /\nkept=yes\n/)
  })

  test('does not answer old questions of programs again', async () => {
    const page = await open()
    // Asks where the cursor is, which the emulator answers as if it were typed.
    await run(page, String.raw`clear; printf 'where\033[6n'; read -rs -d R place; echo " ${'$'}{#place} there"`)
    await shows(page, /where \d there/)
    relay.cut()
    await status(page, 'Connecting')
    await status(page, 'Connected')
    await run(page, 'echo do""ne')
    await shows(page, /\ndone\n/)
    expect(await screenOf(page)).toMatch(/# echo do""ne\ndone\n/)
  })

  test('comes back after a restart of the computer, with a new shell', async () => {
    const page = await open()
    await run(page, 'gone=yes; clear; echo be""fore')
    await shows(page, /^before\n/)
    await computer.call('POST', '/restart')
    await shows(page, /^root@\S+:~# $/)
    await run(page, 'echo "[$gone]"')
    await shows(page, /\n\[\]\n/)
  })
})

describe('a terminal that ends', () => {
  test('says so, and gives a new shell', async () => {
    const page = await open()
    await run(page, 'exit 3')
    await page.locator('#notice', { hasText: 'The shell has ended, exit code 3.' }).waitFor()
    await picture(page, 'ended')
    await page.keyboard.press('Enter')
    await shows(page, /^root@\S+:~# $/)
  })

  test('because it is open elsewhere, can be taken back', async () => {
    const first = await open('&session=shared')
    const second = await open('&session=shared')
    await first.locator('#notice', { hasText: 'another window' }).waitFor()
    await run(second, 'echo se""cond')
    await shows(second, /\nsecond\n/)
    await first.locator('#notice-action').click()
    await shows(first, /\nsecond\n/)
    await second.locator('#notice', { hasText: 'another window' }).waitFor()
  })

  test('because its key was revoked, asks for another', async () => {
    const { json } = await orb.call('POST', '/v1/keys', { name: 'short-lived' })
    const page = await newPage()
    await page.goto(address(`?key=${json['api_key']}`))
    await shows(page, /# $/)
    await orb.call('DELETE', `/v1/keys/${json['key_id']}`)
    await page.locator('#key-problem', { hasText: 'revoked' }).waitFor()
    expect(await screenOf(page)).not.toContain('root@')
  })

  test('with its computer says so', async () => {
    const other = await orb.computer({ name: 'short-lived' })
    const page = await newPage()
    await page.goto(address(`?key=${orb.key}`, other))
    await shows(page, /# $/)
    await other.call('DELETE', '')
    await page.locator('#notice', { hasText: 'was deleted' }).waitFor()
    expect(await page.locator('#notice-action').isVisible()).toBe(false)
  })
})

const COLOURS = String.raw`printf '\n'
for bold in 0 1; do
  for colour in 30 31 32 33 34 35 36 37; do printf '\033[%s;%sm colour %s ' $bold $colour $colour; done
  printf '\033[0m\n'
done
for colour in 40 41 42 43 44 45 46 47 100 101 102 103 104 105 106 107; do printf '\033[%sm    ' $colour; done
printf '\033[0m\n'
for shade in $(seq 0 5 250); do printf '\033[48;2;%s;80;%sm ' $shade $((255 - shade)); done
printf '\033[0m\n\n'
printf '┌──────────────┬────────┐\n│ name         │ state  │\n├──────────────┼────────┤\n'
printf '│ night-shift  │ \033[32masleep\033[0m │\n└──────────────┴────────┘\n'
printf '\033[1mbold\033[0m \033[3mitalic\033[0m \033[4munderlined\033[0m \033[9mstruck\033[0m \033[7mreversed\033[0m ü €\n\n'
ls -la --color=always / | head -14
echo all of them
`
