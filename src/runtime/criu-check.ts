import type { RuntimeFiles } from './bundle.ts'
import { HOST_ENVIRONMENT } from './command.ts'

/** Asks criu whether it can work on this kernel. Returns its complaint, or null when it has none. Needs root. */
export async function checkCriu(files: RuntimeFiles): Promise<string | null> {
  const child = Bun.spawn([files.loader, '--library-path', files.libraryPath, files.criu, 'check'], {
    stdin: 'ignore',
    stdout: 'pipe',
    stderr: 'pipe',
    env: HOST_ENVIRONMENT,
  })
  const [stdout, stderr, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  if (code === 0) return null
  const lines = `${stderr}\n${stdout}`.split('\n').filter((line) => line.trim() !== '')
  return lines.find((line) => line.includes('Error'))?.trim() ?? lines[0] ?? `exit code ${code}`
}
