import { afterEach, describe, expect, test } from 'bun:test'
import { randomUUID } from 'node:crypto'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { Cgroups, type Leaf, type Limits } from './cgroup.ts'

const MB = 1024 * 1024
const LIMITS: Limits = { softBytes: 64 * MB, hardBytes: 192 * MB, pids: 77, cpuQuotaUs: 190_000 }
const WAIT_MS = 5000

async function until(done: () => boolean): Promise<void> {
  const deadline = performance.now() + WAIT_MS
  while (!done()) {
    if (performance.now() > deadline) throw new Error('what the test waits for did not come')
    await Bun.sleep(2)
  }
}

describe('on a host with nothing but v2', () => {
  const made: string[] = []
  afterEach(() => {
    for (const dir of made.splice(0)) rmSync(dir, { recursive: true })
  })

  const CONTROLLERS = 'cpuset cpu io memory hugetlb pids rdma misc\n'
  const NAME = 'orb-12345678'

  /** A directory that looks like a v2 mount, and what reads a file of a computer's cgroup in it. */
  function tree(controllers = CONTROLLERS) {
    const root = mkdtempSync(join(tmpdir(), 'orb-cgroup-'))
    made.push(root)
    put(root, 'cgroup.controllers', controllers)
    const read = (path: string) => readFileSync(join(root, 'orb', path), 'utf8')
    return { root, cgroups: new Cgroups(root, join(root, 'no-v1')), read }
  }

  const put = (root: string, path: string, text = '') => {
    mkdirSync(dirname(join(root, path)), { recursive: true })
    writeFileSync(join(root, path), text)
  }

  test('every limit is in its file, in the kernel’s words', () => {
    const { root, cgroups, read } = tree()
    put(root, `orb/${NAME}/memory.swap.max`, 'max')
    cgroups.create(NAME, LIMITS)
    expect(cgroups.kind).toBe('v2')
    const enabled = '+memory +pids +cpu'
    expect(readFileSync(join(root, 'cgroup.subtree_control'), 'utf8')).toBe(enabled)
    expect(read('cgroup.subtree_control')).toBe(enabled)
    expect(read(`${NAME}/cgroup.subtree_control`)).toBe(enabled)
    expect(read(`${NAME}/memory.low`)).toBe(String(64 * MB))
    // Protection is shared out from above.
    expect(read('memory.low')).toBe('max')
    expect(read(`${NAME}/memory.max`)).toBe(String(192 * MB))
    expect(read(`${NAME}/memory.swap.max`)).toBe('0')
    expect(read(`${NAME}/agent/memory.oom.group`)).toBe('1')
    expect(read(`${NAME}/pids.max`)).toBe('77')
    expect(read(`${NAME}/cpu.max`)).toBe('190000 100000')
    // Processes may be in leaves alone, and these hand nothing on.
    for (const leaf of ['agent', 'init']) {
      expect(existsSync(join(root, 'orb', NAME, leaf, 'cgroup.subtree_control'))).toBe(false)
    }
  })

  test('a kernel without swap accounting does without its limit', () => {
    const { root, cgroups } = tree()
    cgroups.create(NAME, LIMITS)
    expect(existsSync(join(root, 'orb', NAME, 'memory.swap.max'))).toBe(false)
  })

  test('limits are set anew where the computer is there already', () => {
    const { cgroups, read } = tree()
    cgroups.create(NAME, LIMITS)
    cgroups.create(NAME, { ...LIMITS, hardBytes: MB, softBytes: 5, pids: 6, cpuQuotaUs: 7 })
    const names = ['memory.max', 'memory.low', 'pids.max', 'cpu.max']
    expect(names.map((name) => read(`${NAME}/${name}`))).toEqual([String(MB), '5', '6', '7 100000'])
  })

  test('a process joins one file: its leaf’s', () => {
    const { root, cgroups } = tree()
    cgroups.create(NAME, LIMITS)
    for (const leaf of ['init', 'agent', 'exec-1'] as const) {
      expect(cgroups.joinFiles(NAME, leaf)).toEqual([join(root, 'orb', NAME, leaf, 'cgroup.procs')])
    }
    expect(cgroups.commands(NAME, ['exec', 'build'])).toEqual(['exec-1'])
    expect(cgroups.commands(NAME, ['build'])).toEqual([])
  })

  test('figures are the agent’s', async () => {
    const { root, cgroups, read } = tree()
    cgroups.create(NAME, LIMITS)
    const agent = `orb/${NAME}/agent`
    put(root, `${agent}/memory.current`, '4096\n')
    put(root, `orb/${NAME}/memory.current`, '8192\n')
    put(root, `${agent}/memory.events`, 'low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 5\n')
    put(root, `${agent}/cpu.stat`, 'usage_usec 123456\nuser_usec 1\nsystem_usec 2\n')
    put(root, `${agent}/cgroup.procs`, '17\n18\n')
    put(root, `${agent}/cgroup.events`, 'populated 1\nfrozen 0\n')
    expect(cgroups.agentMemory(NAME)).toBe(4096)
    expect(cgroups.oomKills(NAME)).toBe(4)
    expect(cgroups.agentCpuUs(NAME)).toBe(123_456)
    expect(cgroups.processes(NAME, 'agent')).toEqual([17, 18])
    expect([cgroups.isPopulated(NAME, 'agent'), cgroups.isFrozen(NAME)]).toEqual([true, false])
    cgroups.setFrozen(NAME, true)
    expect(read(`${NAME}/agent/cgroup.freeze`)).toBe('1')
    cgroups.setFrozen(NAME, false)
    expect(read(`${NAME}/agent/cgroup.freeze`)).toBe('0')
    cgroups.kill(NAME, 'agent')
    expect(read(`${NAME}/agent/cgroup.kill`)).toBe('1')
    put(root, `orb/${NAME}/memory.reclaim`)
    await cgroups.dropCache(NAME)
    expect(read(`${NAME}/memory.reclaim`)).toBe('8192')
  })

  test('the agent’s memory is pushed out, and only then may it be swapped', async () => {
    const { root, cgroups, read } = tree()
    put(root, `orb/${NAME}/memory.swap.max`, 'max')
    cgroups.create(NAME, LIMITS)
    put(root, `orb/${NAME}/memory.current`, '8192\n')
    put(root, `orb/${NAME}/agent/memory.current`, '4096\n')
    put(root, `orb/${NAME}/agent/memory.swap.current`, '77\n')
    expect(cgroups.canReclaim(NAME)).toBe(false)
    put(root, `orb/${NAME}/memory.reclaim`)
    expect(cgroups.canReclaim(NAME)).toBe(true)
    put(root, `orb/${NAME}/agent/memory.reclaim`)
    const under = cgroups.reclaimAgent(NAME, new AbortController().signal)
    expect(read(`${NAME}/memory.swap.max`)).toBe(String(192 * MB))
    await under
    expect(read(`${NAME}/agent/memory.reclaim`)).toBe('4096')
    expect(read(`${NAME}/memory.swap.max`)).toBe('0')
    // Then the page cache of the whole computer.
    expect(read(`${NAME}/memory.reclaim`)).toBe('8192')
    expect(cgroups.agentSwap(NAME)).toBe(77)
  })

  test('a reclaim that is called off does nothing, and leaves no swap allowed', async () => {
    const { root, cgroups, read } = tree()
    put(root, `orb/${NAME}/memory.swap.max`, 'max')
    cgroups.create(NAME, LIMITS)
    await cgroups.reclaimAgent(NAME, AbortSignal.abort())
    expect(existsSync(join(root, `orb/${NAME}/agent/memory.reclaim`))).toBe(false)
    expect(read(`${NAME}/memory.swap.max`)).toBe('0')
  })

  test('a kernel that searches on when nothing more can go is stopped', async () => {
    const { root, cgroups } = tree()
    cgroups.create(NAME, LIMITS)
    put(root, `orb/${NAME}/memory.current`, '8192\n')
    // A pipe that nobody reads keeps its writer for ever.
    expect(Bun.spawnSync(['mkfifo', join(root, `orb/${NAME}/memory.reclaim`)]).exitCode).toBe(0)
    await cgroups.dropCache(NAME)
  })

  test('a computer without cgroups has nothing, and that is no error', () => {
    const { cgroups } = tree()
    expect(cgroups.processes(NAME, 'agent')).toEqual([])
    expect([cgroups.isPopulated(NAME, 'agent'), cgroups.isFrozen(NAME)]).toEqual([false, false])
    expect([cgroups.agentMemory(NAME), cgroups.agentCpuUs(NAME), cgroups.oomKills(NAME)]).toEqual([0, 0, 0])
    expect(cgroups.commands(NAME, ['exec', 'build'])).toEqual([])
    cgroups.kill(NAME, 'agent')
    expect(cgroups.removeLeaf(NAME, 'agent')).toBe(true)
    expect(cgroups.remove(NAME)).toBe(true)
  })

  test('a host that lacks a controller altogether is refused, by name', () => {
    expect(() => tree('cpu memory\n')).toThrow('pids')
  })
})

/* The real ones of this machine, whatever they are. Needs root. */
describe('on this host', () => {
  const cgroups = Cgroups.detect()
  const children: Bun.Subprocess[] = []
  const names: string[] = []

  afterEach(async () => {
    for (const name of names.splice(0)) {
      if (directories(name).length === 0) continue
      const leaves: Leaf[] = ['agent', 'init', ...cgroups.commands(name, ['exec', 'build'])]
      cgroups.setFrozen(name, false)
      for (const leaf of leaves) cgroups.kill(name, leaf)
      await until(() => cgroups.remove(name))
    }
    for (const child of children.splice(0)) await child.exited
  })

  function create(limits = LIMITS): string {
    if (process.getuid?.() !== 0) throw new Error('this test needs root')
    const name = `orb-${randomUUID().slice(0, 8)}`
    cgroups.create(name, limits)
    names.push(name)
    return name
  }

  /** A shell command that is in the leaf before it runs. */
  function start(name: string, leaf: Leaf, command: string) {
    const joins = cgroups.joinFiles(name, leaf).map((file) => `echo $$ > ${file}`)
    const child = Bun.spawn(['sh', '-c', [...joins, `{ ${command}; }`].join(' && ')], {
      stdout: 'pipe',
      stderr: 'ignore',
    })
    children.push(child)
    return child
  }

  /** The file of a controller in a computer's directory, in whichever hierarchy has it. */
  function value(name: string, v2File: string, v1File: string): string {
    const controller = v1File.split('.')[0] ?? ''
    const v2 = ['/sys/fs/cgroup/orb', '/sys/fs/cgroup/unified/orb'].map((dir) => join(dir, name, v2File))
    const file = [...v2, join('/sys/fs/cgroup', controller, 'orb', name, v1File)].find((path) => existsSync(path))
    if (!file) throw new Error(`no hierarchy has ${v2File} or ${v1File} of ${name}`)
    return readFileSync(file, 'utf8').trim()
  }

  const directories = (name: string): string[] =>
    ['', 'unified', ...readdirSync('/sys/fs/cgroup')]
      .map((dir) => join('/sys/fs/cgroup', dir, 'orb', name))
      .filter(existsSync)

  test('the limits are in force, and follow a change in both directions', () => {
    const name = create()
    const hard = () => value(name, 'memory.max', 'memory.limit_in_bytes')
    expect(hard()).toBe(String(192 * MB))
    expect(value(name, 'memory.low', 'memory.soft_limit_in_bytes')).toBe(String(64 * MB))
    expect(value(name, 'pids.max', 'pids.max')).toBe('77')
    expect(value(name, 'cpu.max', 'cpu.cfs_quota_us').split(' ')[0]).toBe('190000')
    for (const hardBytes of [512 * MB, 128 * MB]) {
      cgroups.create(name, { ...LIMITS, hardBytes })
      expect(hard()).toBe(String(hardBytes))
    }
  })

  test('a process joins all of its leaf’s groups and nothing of another leaf', async () => {
    const name = create()
    const child = start(name, 'exec-a', 'cat /proc/self/cgroup; sleep 60')
    await until(() => cgroups.isPopulated(name, 'exec-a'))
    const seen = await new Response(child.stdout.pipeThrough(upTo('0::'))).text()
    expect(seen).toContain(`0::/orb/${name}/exec-a`)
    expect(seen.split('\n').filter((line) => `${line}/`.includes(`/orb/${name}/`)).length).toBe(
      cgroups.joinFiles(name, 'exec-a').length,
    )
    expect(seen).not.toContain(`${name}/agent`)
    expect(cgroups.processes(name, 'exec-a')).toContain(child.pid)
    expect(cgroups.processes(name, 'agent')).toEqual([])
    expect(cgroups.commands(name, ['exec', 'build'])).toEqual(['exec-a'])
    expect(cgroups.commands(name, ['build'])).toEqual([])
  })

  test('frozen: stopped where it is, goes on when thawed; killed while frozen, it ends', async () => {
    const name = create()
    const child = start(name, 'agent', 'while :; do :; done')
    await until(() => cgroups.agentCpuUs(name) > 0)
    cgroups.setFrozen(name, true)
    await until(() => cgroups.isFrozen(name))
    const [before, from] = [cgroups.agentCpuUs(name), performance.now()]
    await until(() => performance.now() - from > 50)
    expect(cgroups.agentCpuUs(name)).toBe(before)
    cgroups.setFrozen(name, false)
    await until(() => cgroups.agentCpuUs(name) > before)
    expect(cgroups.isFrozen(name)).toBe(false)
    cgroups.setFrozen(name, true)
    await until(() => cgroups.isFrozen(name))
    cgroups.kill(name, 'agent')
    expect(await child.exited).toBe(137)
  })

  test('whoever watches hears of the freeze and of the end', async () => {
    const name = create()
    const seen: string[] = []
    const watcher = cgroups.watch(name, () => {
      seen.push(!cgroups.isPopulated(name, 'agent') ? 'ended' : cgroups.isFrozen(name) ? 'frozen' : 'running')
    })
    try {
      start(name, 'agent', 'sleep 60')
      await until(() => seen.includes('running'))
      cgroups.setFrozen(name, true)
      await until(() => seen.includes('frozen'))
      cgroups.kill(name, 'agent')
      await until(() => seen.includes('ended'))
    } finally {
      watcher.close()
    }
  })

  test('a kill ends everything in the leaf, forks included, and nothing beside it', async () => {
    const name = create()
    const agent = start(name, 'agent', '(sleep 60 & sleep 60 & wait) & setsid sleep 60')
    const beside = start(name, 'exec-b', 'exec sleep 60')
    await until(() => cgroups.processes(name, 'agent').length >= 4 && cgroups.isPopulated(name, 'exec-b'))
    cgroups.kill(name, 'agent')
    await until(() => !cgroups.isPopulated(name, 'agent'))
    await agent.exited
    expect(cgroups.processes(name, 'exec-b')).toEqual([beside.pid])
  })

  test('the limit on processes holds for the whole computer', async () => {
    const name = create({ ...LIMITS, pids: 6 })
    const child = start(name, 'exec-c', 'for i in 1 2 3 4 5 6 7 8; do sleep 60 2>/dev/null & done 2>/dev/null; wait')
    expect(await child.exited).not.toBe(0)
    const count = cgroups.processes(name, 'exec-c').length
    expect([5, 6]).toContain(count)
  })

  test('memory beyond the hard limit is not to be had, and each kill is counted', async () => {
    const name = create({ ...LIMITS, softBytes: 8 * MB, hardBytes: 16 * MB })
    expect(cgroups.oomKills(name)).toBe(0)
    const child = start(name, 'agent', 'exec tail /dev/zero')
    expect(await child.exited).toBe(137)
    expect(cgroups.oomKills(name)).toBe(1)
  })

  test('memory is charged to the agent, and its page cache can be given back', async () => {
    const name = create()
    const file = join(mkdtempSync(join(tmpdir(), 'orb-cgroup-')), 'file')
    try {
      writeFileSync(file, new Uint8Array(32 * MB))
      Bun.spawnSync(['sh', '-c', `sync ${file} && dd if=${file} iflag=nocache count=0 status=none`])
      expect(await start(name, 'agent', `cat ${file} > /dev/null`).exited).toBe(0)
      expect(cgroups.agentMemory(name)).toBeGreaterThan(16 * MB)
      await cgroups.dropCache(name)
      expect(cgroups.agentMemory(name)).toBeLessThan(4 * MB)
    } finally {
      rmSync(dirname(file), { recursive: true })
    }
  })

  test('the number of the agent’s cgroup is its directory’s inode', () => {
    const name = create()
    expect(cgroups.agentId(name)).toBe(statSync(cgroups.freezerDir(name), { bigint: true }).ino)
    expect(cgroups.agentId(name)).not.toBe(cgroups.agentId(create()))
  })

  test('leaves of commands that have ended are swept, others stay', async () => {
    const name = create()
    await start(name, 'exec-e', 'true').exited
    start(name, 'build-f', 'exec sleep 60')
    await until(() => cgroups.isPopulated(name, 'build-f') && !cgroups.isPopulated(name, 'exec-e'))
    expect(cgroups.commands(name, ['exec', 'build']).toSorted()).toEqual(['build-f', 'exec-e'])
    cgroups.sweepCommands(name, new Set())
    expect(cgroups.commands(name, ['exec', 'build'])).toEqual(['build-f'])
  })

  test('nothing is removed while processes are there, everything afterwards', async () => {
    const name = create()
    start(name, 'exec-d', 'exec sleep 60')
    await until(() => cgroups.isPopulated(name, 'exec-d'))
    expect(cgroups.removeLeaf(name, 'exec-d')).toBe(false)
    expect(cgroups.remove(name)).toBe(false)
    cgroups.kill(name, 'exec-d')
    await until(() => cgroups.remove(name))
    expect(directories(name)).toEqual([])
  })
})

/** Ends a stream with the chunk that brings `text`. */
function upTo(text: string): TransformStream<Uint8Array, Uint8Array> {
  let seen = ''
  return new TransformStream({
    transform(chunk, controller) {
      controller.enqueue(chunk)
      seen += Buffer.from(chunk).toString()
      if (seen.includes(text)) controller.terminate()
    },
  })
}
