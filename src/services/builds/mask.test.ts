import { expect, test } from 'bun:test'
import { hiddenTexts } from './mask.ts'
import { masked } from './shell.ts'

test('the token in every form and long secrets are hidden, words are not', () => {
  const hidden = hiddenTexts('tok', {
    LONG: 'a-long-secret',
    LONGER: 'a-long-secret-in-another',
    WORD: 'true',
    EMPTY: '',
  })
  const basic = Buffer.from('x-access-token:tok').toString('base64')
  const output = `tok ${basic} a-long-secret a-long-secret-in-another true`
  expect(masked(output, hidden)).toBe('*** *** *** *** true')
})

test('without any there is nothing to hide', () => {
  expect(hiddenTexts(null, { BLANK: ' '.repeat(20) })).toEqual([])
})
