/** How a command ended that did not succeed. `stderr` is its own explanation, trimmed. */
export class CommandError extends Error {
  constructor(
    readonly command: string,
    readonly exitCode: number,
    readonly stderr: string,
  ) {
    super(`${command} failed with ${exitCode}${stderr ? `: ${stderr}` : ''}`)
    this.name = 'CommandError'
  }
}

/**
 * Runs a host tool and returns its standard output. Its environment is empty but for PATH and the C locale, so that
 * neither a setting nor a language of the caller changes what it does.
 * @param signal kills it
 * @throws CommandError when it exits non-zero
 */
export async function run(argv: string[], stdin?: string, signal?: AbortSignal): Promise<string> {
  const child = Bun.spawn(argv, {
    stdin: stdin === undefined ? 'ignore' : Buffer.from(stdin),
    stdout: 'pipe',
    stderr: 'pipe',
    env: HOST_ENVIRONMENT,
    signal,
  })
  const [stdout, stderr, exitCode] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  if (exitCode !== 0) throw new CommandError(argv.slice(0, 3).join(' '), exitCode, stderr.trim())
  return stdout
}

export const HOST_ENVIRONMENT = { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C' }
