/** Exit codes of the commands; `exec` and `ssh` pass on those of what they ran, and end with EXIT_OWN_FAILURE for their own, as ssh does. */
export const EXIT_FAILURE = 1
export const EXIT_USAGE = 2
export const EXIT_OWN_FAILURE = 255

/** What ends a command: the message for the user and the exit code. */
export class CommandFailure extends Error {
  constructor(
    message: string,
    readonly exitCode = EXIT_FAILURE,
  ) {
    super(message)
    this.name = 'CommandFailure'
  }
}

/** The command line makes no sense. */
export class UsageFailure extends CommandFailure {
  constructor(message: string) {
    super(message, EXIT_USAGE)
    this.name = 'UsageFailure'
  }
}

/** What the server refused: its status, its error code and its message. */
export class ApiFailure extends CommandFailure {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    /** The whole of the answer. */
    readonly body: Record<string, unknown> = {},
  ) {
    super(message)
    this.name = 'ApiFailure'
  }
}

/** For commands that pass on the exit code of what they ran: their own failures are told apart by theirs. */
export async function withOwnFailures<T>(run: () => Promise<T>): Promise<T> {
  try {
    return await run()
  } catch (thrown) {
    throw thrown instanceof CommandFailure ? new CommandFailure(thrown.message, EXIT_OWN_FAILURE) : thrown
  }
}
