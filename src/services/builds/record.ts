import { z } from 'zod'
import type { BuildRow } from '../../store/types.ts'
import { isoTimeOrNull } from '../../time.ts'
import type { BuildRecordView, BuildView } from '../types.ts'
import { lastBytes } from './shell.ts'

/** Output of one build that is kept in its record: fifty of them are read at once when builds are listed. */
const RECORDED_OUTPUT_BYTES = 1024 * 1024

const VIEW: z.ZodType<BuildView> = z.object({
  computer_id: z.string(),
  build_id: z.string(),
  cloned: z.boolean(),
  commit: z.string().nullable(),
  code_version: z.string().nullable(),
  steps: z.array(
    z.object({
      step: z.string(),
      exit_code: z.int(),
      stdout: z.string(),
      stderr: z.string(),
      duration_ms: z.int(),
      timed_out: z.boolean(),
    }),
  ),
  success: z.boolean(),
  error: z.string().nullable(),
  message: z.string().nullable(),
  redeployed: z.boolean(),
})

/** A build that has not begun. */
export const emptyView = (computerId: string, buildId: string): BuildView => ({
  computer_id: computerId,
  build_id: buildId,
  cloned: false,
  commit: null,
  code_version: null,
  steps: [],
  success: false,
  error: null,
  message: null,
  redeployed: false,
})

export const readView = (row: BuildRow): BuildView => VIEW.parse(JSON.parse(row.result))

/** The JSON of a view for its row. Of a build with very much output each stream loses its beginning. */
export function toResult(view: BuildView): string {
  const streams = view.steps.flatMap(({ stdout, stderr }) => [stdout, stderr])
  const total = streams.reduce((sum, stream) => sum + Buffer.byteLength(stream), 0)
  if (total <= RECORDED_OUTPUT_BYTES) return JSON.stringify(view)
  const share = Math.floor(RECORDED_OUTPUT_BYTES / streams.length)
  const steps = view.steps.map((step) => ({
    ...step,
    stdout: lastBytes(step.stdout, share),
    stderr: lastBytes(step.stderr, share),
  }))
  return JSON.stringify({ ...view, steps })
}

/** `live`: the view of a build that has not ended, which its row does not know yet. */
export const recordView = (row: BuildRow, live: BuildView | null): BuildRecordView => ({
  ...(live ?? readView(row)),
  status: row.status,
  started_at: isoTimeOrNull(row.startedAt),
  finished_at: isoTimeOrNull(row.finishedAt),
})
