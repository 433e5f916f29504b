/**
 * Loaded into an orb under test ahead of its own code (`bun --preload`). It counts what orb does to the world — calls of
 * node:fs, system calls, commands, writes to the database — and makes the nth of them fail, or kills orb right before it.
 * Told what to do over HTTP on the socket `FAULTS_SOCKET`; orb's own code is the product's, but for the modules that it
 * imports.
 *
 *     POST /arm {"nth": 12, "mode": "fail" | "kill"}
 *     POST /disarm, /look → {"count": 40, "fired": "fs.writeFileSync /sys/…"}
 */
import { Database } from 'bun:sqlite'
import * as fs from 'node:fs'
import * as promises from 'node:fs/promises'
import { constants } from 'node:os'
import { plugin } from 'bun'
import { z } from 'zod'

type Call = (...args: unknown[]) => unknown

const Order = z.object({ nth: z.int().min(0), mode: z.enum(['fail', 'kill']) })

const state = { armed: false, mode: 'fail', nth: 0, count: 0, fired: '' }

/** They change nothing: to die before one of them is to die before what comes after it. */
const LOOKS = /\.(read|stat|lstat|fstat|statfs|access|realpath|close)/

/** Whether this operation is the one. In the mode `kill` nobody learns. */
function strikes(what: string, args: unknown[]): boolean {
  if (state.mode === 'kill' && LOOKS.test(what)) return false
  if (!state.armed || ++state.count !== state.nth) return false
  state.fired = [what, ...args.filter((arg) => typeof arg === 'string' || typeof arg === 'number')].join(' ')
  if (state.mode === 'kill') process.kill(process.pid, 'SIGKILL')
  return true
}

const failure = (what: string): Error =>
  Object.assign(new Error(`EIO: injected, ${what}`), { code: 'EIO', errno: -constants.errno.EIO, syscall: what })

/** Of node:fs those that answer at once, but for the one that tells a failure as an answer. */
const counts = (name: string, isAsync: boolean): boolean =>
  isAsync ? /^[a-z]/.test(name) : name.endsWith('Sync') && name !== 'existsSync'

function faulty(space: string, module: object, isAsync: boolean): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(module).map(([name, value]) => {
      if (typeof value !== 'function' || !counts(name, isAsync)) return [name, value]
      const what = `${space}.${name}`
      const call: Call = (...args) => {
        if (!strikes(what, args)) return withFaultyHandle(value(...args))
        if (isAsync) return Promise.reject(failure(what))
        throw failure(what)
      }
      return [name, call]
    }),
  )
}

/** What is done through an opened file counts too. */
function withFaultyHandle(result: unknown): unknown {
  if (!(result instanceof Promise)) return result
  return result.then((value: unknown) => {
    if (typeof value !== 'object' || value === null || value.constructor.name !== 'FileHandle') return value
    return new Proxy(value, {
      get(target, name) {
        const member: unknown = Reflect.get(target, name, target)
        if (typeof member !== 'function') return member
        return (...args: unknown[]) => {
          const what = `FileHandle.${String(name)}`
          if (name !== 'close' && strikes(what, args)) return Promise.reject(failure(what))
          return member.apply(target, args)
        }
      },
    })
  })
}

class FaultyDatabase extends Database {
  // biome-ignore lint/suspicious/noExplicitAny: as its parent declares it
  override query(sql: string): any {
    const statement = super.query(sql)
    if (!/^\s*(INSERT|UPDATE|DELETE)/i.test(sql)) return statement
    return new Proxy(statement, {
      get(target, name) {
        const member: unknown = Reflect.get(target, name, target)
        if (typeof member !== 'function') return member
        return (...args: unknown[]) => {
          if (strikes('database', [sql.trim().split('\n')[0]])) throw failure('database')
          return member.apply(target, args)
        }
      },
    })
  }
}

const spawn = Bun.spawn
const MISSING = '/nonexistent/command'
Reflect.set(Bun, 'spawn', (command: string[], options: object) => {
  const words = command.filter((word) => !word.startsWith('/')).slice(0, 3)
  if (strikes('no process for', words)) return spawn([MISSING], options)
  if (strikes('a failing', words)) return spawn(['/bin/false'], options)
  return spawn(command, options)
})

Reflect.set(globalThis, 'faultySystemCall', (call: Call) => (...args: unknown[]) => {
  if (strikes('system call', args.slice(0, 1))) throw failure('system call')
  return call(...args)
})

const MODULES: Record<string, Record<string, unknown>> = {
  'faulty:fs': faulty('fs', fs, false),
  'faulty:fs/promises': faulty('fs/promises', promises, true),
  'faulty:sqlite': { Database: FaultyDatabase },
}

plugin({
  name: 'faults',
  setup(build) {
    for (const [name, exports] of Object.entries(MODULES)) build.module(name, () => ({ exports, loader: 'object' }))
    build.onLoad({ filter: /\/src\/.*\.ts$/ }, ({ path }) => ({
      loader: 'ts',
      contents: fs
        .readFileSync(path, 'utf8')
        .replaceAll("from 'node:fs'", "from 'faulty:fs'")
        .replaceAll("from 'node:fs/promises'", "from 'faulty:fs/promises'")
        .replaceAll("import { Database } from 'bun:sqlite'", "import { Database } from 'faulty:sqlite'")
        .replace(
          'export function sys(number: number, ...args: SysArg[]): number {',
          'export const sys: (number: number, ...args: SysArg[]) => number = globalThis.faultySystemCall(systemCall)\n' +
            'function systemCall(number: number, ...args: SysArg[]): number {',
        ),
    }))
  },
})

const socket = process.env['FAULTS_SOCKET'] ?? ''
// Of an orb that was killed.
fs.rmSync(socket, { force: true })
Bun.serve({
  unix: socket,
  async fetch(request) {
    const { pathname } = new URL(request.url)
    if (pathname === '/arm') {
      Object.assign(state, Order.parse(await request.json()), { armed: true, count: 0, fired: '' })
    }
    if (pathname === '/disarm') state.armed = false
    return Response.json({ count: state.count, fired: state.fired })
  },
})
