import { tokenForms } from './git.ts'

/** A shorter secret is a word that output may hold for other reasons, and whose absence would give it away. */
const MIN_MASKED_CHARACTERS = 8

/**
 * What the output of a build must not show: the token of its source, in every form, and the values of the computer's
 * secrets, which no step is given but a careless one may find. The longest first: one may hold another.
 */
export const hiddenTexts = (token: string | null, secrets: Readonly<Record<string, string>>): string[] =>
  [
    ...tokenForms(token),
    ...Object.values(secrets).filter((value) => value.trim().length >= MIN_MASKED_CHARACTERS),
  ].toSorted((a, b) => b.length - a.length)
