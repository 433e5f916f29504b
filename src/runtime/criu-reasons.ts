/** What criu says when it cannot write an agent down, and what that means for the people whose agent it is. */
const MEANINGS: [RegExp, string][] = [
  // Nothing else keeps criu from seizing a task; it takes any that it cannot seize for a zombie.
  [/found while seizing/, 'a process of the agent is traced, as by a debugger'],
  [
    /Non-empty write queue on an in-flight socket/,
    'a connection to a Unix socket has data in it and is not accepted yet',
  ],
  [/In-flight connection/, 'a TCP connection is not accepted yet'],
]

/** `reason` of criu's log, with its meaning before it where that is known. */
export function explain(reason: string): string {
  const meaning = MEANINGS.find(([pattern]) => pattern.test(reason))?.[1]
  return meaning ? `${meaning} (criu: ${reason})` : reason
}
