import { readdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { log } from '../../log.ts'
import type { Bytes, CallJournal, LeftAnswer, LeftCall } from '../../proxy/journal.ts'
import type { LlmCallRepository } from '../../store/llm-calls.ts'
import type { LlmCallRow } from '../../store/types.ts'
import type { Vault } from '../vault.ts'
import { Arena } from './arena.ts'
import { blocksOf, Entry, type EntryContext, type Shelf } from './entry.ts'
import { hashOf } from './spool-file.ts'

/** Its name in the journal's directory. */
const ARENA_FILE = 'requests'

export interface JournalOptions {
  calls: LlmCallRepository
  vault: Vault
  /** An existing directory that nobody else has files in when this starts: what belongs to no call is removed. */
  dir: string
  /** How long a complete answer waits for its agent (ORB_REPLAY_TTL). */
  ttlMs: number
}

export interface ServiceJournal extends CallJournal {
  /** Every agent is accounted for: what a former orb left of calls and nobody asked for is removed. */
  recovered(): void
}

interface Left {
  row: LlmCallRow
  entry: Entry
}

/** The journal of LLM calls, in the database and in files beside it. @throws Error when those cannot be read */
export function openCallJournal(options: JournalOptions): ServiceJournal {
  const { calls, dir, ttlMs } = options
  const shelves = new Map<string, Shelf>()
  let closed = false
  const rows = calls.all()
  const taken = rows.filter(({ state }) => state === 'sent').flatMap(blocksOf)
  const context: EntryContext = {
    ...options,
    arena: new Arena(join(dir, ARENA_FILE), new Set(taken)),
    closed: () => closed,
    failed: (computerId, error) => log('warn', 'an llm call is not in the journal', { computer: computerId, error }),
  }

  const shelfOf = (computerId: string): Shelf => {
    const known = shelves.get(computerId)
    if (known) return known
    const shelf = { bytes: 0, entries: new Set<Entry>() }
    shelves.set(computerId, shelf)
    return shelf
  }

  let lastId = rows.at(-1)?.id ?? 0
  removeStrays(dir, new Set(rows.map(({ id }) => id)))
  let left: Left[] = rows.map((row) => ({ row, entry: Entry.from(context, shelfOf(row.computerId), row) }))

  /** Removes from what is left, and returns, those that `matches`. */
  const take = (matches: (row: LlmCallRow) => boolean): Left[] => {
    const taken = left.filter(({ row }) => matches(row))
    left = left.filter(({ row }) => !matches(row))
    return taken
  }

  const damaged = ({ row, entry }: Left, error: unknown): null => {
    log('warn', 'an llm call in the journal is damaged', { computer: row.computerId, error })
    entry.remove()
    return null
  }

  function answerOf(one: Left): LeftAnswer | null {
    const { row, entry } = one
    const remaining = Math.min(ttlMs, (row.expiresAt ?? 0) - Date.now())
    if (remaining <= 0) {
      entry.remove()
      return null
    }
    try {
      const { hash, ...answer } = entry.leftAnswer()
      expectHash(answer.body, hash)
      return { ...answer, computerId: row.computerId, ttlMs: remaining, entry }
    } catch (error) {
      return damaged(one, error)
    }
  }

  function callOf(one: Left): LeftCall | null {
    try {
      const call = one.entry.leftRequest(one.row)
      // The key begins with the hash of the body.
      expectHash(call.body, call.key.split(' ', 1)[0] ?? '')
      return { ...call, entry: one.entry }
    } catch (error) {
      return damaged(one, error)
    }
  }

  function markResent(mine: Left[]): boolean {
    try {
      calls.markResent(mine.map(({ row }) => row.id))
      return true
    } catch (error) {
      log('warn', 'llm calls of a former orb are not sent again', { computer: mine[0]?.row.computerId, error })
      return false
    }
  }

  return {
    begin: (computerId) => new Entry(context, shelfOf(computerId), computerId, ++lastId),
    leftAnswers: () => take((row) => row.state === 'complete').flatMap((one) => answerOf(one) ?? []),
    takeUnanswered(computerId) {
      const mine = take((row) => row.computerId === computerId && row.state !== 'delivered')
      const fit = mine.length > 0 && mine.every(({ row }) => row.state === 'sent' && !row.resent)
      const found = fit ? mine.flatMap((one) => callOf(one) ?? []) : []
      if (fit && found.length === mine.length && markResent(mine)) return found
      for (const { body } of found) body.dispose()
      for (const { entry } of mine) entry.remove()
      return null
    },
    forget(computerId) {
      left = left.filter(({ row }) => row.computerId !== computerId)
      for (const entry of [...(shelves.get(computerId)?.entries ?? [])]) entry.remove()
      shelves.delete(computerId)
    },
    close() {
      closed = true
    },
    recovered() {
      for (const { entry } of take(() => true)) entry.remove()
    },
  }
}

function expectHash(body: Bytes, hash: string | null): void {
  if (hashOf(body) === hash) return
  body.dispose()
  throw new Error('its file is not what was written')
}

/** The file of a call is named after it: `<id>.answer`. */
function removeStrays(dir: string, ids: Set<number>): void {
  for (const name of readdirSync(dir)) {
    if (name !== ARENA_FILE && !ids.has(Number(name.split('.', 1)[0])))
      rmSync(join(dir, name), { recursive: true, force: true })
  }
}
