import { describe, expect, test } from 'bun:test'
import { repositoryOf } from './repository.ts'

describe('a repository', () => {
  test.each([
    ['https://github.com/octo/hello', 'octo', 'hello'],
    ['https://github.com/octo/hello.git', 'octo', 'hello'],
    ['https://github.com/octo/hello/', 'octo', 'hello'],
    ['https://GitHub.com/Octo-Corp/my.repo_1', 'Octo-Corp', 'my.repo_1'],
    ['https://github.com/octo_corp/.github', 'octo_corp', '.github'],
  ])('%s is known by owner and name', (git, owner, name) => {
    expect(repositoryOf(git, 'github.com')).toEqual({ owner, name })
  })

  test.each([
    'https://gitlab.com/octo/hello',
    'https://github.com.evil.example/octo/hello',
    'https://github.com:8443/octo/hello',
    'https://github.com/octo',
    'https://github.com/octo/hello/tree/main',
    'https://github.com/octo/..',
    'https://github.com/octo/hello%2fworld',
    'https://github.com/octo/hello?x=1',
    'not a url',
  ])('%s is none of GitHub', (git) => {
    expect(() => repositoryOf(git, 'github.com')).toThrow('source.git must be https://github.com/<owner>/<repository>')
  })
})
