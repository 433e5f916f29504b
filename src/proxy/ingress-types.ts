/** What the front door knows of computers; services implement it. */
export interface PublicDirectory {
  /** The computer of a label below the base domain, in lower case: a short or a full id. Null: there is none. */
  find(label: string): PublicComputer | null
  /**
   * Whether who connects from this address may reach this host: only computers with an outbound list may not.
   * @param host in lower case, without port and last dot
   */
  mayReach(address: string, host: string): boolean
}

export interface PublicComputer {
  /** Exposed ports, the first is that of the host name. Read anew at each request. */
  readonly ports: readonly number[]
  /**
   * Asked before each write to the agent. Undefined: it runs, write now. Else resolves when it runs; then ask again.
   * Rejects with OrbError `agent_not_running`, `wake_failed` or `no_capacity`.
   */
  wake(): Promise<void> | undefined
  /** It runs, and no transition is near. Wakes nobody. */
  running(): boolean
  /** Calls back once, when it runs next or its tree is gone. Wakes nobody. */
  whenRunning(callback: () => void): void
  /**
   * A socket to one of its programs. To be called while it runs. Its connection is broken off when the agent's tree is
   * taken away.
   */
  socket(port: number, family: 4 | 6): AppSocket
  /** A public request has arrived. */
  begin(): Visit
}

export interface AppSocket {
  /** Begins to connect, or looks how that stands. @throws Error when it failed in another way */
  connect(): 'connected' | 'refused' | 'pending'
  /** Its descriptor, for somebody who closes that himself. */
  adopt(): number
  /** After the adopted descriptor is closed, or instead of adopting it. */
  close(): void
}

/** One public request, or one WebSocket, as activity of the agent. */
export interface Visit {
  /** Bytes of a WebSocket came from outside. */
  touch(): void
  /** The request has become a WebSocket. */
  upgraded(): void
  /** Exactly once. */
  end(): void
}
