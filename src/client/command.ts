export interface Command {
  name: string
  /** One line of `orb help`. */
  summary: string
  /** What `orb help <command>` prints: its forms, options, examples. */
  help: string
  /** @returns the exit code */
  run(argv: string[]): Promise<number>
}

/** Of every command's help. */
export const COMMON_HELP = `  --url URL       the server          [ORB_URL, else that of the last login, else http://127.0.0.1:8787]
  --json          print the answer as JSON
A COMPUTER is named by its id, its short id or its name. The key is that of the last login there, or ORB_API_KEY.`
