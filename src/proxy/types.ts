/** Which LLM a computer talks to (Orb Cloud contract §11.1). */
export interface LlmSettings {
  /** `llm.base_url` or `backend.api_base`; null: by provider. */
  baseUrl: string | null
  provider: 'anthropic' | 'openai' | 'google' | 'multi' | 'custom'
}

/** What the proxy knows of the computers; services implement it. */
export interface LlmDirectory {
  /**
   * The computer behind a connection, by the address and port of its peer. Called once per connection, when it is
   * accepted. null: the connection is closed without an answer.
   */
  identify(peer: { address: string; port: number }): LlmPeer | null
}

export interface LlmPeer {
  computerId: string
  /** Deployed (else stored) settings. Read anew at each request. */
  llm: LlmSettings
  /**
   * The connection is from the agent's own process tree. False for exec, cron, terminal and builds: their calls are
   * just forwarded, and of the call only `begin` and `end` are used. Read anew at each request.
   */
  agentTree: boolean
  /** A call is open: the head of its request was accepted. Must not throw. */
  begin(): LlmCall
  /** The call that was begun is no replay of an earlier one. At most once per call, before its end. Must not throw. */
  ownCall(): void
}

/**
 * - `delivered`: the answer of the upstream is with the agent, whatever its status
 * - `client_closed`: the agent went away, or broke HTTP, without having slept; nothing is kept
 * - `upstream_error`: an error of orb itself was the answer, or the answer broke off in the middle
 * - `replayed`: answered from an earlier call that was kept or still running; not a call of its own
 * - `kept`: the connection broke in or after a sleep; the call runs on and its answer waits for the same request
 */
export type CallOutcome = 'delivered' | 'client_closed' | 'upstream_error' | 'replayed' | 'kept'

export interface LlmCall {
  /** The whole request is with the upstream and no byte of the response's body has come. At most once per call. */
  waiting(): void
  /** The head of the response is there and nothing behind it yet: a wake is near. At most once per call. */
  answering(): void
  /**
   * The first byte of the response's body, its end or a failure is there; nothing was written to the agent yet. At most
   * once per call. Undefined: the agent runs now. Else resolves when it runs and may be written to, and rejects with
   * OrbError when it can't be woken: the answer is then kept for a replay and the connection given up.
   */
  wake(): Promise<void> | undefined
  /** Asked before each write after `wake`: may I write now? Same contract. */
  writable(): Promise<void> | undefined
  /** The agent was frozen or checkpointed at some time since `begin`. */
  slept(): boolean
  /** The call is over for this connection. Exactly once per call, and nothing of the call is called after it. */
  end(outcome: CallOutcome): void
}
