import { FitAddon } from '@xterm/addon-fit'
import { SearchAddon } from '@xterm/addon-search'
import { WebLinksAddon } from '@xterm/addon-web-links'
import { Terminal } from '@xterm/xterm'
import '@xterm/xterm/css/xterm.css'
import './style.css'
import { Connection, type Obstacle } from './connection.ts'
import { element, passStylePolicy } from './elements.ts'
import { SearchBar } from './search.ts'
import { Uploads } from './uploads.ts'

/** Orb Cloud contract §14.2. */
const SCROLLBACK_LINES = 10_000
const FONT =
  'ui-monospace, "Cascadia Mono", "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace'
const FONT_PX = 14
const NARROW_FONT_PX = 12
const NARROW_PX = 600
const KEY_ITEM = 'orb.key'
const SESSION_ITEM = 'orb.session'

const THEME = {
  background: '#0f1318',
  foreground: '#e3e8ee',
  cursor: '#5aa9ff',
  selectionBackground: '#2f4a6b',
  black: '#3b4552',
  red: '#f0716d',
  green: '#4fc38a',
  yellow: '#e5b454',
  blue: '#5aa9ff',
  magenta: '#c792ea',
  cyan: '#56c8d8',
  white: '#cfd6df',
  brightBlack: '#6b7787',
  brightRed: '#ff8f8b',
  brightGreen: '#74dda8',
  brightYellow: '#ffd479',
  brightBlue: '#8cc4ff',
  brightMagenta: '#dcb6f5',
  brightCyan: '#84e0ec',
  brightWhite: '#ffffff',
}

passStylePolicy()

const computerId = decodeURIComponent(location.pathname.split('/')[2] ?? '')
const screen = element('screen', HTMLElement)
const title = element('title', HTMLHeadingElement)
const status = element('status', HTMLParagraphElement)
const signIn = element('sign-in', HTMLDivElement)
const keyInput = element('key', HTMLInputElement)
const keyProblem = element('key-problem', HTMLParagraphElement)
const notice = element('notice', HTMLDivElement)
const noticeAction = element('notice-action', HTMLButtonElement)
const searchOpen = element('search-open', HTMLButtonElement)
const uploadOpen = element('upload-open', HTMLButtonElement)
const uploadFiles = element('upload-files', HTMLInputElement)
const drop = element('drop', HTMLDivElement)

let key = takeKey()
const session = takeSession()
let connection: Connection | null = null
/** While the terminal draws what it has shown before, its answers to old questions are no input. */
let replaying = 0

const terminal = new Terminal({
  scrollback: SCROLLBACK_LINES,
  fontFamily: FONT,
  fontSize: innerWidth < NARROW_PX ? NARROW_FONT_PX : FONT_PX,
  theme: THEME,
  cursorBlink: true,
  allowProposedApi: true,
  macOptionIsMeta: true,
})
const fit = new FitAddon()
const search = new SearchAddon()
terminal.loadAddon(fit)
terminal.loadAddon(search)
terminal.loadAddon(new WebLinksAddon((_, uri) => void window.open(uri, '_blank', 'noopener,noreferrer')))
terminal.open(screen)
new ResizeObserver(() => fit.fit()).observe(screen)

const searchBar = new SearchBar(search, () => terminal.focus())
const uploads = new Uploads(element('uploads', HTMLUListElement), () => (key ? { computerId, key } : null))

terminal.onData((text) => replaying === 0 && connection?.type(text))
terminal.onBinary((text) => connection?.typeBytes(Uint8Array.from(text, (character) => character.charCodeAt(0))))
terminal.onResize((size) => connection?.resize(size))
terminal.onTitleChange((text) => {
  document.title = text || 'Terminal'
})
terminal.attachCustomKeyEventHandler((event) => {
  if (event.type !== 'keydown' || !event.ctrlKey || !event.shiftKey) return true
  if (event.code === 'KeyF') searchBar.open()
  else if (event.code === 'KeyC' && terminal.hasSelection())
    void navigator.clipboard?.writeText(terminal.getSelection())
  // The browser's own paste.
  else return event.code !== 'KeyV'
  event.preventDefault()
  return false
})
searchOpen.onclick = () => searchBar.open()

/** The key of `?key=`, which then leaves the address bar, or that of this tab. */
function takeKey(): string | null {
  const url = new URL(location.href)
  const given = url.searchParams.get('key')
  if (given === null) return sessionStorage.getItem(KEY_ITEM)
  url.searchParams.delete('key')
  history.replaceState(null, '', url)
  return given
}

/** The shell of this tab: what `?session=` names, or one that is made up once. */
function takeSession(): string {
  const item = `${SESSION_ITEM}.${computerId}`
  const known = new URLSearchParams(location.search).get('session') ?? sessionStorage.getItem(item)
  const name = known ?? `web-${Array.from(crypto.getRandomValues(new Uint8Array(8)), hex).join('')}`
  sessionStorage.setItem(item, name)
  return name
}

function hex(byte: number): string {
  return byte.toString(16).padStart(2, '0')
}

function connect(): void {
  if (!key) {
    askForKey('')
    return
  }
  connection?.stop()
  signIn.hidden = true
  notice.hidden = true
  fit.fit()
  connection = new Connection(
    { computerId, session, key },
    { onReplay, onOutput, onState, onObstacle, size: () => terminal },
  )
}

function onReplay(text: string): void {
  replaying++
  terminal.reset()
  terminal.write(text, () => replaying--)
}

function onOutput(text: string): void {
  terminal.write(text)
}

function onState(state: 'connecting' | 'open' | 'ended'): void {
  status.dataset['state'] = state
  status.textContent = { connecting: 'Connecting…', open: 'Connected', ended: 'Disconnected' }[state]
  for (const button of [searchOpen, uploadOpen]) button.hidden = state === 'ended' && !signIn.hidden
  if (state !== 'open' || !key) return
  sessionStorage.setItem(KEY_ITEM, key)
  terminal.focus()
  void showName(key)
}

function onObstacle(obstacle: Obstacle): void {
  if (obstacle.kind === 'key') {
    askForKey(obstacle.message)
    return
  }
  element('notice-text', HTMLParagraphElement).textContent = obstacle.message
  noticeAction.textContent = obstacle.action
  noticeAction.hidden = obstacle.action === null
  notice.hidden = false
  if (obstacle.action !== null) noticeAction.focus()
}

function askForKey(problem: string): void {
  key = null
  sessionStorage.removeItem(KEY_ITEM)
  terminal.reset()
  title.textContent = 'Terminal'
  document.title = 'Terminal'
  keyProblem.textContent = problem
  keyInput.value = ''
  status.textContent = ''
  notice.hidden = true
  signIn.hidden = false
  searchOpen.hidden = uploadOpen.hidden = true
  keyInput.focus()
}

async function showName(ownKey: string): Promise<void> {
  const headers = { authorization: `Bearer ${ownKey}` }
  const answer = await fetch(`/v1/computers/${encodeURIComponent(computerId)}`, { headers }).catch(() => null)
  const computer: unknown = answer?.ok ? await answer.json().catch(() => null) : null
  if (key === ownKey && typeof computer === 'object' && computer !== null && 'name' in computer)
    title.textContent = String(computer.name)
}

noticeAction.onclick = connect
element('key-form', HTMLFormElement).onsubmit = (event) => {
  event.preventDefault()
  key = keyInput.value.trim()
  connect()
}
addEventListener('online', () => connection?.hurry())

const holdsFiles = (event: DragEvent): boolean => event.dataTransfer?.types.includes('Files') ?? false
document.addEventListener('dragover', (event) => {
  if (!holdsFiles(event)) return
  event.preventDefault()
  drop.hidden = key === null
})
document.addEventListener('dragleave', (event) => {
  // Null: it has left the window, not only an element.
  if (event.relatedTarget === null) drop.hidden = true
})
document.addEventListener('drop', (event) => {
  if (!holdsFiles(event)) return
  event.preventDefault()
  drop.hidden = true
  if (key === null) return
  for (const item of event.dataTransfer?.items ?? []) {
    if (item.webkitGetAsEntry()?.isDirectory) uploads.refuse(`${item.getAsFile()?.name}: folders cannot be uploaded`)
    else uploads.add([item.getAsFile()].filter((file) => file !== null))
  }
})
uploadOpen.onclick = () => uploadFiles.click()
uploadFiles.onchange = () => {
  uploads.add(uploadFiles.files ?? [])
  uploadFiles.value = ''
  terminal.focus()
}

connect()
