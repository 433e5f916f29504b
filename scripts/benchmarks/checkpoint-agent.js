// The agent of the benchmark `checkpoint`: holds BENCH_MB of memory and writes down, each millisecond, that it works.
import { randomFillSync } from 'node:crypto'
import { openSync, writeSync } from 'node:fs'

globalThis.memory = randomFillSync(Buffer.alloc(Number(process.env.BENCH_MB) * 1024 * 1024))
const file = openSync('/agent/data/last', 'w')
setInterval(() => writeSync(file, String(Date.now()), 0), 1)
