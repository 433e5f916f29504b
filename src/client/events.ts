export interface ServerEvent {
  /** `message` where the server names none. */
  event: string
  data: string
}

const LINE_END = /\r\n|\r|\n/

/**
 * Reads server-sent events (WHATWG HTML, "Interpreting an event stream"). Comments, and an event that the end of the stream cut
 * off, are left out. Who stops early ends the request.
 */
export async function* readEvents(body: ReadableStream<Uint8Array> | null): AsyncGenerator<ServerEvent> {
  if (!body) return
  let event = ''
  let data: string[] = []
  for await (const line of readLines(body)) {
    if (line === '') {
      if (data.length > 0) yield { event: event || 'message', data: data.join('\n') }
      event = ''
      data = []
      continue
    }
    const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line) ?? []
    if (field === 'event') event = value ?? ''
    if (field === 'data') data.push(value ?? '')
  }
}

/** Lines that ended; one that the end of the stream cuts off is none. */
async function* readLines(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder()
  let rest = ''
  for await (const chunk of body) {
    rest += decoder.decode(chunk, { stream: true })
    // Of a carriage return at the very end it is not known yet whether a line feed belongs to it.
    const whole = rest.endsWith('\r') ? rest.slice(0, -1) : rest
    const lines = whole.split(LINE_END)
    rest = (lines.pop() ?? '') + rest.slice(whole.length)
    yield* lines
  }
}
