// What the streams of the benchmark `streams` say: the upstream writes it, the agent knows it too and checks every byte.

const TEXT_BYTES = 160
const PATTERN = Array.from({ length: 4096 }, (_, at) => String.fromCharCode(97 + ((at * 7919) >> 3) % 26)).join('')

/** Chunk `index` of stream `id`. */
export function streamChunk(id, index) {
  const from = (id * 131 + index * 17) % (PATTERN.length - TEXT_BYTES)
  return `data: {"stream":${id},"chunk":${index},"text":"${PATTERN.slice(from, from + TEXT_BYTES)}"}\n\n`
}
