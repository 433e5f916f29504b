import type { Visit } from '../../proxy/ingress-types.ts'

/** What the outside wants of one agent, and when it last did. */
export class Activity {
  /** Public HTTP requests without a complete answer. */
  openRequests = 0
  openWebSockets = 0
  /** When the last request began or ended, or a WebSocket's byte came from outside: ms since the epoch. */
  lastAt = Date.now()

  /** A public request has arrived. @param arrived called for it and for each byte of a WebSocket that it becomes */
  begin(arrived: () => void): Visit {
    let open: 'openRequests' | 'openWebSockets' = 'openRequests'
    const touch = () => {
      this.lastAt = Date.now()
      arrived()
    }
    this.openRequests++
    touch()
    return {
      touch,
      upgraded: () => {
        this[open]--
        open = 'openWebSockets'
        this[open]++
      },
      end: () => {
        this[open]--
        this.lastAt = Date.now()
      },
    }
  }
}
