export interface Size {
  cols: number
  rows: number
}

/** What keeps a terminal from being open, for the user to decide about. */
export type Obstacle = { kind: 'key'; message: string } | { kind: 'ended'; message: string; action: string | null }

export interface ConnectionEvents {
  /** What the session showed before; the screen is to be cleared for it. */
  onReplay(text: string): void
  onOutput(text: string): void
  onState(state: 'connecting' | 'open' | 'ended'): void
  onObstacle(obstacle: Obstacle): void
  size(): Size
}

export interface Target {
  computerId: string
  session: string
  key: string
}

/** Orb Cloud contract §14.2; 4409 is orb's own. */
const CLOSE = { exit: 1000, revoked: 4401, deleted: 4404, takenOver: 4409 }
const FIRST_RETRY_MS = 250
const LONGEST_RETRY_MS = 8_000

/** A terminal's WebSocket, opened again whenever it breaks. */
export class Connection {
  private socket: WebSocket | null = null
  private retry: ReturnType<typeof setTimeout> | undefined
  private pauseMs = FIRST_RETRY_MS
  private over = false

  constructor(
    private readonly target: Target,
    private readonly events: ConnectionEvents,
  ) {
    this.connect()
  }

  type(text: string): void {
    // As bytes: what is typed is never taken for a change of size.
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(new TextEncoder().encode(text))
  }

  typeBytes(bytes: Uint8Array<ArrayBuffer>): void {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(bytes)
  }

  resize({ cols, rows }: Size): void {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type: 'resize', cols, rows }))
  }

  /** Does not wait for the next try: the network is back. */
  hurry(): void {
    if (this.retry === undefined) return
    this.pauseMs = FIRST_RETRY_MS
    this.connect()
  }

  stop(): void {
    this.over = true
    clearTimeout(this.retry)
    this.socket?.close()
  }

  private connect(): void {
    clearTimeout(this.retry)
    this.retry = undefined
    this.events.onState('connecting')
    const { key, session } = this.target
    const { cols, rows } = this.events.size()
    const query = new URLSearchParams({ session, cols: String(cols), rows: String(rows), key })
    const socket = new WebSocket(`${location.origin.replace(/^http/, 'ws')}${this.path}?${query}`)
    this.socket = socket
    let opened = false
    let replayed = false
    socket.onopen = () => {
      opened = true
      this.pauseMs = FIRST_RETRY_MS
      this.events.onState('open')
      this.resize(this.events.size())
    }
    socket.onmessage = ({ data }) => {
      if (replayed) this.events.onOutput(String(data))
      else this.events.onReplay(String(data))
      replayed = true
    }
    socket.onclose = ({ code, reason }) => void this.closed(opened, code, reason)
  }

  private get path(): string {
    return `/v1/computers/${encodeURIComponent(this.target.computerId)}/terminal`
  }

  private async closed(opened: boolean, code: number, reason: string): Promise<void> {
    if (this.over) return
    this.socket = null
    const obstacle = opened ? obstacleOf(code, reason) : await this.refusal()
    if (this.over) return
    if (obstacle) {
      this.over = true
      this.events.onState('ended')
      this.events.onObstacle(obstacle)
      return
    }
    this.events.onState('connecting')
    this.retry = setTimeout(() => this.connect(), this.pauseMs)
    this.pauseMs = Math.min(this.pauseMs * 2, LONGEST_RETRY_MS)
  }

  /** Why the WebSocket does not open, which the browser keeps to itself; null: it is worth another try. */
  private async refusal(): Promise<Obstacle | null> {
    const query = new URLSearchParams({ session: this.target.session })
    const headers = { authorization: `Bearer ${this.target.key}` }
    const answer = await fetch(`${this.path}?${query}`, { headers }).catch(() => null)
    switch (answer?.status) {
      case 401:
        return { kind: 'key', message: 'This key is not valid.' }
      case 403:
        return { kind: 'key', message: 'This key may not open terminals.' }
      case 404:
        return { kind: 'key', message: 'There is no such computer, or it is not one of this key.' }
      case 429:
        return { kind: 'ended', message: 'Too many terminals are open in this computer.', action: 'Try again' }
      default:
        return null
    }
  }
}

function obstacleOf(code: number, reason: string): Obstacle | null {
  const exit = /^exit:(\d+)$/.exec(reason)?.[1]
  switch (code) {
    case CLOSE.exit:
      return { kind: 'ended', message: `The shell has ended${exit ? `, exit code ${exit}` : ''}.`, action: 'New shell' }
    case CLOSE.revoked:
      return { kind: 'key', message: 'The key was revoked.' }
    case CLOSE.deleted:
      return { kind: 'ended', message: 'The computer was deleted.', action: null }
    case CLOSE.takenOver:
      return { kind: 'ended', message: 'This terminal is open in another window.', action: 'Use it here' }
    default:
      return null
  }
}
