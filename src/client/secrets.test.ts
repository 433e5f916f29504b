import { afterAll, beforeAll, expect, test } from 'bun:test'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { readProject } from './project.ts'
import { collectSecrets } from './secrets.ts'

let folder: string

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'orb-test-'))
})
afterAll(() => rm(folder, { recursive: true, force: true }))

test('options win over files, files over the environment, which fills places alone', async () => {
  const file = join(folder, 'secrets')
  await writeFile(file, 'A=file\nB="two words" # note\n')
  const env = { A: 'env', C: 'env', D: 'env', E: 'env' }
  const secrets = collectSecrets({ secret: ['A=x=y', 'D'], 'env-file': [file] }, ['A', 'B', 'C', 'MISSING'], env)
  expect(secrets).toEqual({ A: 'x=y', B: 'two words', C: 'env', D: 'env' })
})

test('what cannot be found is refused, and no value is shown', () => {
  expect(() => collectSecrets({ secret: ['NO'], 'env-file': [] }, [], {})).toThrow('the environment has no NO')
  expect(() => collectSecrets({ secret: ['=hush'], 'env-file': [] }, [], {})).toThrow(/^(?!.*hush)/)
  expect(() => collectSecrets({ secret: [], 'env-file': [join(folder, 'none')] }, [], {})).toThrow('--env-file')
})

test('orb.toml: places of secrets, sizes, what is to be built', async () => {
  const places = ['[agent.env]', `A = "\${A}"`, `B = "\${A}"`, `C = "x\${NO}"`, 'D = 1'].join('\n')
  await writeFile(
    join(folder, 'orb.toml'),
    `[agent]\nname = "x"\n${places}\n[resources]\nruntime = "2GB"\ndisk_mb = 4096\n`,
  )
  expect(readProject(folder)).toMatchObject({
    secretNames: ['A'],
    runtimeMb: 2048,
    diskMb: 4096,
    hasSource: false,
    hasBuild: false,
  })
  await writeFile(join(folder, 'orb.toml'), 'agent = \n')
  expect(() => readProject(folder)).toThrow('orb.toml')
})
