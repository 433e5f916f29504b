/** The element of the page that has this id. @throws Error when there is none of that kind */
export function element<T extends HTMLElement>(id: string, kind: new () => T): T {
  const found = document.getElementById(id)
  if (found instanceof kind) return found
  throw new Error(`the page has no ${id}`)
}

/**
 * Lets the styles that the terminal emulator makes pass the page's policy: their elements bear its nonce, and what it
 * writes into style attributes is set as scripts may set it.
 */
export function passStylePolicy(): void {
  const nonce = document.querySelector('script')?.nonce ?? ''
  const create: (name: string, options?: ElementCreationOptions) => HTMLElement = document.createElement.bind(document)
  document.createElement = (name: string, options?: ElementCreationOptions) => {
    const made = create(name, options)
    if (made instanceof HTMLStyleElement) made.nonce = nonce
    return made
  }
  const { setAttribute } = Element.prototype
  HTMLElement.prototype.setAttribute = function (name, value) {
    if (name === 'style') this.style.cssText = value
    else setAttribute.call(this, name, value)
  }
}
