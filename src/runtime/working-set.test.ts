import { afterEach, expect, test } from 'bun:test'
import { workingSet } from './working-set.ts'

const MIB = 1024 * 1024
/** Half of the pages, each of them apart from the next: 8192 ranges. */
const SCATTERED = `
import mmap, sys
memory = mmap.mmap(-1, ${64 * MIB}, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
for at in range(0, len(memory), 8192): memory[at] = 1
print('ready', flush=True)
sys.stdin.read()
`

let child: Bun.Subprocess<'pipe', 'pipe'> | null = null
afterEach(async () => {
  child?.kill()
  await child?.exited
})

test('of a process whose memory is in many pieces is found in many turns', async () => {
  child = Bun.spawn(['python3', '-c', SCATTERED], { stdin: 'pipe', stdout: 'pipe' })
  await child.stdout.getReader().read()
  let turns = 0
  const timer = setInterval(() => turns++, 0)
  const ranges = await workingSet(child.pid)
  clearInterval(timer)
  expect(ranges.length / 2).toBeGreaterThan(8000)
  expect(turns).toBeGreaterThanOrEqual(4)
})
