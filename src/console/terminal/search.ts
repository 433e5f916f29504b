import type { ISearchOptions, SearchAddon } from '@xterm/addon-search'
import { element } from './elements.ts'

const OPTIONS: ISearchOptions = {
  decorations: {
    matchBackground: '#5b4a1e',
    matchOverviewRuler: '#e5b454',
    activeMatchBackground: '#b58a2a',
    activeMatchColorOverviewRuler: '#ffd479',
  },
}

/** The bar that finds text in what the terminal has shown. */
export class SearchBar {
  private readonly form = element('search', HTMLFormElement)
  private readonly input = element('search-text', HTMLInputElement)
  private readonly count = element('search-count', HTMLOutputElement)

  constructor(
    private readonly addon: SearchAddon,
    private readonly onClose: () => void,
  ) {
    this.input.oninput = () => this.find('next', true)
    this.input.onkeydown = (event) => {
      if (event.key === 'Escape') this.close()
      else if (event.key === 'Enter' && event.shiftKey) this.find('previous')
      else return
      event.preventDefault()
    }
    this.form.onsubmit = (event) => {
      event.preventDefault()
      this.find('next')
    }
    element('search-previous', HTMLButtonElement).onclick = () => this.find('previous')
    element('search-close', HTMLButtonElement).onclick = () => this.close()
    addon.onDidChangeResults(({ resultIndex, resultCount }) => {
      const known = resultIndex >= 0 ? `${resultIndex + 1} of ${resultCount}` : `${resultCount}`
      this.count.textContent = this.input.value === '' ? '' : known
    })
  }

  open(): void {
    this.form.hidden = false
    this.input.select()
    this.input.focus()
    this.find('next', true)
  }

  close(): void {
    this.form.hidden = true
    this.addon.clearDecorations()
    this.onClose()
  }

  private find(direction: 'next' | 'previous', incremental = false): void {
    if (this.input.value === '') {
      this.addon.clearDecorations()
      this.count.textContent = ''
    } else if (direction === 'next') {
      this.addon.findNext(this.input.value, { ...OPTIONS, incremental })
    } else {
      this.addon.findPrevious(this.input.value, OPTIONS)
    }
  }
}
