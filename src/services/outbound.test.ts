import { describe, expect, test } from 'bun:test'
import type { Store } from '../store/store.ts'
import type { ComputerRow } from '../store/types.ts'
import { type OrbConfig, parseInline } from './orb-toml.ts'
import { createOutbound, policiesOf, policyOf } from './outbound.ts'

const AGENT = { name: 'a', lang: 'node', entry: 'a.js' }
const NOWHERE = 'https://llm.test/v1'

const config = (outbound: string[] | null, more: Record<string, unknown> = {}): OrbConfig =>
  parseInline(
    { agent: AGENT, llm: { base_url: NOWHERE }, ...(outbound ? { network: { outbound } } : {}), ...more },
    () => true,
  ).config

describe('a policy', () => {
  const allowed = (configs: OrbConfig[], names: string[]) => {
    const policy = policyOf(configs)
    return names.filter((name) => policy?.allows(name) ?? true)
  }

  test('is none without a list', () => {
    expect(policyOf([])).toBeNull()
    expect(policyOf([config(null)])).toBeNull()
    expect(policyOf([config([]), config(null)])).toBeNull()
  })

  test('allows the names of the list, whatever their case, and below a star any depth but not the name itself', () => {
    const names = [
      'api.example.com',
      'x.api.example.com',
      'example.com',
      'a.b.example.org',
      'example.org',
      'badexample.org',
    ]
    expect(allowed([config(['API.example.com', '*.Example.org'])], names)).toEqual([
      'api.example.com',
      'a.b.example.org',
    ])
    expect(policyOf([config(['*.example.org'])])?.allows('.example.org')).toBe(false)
  })

  test('allows the hosts of the source and of the LLM always', () => {
    const source = { source: { git: 'https://git.example.com/a/b.git' } }
    const names = ['git.example.com', 'llm.test', 'api.anthropic.com', 'api.openai.com', 'else.test']
    expect(allowed([config([], source)], names)).toEqual(['git.example.com', 'llm.test'])
    const anyLlm = config([], { llm: {} })
    expect(allowed([anyLlm], names)).toEqual(['api.anthropic.com', 'api.openai.com'])
    expect(allowed([config([], { llm: {}, backend: { provider: 'openai' } })], names)).toEqual(['api.openai.com'])
    const literal = policyOf([config([], { llm: { base_url: 'http://198.51.100.7:8080/v1' } })])
    expect(literal?.networks).toEqual([{ base: 0xc6336407, bits: 32 }])
  })

  test('has addresses and networks of IPv4', () => {
    expect(policyOf([config(['1.2.3.4', '10.0.0.0/8', 'fd00::/8', '::1'])])?.networks).toEqual([
      { base: 0x01020304, bits: 32 },
      { base: 0x0a000000, bits: 8 },
    ])
  })

  test('of several configurations allows what one of them does', () => {
    expect(allowed([config(['a.test']), config(['b.test'])], ['a.test', 'b.test', 'c.test'])).toEqual([
      'a.test',
      'b.test',
    ])
  })
})

const computer: ComputerRow = {
  id: 'c',
  shortId: 'c',
  orgId: 'o',
  name: 'n',
  runtimeMb: 64,
  diskMb: 64,
  userId: null,
  swarmId: null,
  replicaIndex: null,
  slot: 7,
  base: 'b',
  createdAt: 0,
  updatedAt: 0,
}

function setUp() {
  const state: { stored: OrbConfig | null; deployed: OrbConfig | null; broken: boolean } = {
    stored: null,
    deployed: null,
    broken: false,
  }
  const done: string[] = []
  const learnt: unknown[] = []
  const note = (text: string) => {
    if (state.broken) throw new Error('broken')
    done.push(text)
  }
  const outbound = createOutbound(
    { current: () => state.deployed ?? state.stored, deployed: () => state.deployed },
    {
      slotOf: (address) => (address === '10.0.0.8' ? 7 : null),
      outbound: {
        limit: (slot, networks) => note(`limit ${slot} ${networks.length}`),
        free: (slot) => note(`free ${slot}`),
        learn: (...all) => void learnt.push(all),
      },
    },
  )
  const allows = (name: string) => outbound.filterOf('10.0.0.8')?.allows(name) ?? true
  return { outbound, state, done, learnt, allows }
}

describe('in force is', () => {
  test('the deployed configuration, before a deploy the stored one; a change that changes nothing costs nothing', () => {
    const { outbound, state, done, allows } = setUp()
    state.stored = config(['a.test', '1.1.1.1'])
    expect(allows('b.test')).toBe(true)
    outbound.enforce(computer)
    outbound.enforce(computer)
    expect([allows('a.test'), allows('b.test')]).toEqual([true, false])
    state.deployed = config(['1.1.1.1', 'A.test'])
    outbound.enforce(computer)
    expect(done).toEqual(['limit 7 1'])
    state.deployed = config(null)
    outbound.enforce(computer)
    expect([done, allows('b.test')]).toEqual([['limit 7 1', 'free 7'], true])
  })

  test('during a build what that needs, beside what is deployed', () => {
    const { outbound, state, allows } = setUp()
    const names = ['old.test', 'new.test', 'else.test']
    state.deployed = config(['old.test'])
    outbound.enforce(computer)
    const end = outbound.duringBuild(computer, config(['new.test']))
    expect(names.filter(allows)).toEqual(['old.test', 'new.test'])
    end()
    expect(names.filter(allows)).toEqual(['old.test'])
    // Before the first deploy there is nothing beside it.
    state.deployed = null
    state.stored = config(null)
    outbound.enforce(computer)
    const second = outbound.duringBuild(computer, config(['new.test']))
    expect(names.filter(allows)).toEqual(['new.test'])
    second()
    expect(names.filter(allows)).toEqual(names)
  })

  test('nothing that the kernel did not take: who asks again has it tried again', () => {
    const { outbound, state, done } = setUp()
    state.deployed = config([])
    state.broken = true
    expect(() => outbound.enforce(computer)).toThrow('broken')
    expect(() => outbound.enforce(computer)).toThrow('broken')
    state.broken = false
    outbound.enforce(computer)
    expect(done).toEqual(['limit 7 0'])
  })

  test('nothing of a build whose rules the kernel did not take', () => {
    const { outbound, state, allows } = setUp()
    state.deployed = config(['old.test'])
    outbound.enforce(computer)
    state.broken = true
    expect(() => outbound.duringBuild(computer, config(['new.test']))).toThrow('broken')
    state.broken = false
    outbound.enforce(computer)
    expect(['old.test', 'new.test'].filter(allows)).toEqual(['old.test'])
  })

  test('nothing that keeps a computer from being deleted when the kernel refuses', () => {
    const { outbound, state, allows } = setUp()
    state.deployed = config([])
    outbound.enforce(computer)
    state.broken = true
    outbound.forget(computer)
    expect(allows('a.test')).toBe(true)
  })

  test('nothing where a stored configuration cannot be read, and of the others what they say', () => {
    const slots = { unreadable: 1, readable: 2, open: 3 }
    const configs = {
      current({ id }: ComputerRow) {
        if (id === 'unreadable') throw new Error('unreadable')
        return id === 'readable' ? config(['a.test']) : config(null)
      },
    }
    const store = {
      configs: { mentioning: () => Object.keys(slots) },
      computers: { get: (id: keyof typeof slots) => ({ ...computer, id, slot: slots[id] }) },
    }
    const policies = policiesOf(store as unknown as Pick<Store, 'computers' | 'configs'>, configs)
    expect([...policies.keys()]).toEqual([1, 2])
    expect([policies.get(1)?.allows('a.test'), policies.get(1)?.networks]).toEqual([false, []])
    expect(policies.get(2)?.allows('a.test')).toBe(true)
  })

  test('nothing of a computer that is gone, whose address is another’s', () => {
    const { outbound, state, done, allows } = setUp()
    state.deployed = config([])
    outbound.enforce(computer)
    outbound.forget(computer)
    expect([done, allows('a.test')]).toEqual([['limit 7 0', 'free 7'], true])
    expect(outbound.filterOf('192.168.0.1')).toBeNull()
  })
})

test('what a name led to holds for an hour at least, and no longer than a week', () => {
  const { outbound, state, learnt } = setUp()
  state.deployed = config(['a.test'])
  outbound.enforce(computer)
  const leads = [5, 7200, 2 ** 31].map((ttlSeconds) => ({ address: 1, ttlSeconds }))
  outbound.filterOf('10.0.0.8')?.learn('a.test', leads)
  expect(learnt).toEqual([[7, 'a.test', [3600, 7200, 604_800].map((s) => ({ address: 1, lifetimeMs: s * 1000 }))]])
})
