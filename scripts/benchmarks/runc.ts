/** The peer: one container of runc, taken to disk and back by `runc checkpoint` and `runc restore`. */
import { chmodSync, cpSync, existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { z } from 'zod'

/** What scripts/vendor-criu took orb's CRIU from: the peer gets it as Debian made it. */
const PACKAGES = process.env['ORB_CRIU_DEBS'] ?? join(import.meta.dir, '../../.cache/criu')
const AGENT = '/agent.js'
const USR_LINKS = ['bin', 'sbin', 'lib', 'lib32', 'lib64']

/** What of `runc spec` is changed here. */
const Spec = z.looseObject({
  process: z.looseObject({ terminal: z.boolean(), args: z.array(z.string()), env: z.array(z.string()) }),
  root: z.looseObject({ path: z.string(), readonly: z.boolean() }),
  mounts: z.array(z.looseObject({ destination: z.string() })),
  linux: z.looseObject({ namespaces: z.array(z.looseObject({ type: z.string() })) }),
})

export class RuncContainer {
  private readonly image: string
  private readonly bundle: string
  private readonly path: string

  /**
   * @param name of the container, its network namespace and its veth
   * @param subnet such as 10.201.0.0/16, of which the first /24 is taken: the host is .1, the container .2
   * @param networkLock how CRIU keeps packets away meanwhile; iptables is its default, nftables is faster
   */
  constructor(
    readonly name: string,
    private readonly dir: string,
    subnet: string,
    private readonly networkLock: 'iptables' | 'nftables',
  ) {
    const prefix = subnet.replace(/\.0\/16$/, '')
    this.host = `${prefix}.1`
    this.address = `${prefix}.2`
    this.image = join(dir, 'image')
    this.bundle = join(dir, 'bundle')
    this.path = `${join(dir, 'bin')}:${process.env['PATH'] ?? ''}`
  }

  readonly host: string
  private readonly address: string

  /** The namespace comes before whoever listens on its host side. */
  makeNetwork(): void {
    run(['ip', 'netns', 'add', this.name])
    run(['ip', 'link', 'add', this.name, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', this.name])
    run(['ip', 'addr', 'add', `${this.host}/24`, 'dev', this.name])
    run(['ip', 'link', 'set', this.name, 'up'])
    for (const command of [`addr add ${this.address}/24 dev eth0`, 'link set eth0 up', 'link set lo up']) {
      run(['ip', '-n', this.name, ...command.split(' ')])
    }
  }

  /** Starts the agent with `url` to ask. */
  start(agentFile: string, url: string): void {
    const root = join(this.bundle, 'rootfs')
    for (const name of ['usr', 'etc', 'tmp', 'proc', 'dev', 'sys']) mkdirSync(join(root, name), { recursive: true })
    for (const name of USR_LINKS) if (existsSync(join('/usr', name))) symlinkSync(`usr/${name}`, join(root, name))
    cpSync(agentFile, join(root, AGENT))
    writeFileSync(join(root, 'package.json'), '{"type":"module"}')
    this.wrapCriu()
    run(['runc', 'spec', '--bundle', this.bundle])
    const file = join(this.bundle, 'config.json')
    const spec = Spec.parse(JSON.parse(readFileSync(file, 'utf8')))
    spec.process.terminal = false
    // A descriptor that leads out of the container could not be checkpointed: its output stays inside.
    spec.process.args = ['/bin/sh', '-c', `exec node ${AGENT} ${url} </dev/null >/out 2>&1`]
    spec.process.env = ['PATH=/usr/local/bin:/usr/bin:/bin', 'UV_USE_IO_URING=0', 'HOME=/']
    spec.root.readonly = false
    spec.mounts = spec.mounts.filter(({ destination }) => destination !== '/sys/fs/cgroup')
    spec.mounts.push({ destination: '/usr', type: 'bind', source: '/usr', options: ['rbind', 'ro'] })
    spec.linux.namespaces = spec.linux.namespaces.map((namespace) =>
      namespace.type === 'network' ? { type: 'network', path: `/run/netns/${this.name}` } : namespace,
    )
    writeFileSync(join(this.dir, 'criu.conf'), `network-lock ${this.networkLock}\n`)
    spec['annotations'] = { 'org.criu.config': join(this.dir, 'criu.conf') }
    writeFileSync(file, JSON.stringify(spec))
    this.runc(['run', '--detach', '--bundle', this.bundle, this.name])
  }

  async checkpoint(): Promise<void> {
    await rm(this.image, { recursive: true, force: true })
    this.runc([
      'checkpoint',
      '--image-path',
      this.image,
      '--work-path',
      join(this.dir, 'dump'),
      '--tcp-established',
      this.name,
    ])
  }

  /** Returns when runc says that the container runs. */
  restore(): void {
    const work = join(this.dir, 'restore')
    this.runc([
      'restore',
      '--detach',
      '--bundle',
      this.bundle,
      '--image-path',
      this.image,
      '--work-path',
      work,
      '--tcp-established',
      this.name,
    ])
  }

  /** Takes away all of it; what is not there is no error. */
  remove(): void {
    quietly(['runc', 'delete', '--force', this.name])
    quietly(['ip', 'link', 'delete', this.name])
    if (existsSync(`/run/netns/${this.name}`)) quietly(['ip', 'netns', 'delete', this.name])
  }

  /** runc looks for criu on PATH: it gets the version that orb carries, with the libraries that come with it. */
  private wrapCriu(): void {
    const wrapper = join(this.dir, 'bin/criu')
    const root = join(this.dir, 'packages')
    mkdirSync(dirname(wrapper), { recursive: true })
    for (const deb of new Bun.Glob('*.deb').scanSync(PACKAGES)) run(['dpkg-deb', '-x', join(PACKAGES, deb), root])
    const found = (pattern: string) => [...new Bun.Glob(pattern).scanSync({ cwd: root, absolute: true })]
    const [criu] = found('usr/sbin/criu')
    const [loader] = found('usr/lib*/**/ld-linux*.so.*')
    if (!criu || !loader) throw new Error(`the packages in ${PACKAGES} are not those of criu`)
    const libraries = [...new Set(found('usr/lib/**/*.so.*').map(dirname))].join(':')
    writeFileSync(wrapper, `#!/bin/sh\nexec ${loader} --library-path ${libraries} ${criu} "$@"\n`)
    chmodSync(wrapper, 0o755)
  }

  private runc(args: string[]): void {
    const done = Bun.spawnSync(['runc', ...args], {
      env: { ...process.env, PATH: this.path },
      stdin: 'ignore',
      stdout: 'ignore',
      stderr: 'pipe',
    })
    if (done.exitCode === 0) return
    throw new Error(`runc ${args[0]} failed: ${done.stderr.toString().trim()}\n${this.criuLog(args[0])}`)
  }

  private criuLog(command: string | undefined): string {
    const file = command === 'checkpoint' ? join(this.dir, 'dump/dump.log') : join(this.dir, 'restore/restore.log')
    return existsSync(file)
      ? readFileSync(file, 'utf8')
          .split('\n')
          .filter((line) => line.includes('Error'))
          .join('\n')
      : ''
  }
}

export const runcVersion = (): string => run(['runc', '--version']).split('\n')[0]?.replace('runc version ', '') ?? ''

function run(command: string[]): string {
  const done = Bun.spawnSync(command, { stderr: 'pipe' })
  if (done.exitCode !== 0) throw new Error(`${command.join(' ')}: ${done.stderr.toString().trim()}`)
  return done.stdout.toString()
}

const quietly = (command: string[]): void => void Bun.spawnSync(command, { stdout: 'ignore', stderr: 'ignore' })
