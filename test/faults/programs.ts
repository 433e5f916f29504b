import { existsSync, readlinkSync } from 'node:fs'
import type { Computer } from '../support/computer.ts'

/** The test agents among a computer's processes: never more than one. */
export const programs = (computer: Computer): number[] =>
  computer.agentProcesses().filter((pid) => {
    // Not its command line: that is memory, which a restored process gets back page by page.
    const exe = `/proc/${pid}/exe`
    return existsSync(exe) && readlinkSync(exe).endsWith('/node')
  })
