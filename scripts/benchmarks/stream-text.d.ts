export function streamChunk(id: number, index: number): string
