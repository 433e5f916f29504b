import type { Database, SQLQueryBindings } from 'bun:sqlite'
import type { LlmCallRow } from './types.ts'

const COLUMNS: { [field in keyof LlmCallRow]: string } = {
  id: 'id',
  computerId: 'computer_id',
  state: 'state',
  resent: 'resent',
  sentAt: 'sent_at',
  expiresAt: 'expires_at',
  answerHead: 'answer_head',
  answerBytes: 'answer_bytes',
  answerHash: 'answer_hash',
  request: 'request',
  bodyBytes: 'body_bytes',
  bodyBlocks: 'body_blocks',
  body: 'body',
}

type StoredCall = Omit<LlmCallRow, 'resent'> & { resent: number }

/** What becomes of a call's answer. */
export type LlmAnswerFields = Pick<LlmCallRow, 'state' | 'expiresAt' | 'answerHead' | 'answerBytes' | 'answerHash'>

export type LlmCallRepository = ReturnType<typeof llmCallRepository>

/**
 * Calls come and go with every answer, so their writes do not wait for the disk (`quick`): a crash of orb loses none, a
 * power cut may lose the last ones. They are made on a connection of their own: never within `transaction`.
 */
export function llmCallRepository(db: Database, quick: Database) {
  const all = quick.query<StoredCall, []>(
    `SELECT ${Object.entries(COLUMNS).map(([field, column]) => `${column} AS ${field}`)} FROM llm_calls ORDER BY id`,
  )
  const insert = quick.query<void, SQLQueryBindings>(
    `INSERT INTO llm_calls (${Object.values(COLUMNS)}) VALUES (${Object.keys(COLUMNS).map((field) => `$${field}`)})`,
  )
  const answer = quick.query<void, SQLQueryBindings>(
    `UPDATE llm_calls SET state = $state, expires_at = $expiresAt, answer_head = $answerHead, answer_bytes = $answerBytes,
       answer_hash = $answerHash WHERE id = $id`,
  )
  const remove = quick.query<void, { id: number }>('DELETE FROM llm_calls WHERE id = $id')
  const markResent = db.query<void, { id: number }>('UPDATE llm_calls SET resent = 1 WHERE id = $id')
  return {
    /** Oldest first. */
    all: (): LlmCallRow[] => all.all().map((row) => ({ ...row, resent: row.resent !== 0 })),
    insert: (row: LlmCallRow): void => void insert.run({ ...row }),
    setAnswer: (id: number, fields: LlmAnswerFields): void => void answer.run({ ...fields, id }),
    /** All or none, and on stable storage when it returns. */
    markResent: db.transaction((ids: number[]): void => {
      for (const id of ids) markResent.run({ id })
    }).immediate,
    remove: (id: number): void => void remove.run({ id }),
  }
}
