const DONE_MS = 6_000

/** Puts files into /root of a computer, one after another, and shows how that goes. */
export class Uploads {
  private queue: Promise<void> = Promise.resolve()

  constructor(
    private readonly list: HTMLElement,
    private readonly access: () => { computerId: string; key: string } | null,
  ) {}

  add(files: Iterable<File>): void {
    for (const file of files) {
      const line = this.line(`${file.name} is next`, 'waiting')
      this.queue = this.queue.then(() => this.upload(file, line))
    }
  }

  /** What cannot be uploaded, and why. */
  refuse(message: string): void {
    this.finish(this.line(message, 'failed'))
  }

  private async upload(file: File, line: HTMLElement): Promise<void> {
    const access = this.access()
    if (!access) {
      this.show(line, `${file.name}: there is no key`, 'failed')
      return
    }
    const bar = document.createElement('progress')
    this.show(line, `Uploading ${file.name}`, 'running')
    line.append(bar)
    const path = `/v1/computers/${encodeURIComponent(access.computerId)}/files/root/${encodeURIComponent(file.name)}`
    const problem = await put(path, access.key, file, (share) => {
      bar.value = share
    })
    if (problem === null) this.show(line, `Uploaded to /root/${file.name}`, 'done')
    else this.show(line, `${file.name}: ${problem}`, 'failed')
    this.finish(line)
  }

  private line(text: string, state: string): HTMLElement {
    const line = document.createElement('li')
    this.show(line, text, state)
    line.onclick = () => line.remove()
    this.list.append(line)
    return line
  }

  private show(line: HTMLElement, text: string, state: string): void {
    line.textContent = text
    line.dataset['state'] = state
  }

  private finish(line: HTMLElement): void {
    // One that failed stays until it is clicked on.
    if (line.dataset['state'] === 'done') setTimeout(() => line.remove(), DONE_MS)
  }
}

/** Null, or why it failed. `fetch` does not tell how far an upload is. */
function put(path: string, key: string, file: File, onProgress: (share: number) => void): Promise<string | null> {
  return new Promise((resolve) => {
    const request = new XMLHttpRequest()
    request.open('PUT', path)
    request.setRequestHeader('authorization', `Bearer ${key}`)
    request.upload.onprogress = ({ loaded, total }) => onProgress(total > 0 ? loaded / total : 1)
    request.onerror = () => resolve('the connection broke off')
    request.onload = () => resolve(request.status === 200 ? null : messageIn(request.responseText))
    request.send(file)
  })
}

function messageIn(body: string): string {
  try {
    const answer: unknown = JSON.parse(body)
    if (typeof answer === 'object' && answer !== null && 'message' in answer) return String(answer.message)
  } catch {
    // Some proxy's own page.
  }
  return 'the server refused it'
}
