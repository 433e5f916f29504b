import { version } from '../package.json'

/** Short commit id that `scripts/build` puts in; absent when run from source or built outside git. */
declare const ORB_COMMIT: string | undefined

const commit = typeof ORB_COMMIT === 'string' ? ORB_COMMIT : ''

/** What `orb version` prints: the version of package.json, with `+commit` where the build knew it (SemVer 2.0 §10). */
export const VERSION = commit === '' ? version : `${version}+${commit}`
