import { expect, setDefaultTimeout, test } from 'bun:test'
import { existsSync, mkdirSync, readdirSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { allHeld, shell, startRuntime } from '../../test/support/runtime.ts'
import { newLayerName, onLayer, splitBase } from './layers.ts'

setDefaultTimeout(60_000)

const never = new AbortController().signal

test('a name says base and layer, whatever the base is called', () => {
  const layer = newLayerName()
  for (const base of ['host-0123456789ab', 'tar-0123456789ab', '/srv/a+b', '/srv/x+layer-', '/srv/layer-1']) {
    expect(splitBase(base)).toEqual({ base, layer: null })
    expect(splitBase(onLayer(base, layer))).toEqual({ base, layer })
  }
  expect(newLayerName()).not.toBe(layer)
})

const BUILD = `
  set -e
  mkdir -p /agent/code/dep/old /usr/share/built
  echo hello > /agent/code/dep/old/file
  ln /agent/code/dep/old/file /agent/code/dep/twin
  ln -s /etc /agent/code/link
  echo usr > /usr/share/built/file
  rm /etc/login.defs
  rm -r /etc/alternatives && mkdir /etc/alternatives && touch /etc/alternatives/only
  touch -d @1000000000 /agent/code/dep/old/file
  chown 1234:1234 /agent/code/dep/old/file
`

test('computers on a layer see what the build wrote and deleted, and each writes for itself', async () => {
  await using host = await startRuntime()
  const { runtime } = host
  const built = await host.computer()
  expect(await shell(runtime, built, BUILD)).toMatchObject({ exitCode: 0, stderr: '' })
  const layer = newLayerName()
  await runtime.makeLayer(built, layer, never)

  const base = onLayer(runtime.base.name, layer)
  const [one, two] = [await host.computer({ base }), await host.computer({ base })]
  const look = `
    cat /agent/code/dep/old/file /usr/share/built/file; stat -c '%Y %u %h' /agent/code/dep/old/file
    readlink /agent/code/link; ls /etc/login.defs 2>&1; ls /etc/alternatives; cat /etc/hostname`
  const seen =
    "hello\nusr\n1000000000 1234 2\n/etc\nls: cannot access '/etc/login.defs': No such file or directory\nonly\n"
  for (const computer of [one, two]) {
    expect((await shell(runtime, computer, look)).stdout).toBe(`${seen}orb-${computer.shortId}\n`)
  }
  // Package managers rename directories; without help an overlay refuses that for what lies below it.
  const change = 'cd /agent/code && mv dep/old dep/new && echo more >> dep/twin && echo own > /usr/share/built/file'
  expect(
    await shell(
      runtime,
      one,
      `python3 -c "import os; os.rename('/agent/code/dep', '/agent/code/moved')" && mv /agent/code/moved /agent/code/dep && ${change}`,
    ),
  ).toMatchObject({ exitCode: 0, stderr: '' })
  await runtime.down(one)
  await runtime.up(one)
  expect((await shell(runtime, one, 'cd /agent/code/dep; cat new/file twin /usr/share/built/file; ls')).stdout).toBe(
    'hello\nmore\nhello\nmore\nown\nnew\ntwin\n',
  )
  for (const other of [built, two]) {
    expect((await shell(runtime, other, 'cat /agent/code/dep/old/file /agent/code/dep/twin')).stdout).toBe(
      'hello\nhello\n',
    )
  }
})

const AGENT = `
  const fs = require('node:fs')
  const open = fs.openSync('/agent/code/dep/old/file')
  fs.watch('/agent/code/dep/old', (_, name) => fs.writeFileSync('/agent/data/seen', String(name)))
  fs.watch('/agent/code/dep/old/file', () => fs.writeFileSync('/agent/data/changed', ''))
  setInterval(() => fs.writeFileSync('/agent/data/beat', fs.readFileSync(\`/proc/self/fd/\${open}\`)), 20)
`

test('an agent on a layer sleeps and wakes, also in a computer that was made anew, with files open and watched', async () => {
  await using host = await startRuntime()
  const { runtime } = host
  const built = await host.computer()
  await shell(runtime, built, BUILD)
  const layer = newLayerName()
  await runtime.makeLayer(built, layer, never)
  const computer = await host.computer({ base: onLayer(runtime.base.name, layer) })
  const wait = (file: string) =>
    shell(runtime, computer, `for i in $(seq 500); do [ -e ${file} ] && exit 0; sleep 0.02; done; exit 1`)
  await runtime.spawnAgent(computer, {
    argv: ['node', '-e', AGENT],
    env: { PATH: '/usr/bin:/bin' },
    cwd: '/agent/code',
  })
  expect((await wait('/agent/data/beat')).exitCode).toBe(0)

  const sleep = async (image: string) => {
    await runtime.freezeAgent(computer)
    await runtime.checkpoints.dump(computer, image)
  }
  const wake = async (image: string) => {
    await shell(runtime, computer, 'rm -f /agent/data/*')
    await runtime.checkpoints.restore(computer, image, false, allHeld)
    expect((await wait('/agent/data/beat')).exitCode).toBe(0)
    expect((await shell(runtime, computer, 'cat /agent/data/beat')).stdout).toBe('hello\n')
    await runtime.checkpoints.drained(computer)
    await runtime.checkpoints.removeImage(computer, image)
  }
  await sleep('1')
  await wake('1')
  await shell(runtime, computer, 'touch /agent/code/dep/old/new')
  expect((await wait('/agent/data/seen')).exitCode).toBe(0)

  await sleep('2')
  await runtime.down(computer)
  await runtime.up(computer)
  await wake('2')
  await shell(runtime, computer, 'touch /agent/code/dep/old/newer')
  expect((await wait('/agent/data/seen')).exitCode).toBe(0)

  // The file that it has open is replaced while it sleeps.
  await sleep('3')
  await shell(runtime, computer, 'rm /agent/code/dep/old/file; echo other > /agent/code/dep/old/file')
  await wake('3')
})

/** Holds a file open that its layer has under another name: it moved the directory itself. */
const MOVER = `
  const fs = require('node:fs')
  fs.renameSync('/d2', '/old')
  fs.renameSync('/real', '/d2')
  const open = fs.openSync('/d2/f')
  const bytes = Buffer.alloc(100)
  setInterval(() => {
    fs.writeFileSync('/agent/data/part', bytes.subarray(0, fs.readSync(open, bytes, 0, bytes.length, 0)))
    fs.renameSync('/agent/data/part', '/agent/data/beat')
  }, 20)
`

test('an agent is lent no file of the server that a link in its layer names', async () => {
  await using host = await startRuntime()
  const { runtime } = host
  const secret = join(host.dataDir, 'secret')
  writeFileSync(secret, 'of the server\n')
  const built = await host.computer()
  await shell(runtime, built, `mkdir /real /d2; echo its own > /real/f; ln -s ${secret} /d2/f`)
  const layer = newLayerName()
  await runtime.makeLayer(built, layer, never)
  const computer = await host.computer({ base: onLayer(runtime.base.name, layer) })
  const read = async () => {
    const wait = 'cd /agent/data; rm -f beat; for i in $(seq 500); do [ -e beat ] && cat beat && exit; sleep 0.02; done'
    return (await shell(runtime, computer, wait)).stdout
  }
  await runtime.spawnAgent(computer, {
    argv: ['node', '-e', MOVER],
    env: { PATH: '/usr/bin:/bin' },
    cwd: '/agent/code',
  })
  expect(await read()).toBe('its own\n')
  await runtime.freezeAgent(computer)
  await runtime.checkpoints.dump(computer, '1')
  await runtime.checkpoints.restore(computer, '1', false, allHeld)
  expect(await read()).toBe('its own\n')
  expect(await runtime.checkpoints.drained(computer)).toBe(true)
})

test('a layer that was given up, or that nobody stands on, is gone', async () => {
  await using host = await startRuntime()
  const { runtime } = host
  const layers = join(host.dataDir, 'images', 'layers')
  const built = await host.computer()
  const given = new AbortController()
  given.abort()
  await expect(runtime.makeLayer(built, newLayerName(), given.signal)).rejects.toThrow()
  expect(readdirSync(layers)).toEqual([])

  const [used, unused, half] = [newLayerName(), newLayerName(), newLayerName()]
  await runtime.makeLayer(built, used, never)
  await runtime.makeLayer(built, unused, never)
  mkdirSync(join(layers, `${half}.part`))
  mkdirSync(join(layers, `${used}.part`))
  const known = () => new Set([built.id])
  // A disk that an older database does not know may stand on any layer.
  expect(
    await runtime.removeUnusedLayers(
      () => new Set(),
      () => new Set(),
    ),
  ).toBe(0)
  expect(await runtime.removeUnusedLayers(known, () => new Set([used]))).toBe(2)
  expect(readdirSync(layers).sort()).toEqual([used, `${used}.part`].sort())
  expect(statSync(join(layers, used, 'root')).isDirectory()).toBe(true)
  expect(await runtime.removeUnusedLayers(known, () => new Set())).toBe(2)
  expect(existsSync(join(layers, used))).toBe(false)

  const orphan = { ...built, id: crypto.randomUUID(), shortId: 'ffffffff', base: onLayer(runtime.base.name, used) }
  await expect(runtime.up(orphan)).rejects.toThrow('the layer that the computer stands on is gone')
  await runtime.down(orphan)
  await runtime.erase(orphan)
})
