import type { Terminal } from '../../runtime/terminal.ts'
import type { TerminalClient, TerminalSize } from '../types.ts'
import { Scrollback } from './scrollback.ts'

/** What the client's WebSocket is closed with (Orb Cloud contract §14.2). */
export interface Ending {
  code: number
  reason: string
}

export const REVOKED: Ending = { code: 4401, reason: 'the key was revoked' }
export const DELETED: Ending = { code: 4404, reason: 'the computer was deleted' }
export const RESTARTED: Ending = { code: 1012, reason: 'the computer was restarted' }
const TAKEN_OVER: Ending = { code: 4409, reason: 'another client has taken over' }
const NOT_READ: Ending = { code: 1009, reason: 'more input than the programs read' }
const NO_SHELL: Ending = { code: 1011, reason: 'the shell could not be started' }
const FORGOTTEN: Ending = { code: 1001, reason: 'nobody came back' }
const exited = (code: number): Ending => ({ code: 1000, reason: `exit:${code}` })

/** orb-init's own, where no shell was started. */
const EXIT_SETUP = 125
/** Limits of the Orb Cloud contract §14.2. */
const SCROLLBACK_BYTES = 256 * 1024
const DETACHED_MS = 10 * 60_000
/** Input that the programs have not read yet: two frames of the largest size. */
const MAX_WAITING_BYTES = 2 * 1024 * 1024

export type Shell = Pick<Terminal, 'ended' | 'problem' | 'waiting' | 'write' | 'resize' | 'pause' | 'resume' | 'hangUp'>

export interface SessionOptions {
  /** Null: the shell ends with its client. */
  name: string | null
  keyId: string
  /** Whether the key is still good. */
  isGood(keyId: string): boolean
  /** Takes note that somebody works in the computer, until the returned function is called. */
  lease(): () => void
  onEnd(): void
  /** A shell could not be started, and why. */
  onProblem(problem: string): void
}

/** A shell on a terminal, and the client that sees it: one at a time, and for a named session now and then none. */
export class Session {
  /** Of who used it last. */
  keyId: string
  private shell: Shell | null = null
  private client: TerminalClient | null = null
  private wasSeen = false
  private ending: Ending | null = null
  private release: (() => void) | null = null
  private forgetting: Timer | undefined
  // Bytes that are no UTF-8 become U+FFFD; a character that is not complete yet is kept until it is.
  private readonly decoder = new TextDecoder('utf-8', { ignoreBOM: true })
  private readonly scrollback = new Scrollback(SCROLLBACK_BYTES)

  constructor(private readonly options: SessionOptions) {
    this.keyId = options.keyId
  }

  /** What the shell's terminal shows. */
  output(bytes: Uint8Array): void {
    this.show(this.decoder.decode(bytes, { stream: true }))
  }

  started(shell: Shell): void {
    this.shell = shell
    if (this.ending) shell.hangUp()
    shell.ended.then(
      async (code) => {
        this.show(this.decoder.decode())
        const problem = code === EXIT_SETUP ? await shell.problem : ''
        if (problem !== '') this.options.onProblem(problem)
        this.end(problem === '' ? exited(code) : NO_SHELL)
      },
      (error) => {
        this.options.onProblem(String(error))
        this.end(NO_SHELL)
      },
    )
  }

  /** From now on this client has it. In a named session the first thing it gets is what was shown before, maybe nothing. */
  attach(client: TerminalClient, keyId: string, size: TerminalSize): void {
    const ending = this.ending ?? (this.options.isGood(keyId) ? null : REVOKED)
    if (ending) {
      client.close(ending.code, ending.reason)
      this.abandon()
      return
    }
    clearTimeout(this.forgetting)
    const former = this.client
    this.client = client
    this.keyId = keyId
    this.wasSeen = true
    former?.close(TAKEN_OVER.code, TAKEN_OVER.reason)
    this.release ??= this.options.lease()
    this.shell?.resize(size)
    this.shell?.resume()
    const before = this.scrollback.text()
    if (this.options.name === null) this.scrollback.clear()
    if ((this.options.name !== null || before !== '') && !client.show(before)) this.shell?.pause()
  }

  type(client: TerminalClient, bytes: Uint8Array): void {
    if (client !== this.client || !this.shell) return
    if (this.shell.waiting + bytes.length > MAX_WAITING_BYTES) client.close(NOT_READ.code, NOT_READ.reason)
    else this.shell.write(bytes)
  }

  resize(client: TerminalClient, size: TerminalSize): void {
    if (client === this.client) this.shell?.resize(size)
  }

  drained(client: TerminalClient): void {
    if (client === this.client) this.shell?.resume()
  }

  leave(client: TerminalClient): void {
    if (client !== this.client || this.ending) return
    this.client = null
    this.release?.()
    this.release = null
    if (this.options.name === null) {
      this.end(FORGOTTEN)
      return
    }
    this.shell?.resume()
    this.forgetting = setTimeout(() => this.end(FORGOTTEN), DETACHED_MS)
    this.forgetting.unref()
  }

  /** Who wanted to attach does not come. */
  abandon(): void {
    if (!this.wasSeen) this.end(FORGOTTEN)
  }

  end(ending: Ending): void {
    if (this.ending) return
    this.ending = ending
    clearTimeout(this.forgetting)
    this.client?.close(ending.code, ending.reason)
    this.client = null
    this.release?.()
    this.release = null
    this.shell?.hangUp()
    this.options.onEnd()
  }

  private show(text: string): void {
    if (text === '' || this.ending) return
    // Without a name nobody comes back for it.
    if (this.options.name !== null || this.client === null) this.scrollback.add(text)
    if (this.client && !this.client.show(text)) this.shell?.pause()
  }
}
