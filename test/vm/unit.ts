/** orb as its systemd unit runs it, installed as the README says. For the virtual machine of scripts/vm-test alone. */
import { cpSync, mkdirSync, writeFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { Orb } from '../support/orb.ts'
import { until } from '../support/sweep.ts'

/** Host name of the virtual machine. */
const MACHINE = 'orb-vm'
const ROOT = join(import.meta.dir, '../..')
const READY_TIMEOUT_MS = 120_000
const STOP_TIMEOUT_MS = 60_000
const SHOWN_JOURNAL_LINES = 60

/** Runs a program that must succeed; what it prints. */
export function sh(...command: string[]): string {
  const { exitCode, stdout, stderr } = Bun.spawnSync(command, { env: environment(), stdout: 'pipe', stderr: 'pipe' })
  if (exitCode !== 0) throw new Error(`${command.join(' ')}: exit code ${exitCode}\n${stdout}${stderr}`)
  return stdout.toString()
}

/** Here the executable is Bun, and must be orb in what it starts. */
function environment(): Record<string, string | undefined> {
  const { BUN_BE_BUN: _, ...env } = process.env
  return env
}

/** A property of the unit, as `systemctl show` knows it. */
export const property = (name: string): string =>
  sh('systemctl', 'show', '--property', name, '--value', 'orb.service').trim()

export class UnitOrb extends Orb {
  constructor(env: Record<string, string>) {
    super('/var/lib/orb', { binary: '/usr/local/bin/orb', env: { ORB_LISTEN: '127.0.0.1:8787', ...env } })
    this.url = 'http://127.0.0.1:8787'
  }

  /** The steps of the README. */
  install(): void {
    if (hostname() !== MACHINE)
      throw new Error('these tests install orb on the machine that they run on: use scripts/vm-test')
    cpSync(join(ROOT, 'dist/orb'), '/usr/local/bin/orb')
    cpSync(join(ROOT, 'systemd/orb.service'), '/etc/systemd/system/orb.service')
    const settings = Object.entries(this.env).filter(([name]) => name.startsWith('ORB_'))
    mkdirSync('/etc/orb', { recursive: true })
    writeFileSync('/etc/orb/orb.env', settings.map(([name, value]) => `${name}=${value}\n`).join(''))
    sh('systemctl', 'daemon-reload')
    sh('systemctl', 'enable', 'orb')
  }

  override get log(): string {
    return sh('journalctl', '--unit', 'orb', '--no-pager', '--output', 'cat', '--lines', String(SHOWN_JOURNAL_LINES))
  }

  override get pid(): number {
    return Number(property('MainPID'))
  }

  override async start(): Promise<void> {
    sh('systemctl', 'start', 'orb')
    await this.ready()
  }

  /** Resolves when the API of the orb that runs now answers. */
  async ready(): Promise<void> {
    const answers = () =>
      fetch(`${this.url}/health`).then(
        ({ ok }) => ok,
        () => false,
      )
    if (!(await until(answers, READY_TIMEOUT_MS))) throw new Error(`orb is not ready:\n${this.log}`)
  }

  /** As a crash; systemd starts it again by itself. */
  override async kill9(): Promise<void> {
    const { pid } = this
    if (pid === 0) return
    process.kill(pid, 'SIGKILL')
    if (!(await until(() => this.pid !== pid && this.pid !== 0, READY_TIMEOUT_MS)))
      throw new Error('systemd did not start orb again')
    await this.ready()
  }

  override async terminate(): Promise<number> {
    sh('systemctl', 'stop', 'orb')
    if (!(await until(() => property('ActiveState') !== 'deactivating', STOP_TIMEOUT_MS)))
      throw new Error('orb does not stop')
    return Number(property('ExecMainStatus'))
  }

  override async down(): Promise<void> {
    sh('env', ...Object.entries(this.env).map(([name, value]) => `${name}=${value}`), '/usr/local/bin/orb', 'down')
  }
}
