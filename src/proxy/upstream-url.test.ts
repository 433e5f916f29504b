import { expect, test } from 'bun:test'
import type { LlmSettings } from './types.ts'
import { upstreamFor } from './upstream-url.ts'

type Row = [base: string | null, provider: LlmSettings['provider'], target: string, headers: string[], url: string]

const rows: Row[] = [
  [null, 'anthropic', '/v1/messages', [], 'https://api.anthropic.com:443/v1/messages'],
  [null, 'anthropic', '/v1/chat/completions', [], 'https://api.anthropic.com:443/v1/chat/completions'],
  [null, 'openai', '/v1/chat/completions', [], 'https://api.openai.com:443/v1/chat/completions'],
  [null, 'openai', '/chat/completions', [], 'https://api.openai.com:443/v1/chat/completions'],
  [
    null,
    'google',
    '/v1beta/models/g:generateContent?key=a%2Fb',
    [],
    'https://generativelanguage.googleapis.com:443/v1beta/models/g:generateContent?key=a%2Fb',
  ],
  [null, 'multi', '/v1/messages?beta=true', [], 'https://api.anthropic.com:443/v1/messages?beta=true'],
  [null, 'multi', '/v1/messages/count_tokens', [], 'https://api.anthropic.com:443/v1/messages/count_tokens'],
  [null, 'multi', '/v1/models', ['anthropic-version'], 'https://api.anthropic.com:443/v1/models'],
  [null, 'multi', '/v1/models', [], 'https://api.openai.com:443/v1/models'],
  [null, 'multi', '/v1/models', ['x-goog-api-key'], 'https://generativelanguage.googleapis.com:443/v1/models'],
  [null, 'multi', '/v1beta/models', [], 'https://generativelanguage.googleapis.com:443/v1beta/models'],
  [
    null,
    'multi',
    '/v1/m:streamGenerateContent?alt=sse',
    [],
    'https://generativelanguage.googleapis.com:443/v1/m:streamGenerateContent?alt=sse',
  ],
  [null, 'multi', '/x?next=/v1beta', [], 'https://api.openai.com:443/v1/x?next=/v1beta'],
  [null, 'custom', '/v1/responses', [], 'https://api.openai.com:443/v1/responses'],
  ['https://llm.test/proxy/v1/', 'custom', '/v1/messages', [], 'https://llm.test:443/proxy/v1/messages'],
  ['https://llm.test/proxy/v1', 'anthropic', '/v1', [], 'https://llm.test:443/proxy/v1'],
  ['https://llm.test/proxy/v1', 'anthropic', '/v1?a=1', [], 'https://llm.test:443/proxy/v1?a=1'],
  ['https://llm.test/proxy/v1', 'custom', '/v1beta/x', [], 'https://llm.test:443/proxy/v1/v1beta/x'],
  ['https://llm.test/proxy/v1', 'custom', '/v2/x', [], 'https://llm.test:443/proxy/v1/v2/x'],
  ['https://llm.test/v1/deep', 'custom', '/v1/x', [], 'https://llm.test:443/v1/deep/v1/x'],
  ['https://llm.test', 'multi', '/v1/messages', [], 'https://llm.test:443/v1/messages'],
  ['http://127.0.0.1:9000/', 'custom', '/a//b/%2e%2e/?q=%20', [], 'http://127.0.0.1:9000/a//b/%2e%2e/?q=%20'],
  ['http://[::1]:9000/base', 'custom', '/x', [], 'http://::1:9000/base/x'],
]

test.each(rows)('base %p, provider %s: %s %p → %s', (baseUrl, provider, target, names, expected) => {
  const headers = names.map((name) => ({ name, value: 'x', line: `${name}: x` }))
  const { secure, host, port, target: path } = upstreamFor({ baseUrl, provider }, target, headers)
  expect(`${secure ? 'https' : 'http'}://${host}:${port}${path}`).toBe(expected)
})

test.each(['ftp://llm.test', 'llm.test', ''])('the base %p is refused', (baseUrl) => {
  expect(() => upstreamFor({ baseUrl, provider: 'custom' }, '/v1/x', [])).toThrow('base URL')
})
