import type { Visit } from '../../proxy/ingress-types.ts'

/** What the outside wants of one agent, and when it last did. */
export class Activity {
  /** Public HTTP requests without a complete answer. */
  openRequests = 0
  openWebSockets = 0
  /** Work beside the agent that needs it not to fall asleep by itself meanwhile. */
  private leases = 0
  /** When the last request or lease began or ended, or a WebSocket's byte came from outside, by performance.now(). */
  lastAt = performance.now()

  /** Something is open that keeps the agent from being idle. */
  get inUse(): boolean {
    return this.openRequests + this.openWebSockets + this.leases > 0
  }

  /** Until the returned function is called, the agent is not idle; one that sleeps is not woken. */
  lease(): () => void {
    let released = false
    this.leases++
    this.lastAt = performance.now()
    return () => {
      if (released) return
      released = true
      this.leases--
      this.lastAt = performance.now()
    }
  }

  /** A public request has arrived. @param arrived called for it and for each byte of a WebSocket that it becomes */
  begin(arrived: () => void): Visit {
    let open: 'openRequests' | 'openWebSockets' = 'openRequests'
    const touch = () => {
      this.lastAt = performance.now()
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
        this.lastAt = performance.now()
      },
    }
  }
}
