import { afterAll, beforeAll, expect, test } from 'bun:test'
import { C, play, type Scenario } from '../../../test/support/api-scenario.ts'
import { startTestApi, type TestApi } from '../testing.ts'
import { parseRange } from './files.ts'

let api: TestApi

beforeAll(() => {
  api = startTestApi()
})
afterAll(() => api.running.stop(0))

const SCENARIOS: Scenario[] = [
  { name: 'files: root', path: `${C}/files`, status: 200, asked: [['read', '']] },
  { name: 'files: root with slash', path: `${C}/files/`, status: 200, asked: [['read', '']] },
  { name: 'files: directory', path: `${C}/files/agent/data`, status: 200, has: ['"path":"agent/data"'] },
  { name: 'files: decoded once', path: `${C}/files/a%20b/%2541?x=1`, status: 200, asked: [['read', 'a b/%41']] },
  { name: 'files: encoded slash', path: `${C}/files/agent%2Fdata`, status: 200, asked: [['read', 'agent/data']] },
  { name: 'files: double slash', path: `${C}/files//root/x`, status: 200, asked: [['read', 'root/x']] },
  {
    name: 'files: bytes',
    path: `${C}/files/file`,
    status: 200,
    has: ['hello world'],
    answers: { 'content-type': 'application/octet-stream', 'content-length': '11', 'accept-ranges': 'bytes' },
  },
  {
    name: 'files: HEAD',
    method: 'HEAD',
    path: `${C}/files/file`,
    status: 200,
    answers: { 'content-length': '11' },
    asked: [['read', 'file']],
  },
  {
    name: 'files: range',
    path: `${C}/files/file`,
    headers: { range: 'bytes=6-' },
    status: 206,
    has: ['world'],
    hasNot: ['hello'],
    answers: { 'content-range': 'bytes 6-10/11', 'content-length': '5' },
  },
  {
    name: 'files: range behind the end',
    path: `${C}/files/file`,
    headers: { range: 'bytes=11-' },
    status: 416,
    error: 'range_not_satisfiable',
    answers: { 'content-range': 'bytes */11' },
    asked: [['read', 'file'], ['close']],
  },
  { name: 'files: missing', path: `${C}/files/missing`, status: 404, error: 'not_found' },
  { name: 'files: NUL', path: `${C}/files/a%00b`, status: 400, error: 'invalid_path', asked: [] },
  {
    name: 'files: climbing inside a segment',
    path: `${C}/files/a%2f..%2fb`,
    status: 400,
    error: 'invalid_path',
    asked: [],
  },
  { name: 'files: no UTF-8', path: `${C}/files/%ff`, status: 400, error: 'invalid_path', asked: [] },
  { name: 'files: bad escape', path: `${C}/files/%zz`, status: 400, error: 'invalid_path', asked: [] },
  {
    name: 'files: put',
    method: 'PUT',
    path: `${C}/files/root/a.txt`,
    headers: { 'content-type': 'application/json' },
    body: '{"no":"json',
    status: 200,
    asked: [['write', 'root/a.txt', 11, 11]],
  },
  {
    name: 'files: put nothing',
    method: 'PUT',
    path: `${C}/files/empty`,
    status: 200,
    asked: [['write', 'empty', 0, 0]],
  },
  {
    name: 'files: put without a path',
    method: 'PUT',
    path: `${C}/files/`,
    body: 'x',
    status: 400,
    error: 'invalid_path',
    asked: [],
  },
  {
    name: 'files: put too much',
    method: 'PUT',
    path: `${C}/files/small`,
    body: 'x'.repeat(100_000),
    status: 413,
    error: 'payload_too_large',
  },
  {
    name: 'files: put into an unknown computer',
    method: 'PUT',
    path: '/v1/computers/x/files/a',
    body: 'x',
    status: 404,
    error: 'not_found',
  },
]

test.each(SCENARIOS.map((row) => [row.name, row] as const))('%s', (_, row) => play(api, row))

const SIZE = 10

const RANGES: [header: string | null, range: ReturnType<typeof parseRange>][] = [
  [null, null],
  ['bytes=0-0', { start: 0, end: 1 }],
  ['bytes=2-5', { start: 2, end: 6 }],
  ['bytes=2-', { start: 2, end: 10 }],
  ['bytes=2-99', { start: 2, end: 10 }],
  ['bytes=-3', { start: 7, end: 10 }],
  ['bytes=-99', { start: 0, end: 10 }],
  ['Bytes=9-9', { start: 9, end: 10 }],
  ['bytes=10-', 'unsatisfiable'],
  ['bytes=-0', 'unsatisfiable'],
  ['bytes=5-2', null],
  ['bytes=-', null],
  ['bytes=0-1,3-4', null],
  ['lines=0-1', null],
  ['bytes=a-b', null],
]

test.each(RANGES)('Range: %s', (header, range) => expect(parseRange(header, SIZE)).toEqual(range))

test('of an empty file nothing can be had', () => {
  expect(parseRange('bytes=0-', 0)).toBe('unsatisfiable')
  expect(parseRange(null, 0)).toBeNull()
})
