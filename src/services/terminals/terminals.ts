import { OrbError } from '../../errors.ts'
import { log } from '../../log.ts'
import type { Runtime } from '../../runtime/runtime.ts'
import type { ComputerRow } from '../../store/types.ts'
import type { Environment } from '../environment.ts'
import type { FindComputer } from '../lookup.ts'
import type { Services, TerminalClient, TerminalVisit } from '../types.ts'
import { DELETED, RESTARTED, REVOKED, Session } from './session.ts'

export interface TerminalsDeps {
  runtime: { openTerminal: (...args: Parameters<Runtime['openTerminal']>) => ReturnType<Runtime['openTerminal']> }
  findComputer: FindComputer
  /** That of the agent, secrets included. */
  environment(computer: ComputerRow): Environment
  /** Whether the key still exists. */
  isGood(keyId: string): boolean
  /** Keeps the computer's agent, if it is awake, from being put to sleep as idle until the returned function is called. */
  lease(computer: ComputerRow): () => void
}

export type Terminals = Services['terminals'] & {
  /** Ends all of a computer, before the computer itself is ended. */
  end(computerId: string, why: 'deleted' | 'restarted'): void
  /** Ends those that were last used with a key. */
  revoked(keyId: string): void
}

/** Of one computer (Orb Cloud contract §14.2). */
const MAX_SESSIONS = 16

const SHELL = ['bash', '-l']
const WORKING_DIRECTORY = '/root'

/** Shells beside the agent for people (Orb Cloud contract §14.2). */
export function createTerminals(deps: TerminalsDeps): Terminals {
  const computers = new Map<string, Set<Opened>>()

  function admit(computer: ComputerRow, name: string | null): Opened | null {
    const sessions = computers.get(computer.id)
    const known = name === null ? undefined : [...(sessions ?? [])].find((one) => one.name === name)
    if (known) return known
    if ((sessions?.size ?? 0) >= MAX_SESSIONS) {
      throw new OrbError('too_many_sessions', `at most ${MAX_SESSIONS} terminals may be open in a computer at once`)
    }
    return null
  }

  function start(computer: ComputerRow, keyId: string, name: string | null, size: { columns: number; rows: number }) {
    const env = shellEnvironment(deps.environment(computer))
    const sessions = computers.get(computer.id) ?? new Set()
    computers.set(computer.id, sessions)
    const session = new Session({
      name,
      keyId,
      isGood: deps.isGood,
      lease: () => deps.lease(computer),
      onEnd() {
        sessions.delete(opened)
        if (sessions.size === 0 && computers.get(computer.id) === sessions) computers.delete(computer.id)
      },
      onProblem: (problem) => log('error', 'a terminal could not be opened', { computer: computer.shortId, problem }),
    })
    const onOutput = (bytes: Uint8Array) => session.output(bytes)
    const ready = deps.runtime
      .openTerminal(computer, { argv: SHELL, env, cwd: WORKING_DIRECTORY, size, onOutput })
      .then((shell) => session.started(shell))
    const opened: Opened = { name, session, ready }
    sessions.add(opened)
    ready.catch(() => session.abandon())
    return opened
  }

  return {
    check: (who, id, name) => void admit(deps.findComputer(who, id), name),

    async open(who, id, { session: name, size }) {
      const computer = deps.findComputer(who, id)
      const { session, ready } = admit(computer, name) ?? start(computer, who.keyId, name, size)
      await ready
      return visitOf(session, who.keyId, size)
    },

    end(computerId, why) {
      const ending = why === 'deleted' ? DELETED : RESTARTED
      for (const { session } of [...(computers.get(computerId) ?? [])]) session.end(ending)
    },

    revoked(keyId) {
      const all = [...computers.values()].flatMap((sessions) => [...sessions])
      for (const { session } of all) if (session.keyId === keyId) session.end(REVOKED)
    },
  }
}

interface Opened {
  name: string | null
  session: Session
  /** Rejects when the computer cannot be brought up. */
  ready: Promise<void>
}

function visitOf(session: Session, keyId: string, size: { columns: number; rows: number }): TerminalVisit {
  let client: TerminalClient | null = null
  return {
    attach(with_) {
      client = with_
      session.attach(client, keyId, size)
    },
    type: (bytes) => client && session.type(client, bytes),
    resize: (newSize) => client && session.resize(client, newSize),
    drained: () => client && session.drained(client),
    leave: () => (client ? session.leave(client) : session.abandon()),
  }
}

/**
 * What a login shell needs beyond the agent's environment. /etc/profile sets a PATH of its own, after which a file of every
 * computer puts back the one that is named here.
 */
const shellEnvironment = (env: Environment): Environment => ({
  TERM: 'xterm-256color',
  COLORTERM: 'truecolor',
  SHELL: '/bin/bash',
  ...env,
  ...(env['PATH'] === undefined ? {} : { ORB_LOGIN_PATH: env['PATH'] }),
})
