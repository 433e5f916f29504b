/** Orb Cloud contract §14.2. */
const PING_MS = 25_000
const PONG_MS = 60_000

/** Asks the other side of a connection now and then whether it is there. */
export class KeepAlive {
  private readonly pings: Timer
  private readonly deadline: Timer

  /** @param on `ping` is to be answered by a call of `pong`; `dead`: that has not come for a minute */
  constructor(on: { ping(): void; dead(): void }) {
    this.pings = setInterval(on.ping, PING_MS)
    this.deadline = setTimeout(() => {
      this.stop()
      on.dead()
    }, PONG_MS)
  }

  pong(): void {
    this.deadline.refresh()
  }

  stop(): void {
    clearInterval(this.pings)
    clearTimeout(this.deadline)
  }
}
