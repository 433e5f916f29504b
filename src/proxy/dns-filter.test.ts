import { describe, expect, test } from 'bun:test'
import { blocked, leadsOf, nameAsked } from './dns-filter.ts'

const wire = (name: string): Buffer =>
  Buffer.concat([
    ...name
      .split('.')
      .filter(Boolean)
      .map((label) => Buffer.concat([Buffer.from([label.length]), Buffer.from(label, 'latin1')])),
    Buffer.from([0]),
  ])

const TYPE = { A: 1, CNAME: 5, AAAA: 28 }

function query(name: Buffer, options: { opcode?: number; questions?: number; more?: Buffer } = {}): Buffer {
  const { opcode = 0, questions = 1, more = Buffer.alloc(0) } = options
  const header = Buffer.from([0x12, 0x34, (opcode << 3) | 1, 0, 0, questions, 0, 0, 0, 0, 0, more.length > 0 ? 1 : 0])
  return Buffer.concat([header, name, Buffer.from([0, TYPE.A, 0, 1]), more])
}

interface Record {
  name: Buffer
  type?: number
  kind?: number
  ttl?: number
  data: Buffer
}

function answer(name: string, records: Record[], rcode = 0): Buffer {
  const reply = query(wire(name))
  reply[2] = 0x81
  reply[3] = 0x80 | rcode
  reply.writeUInt16BE(records.length, 6)
  const parts = records.map(({ name, type = TYPE.A, kind = 1, ttl = 60, data }) => {
    const fixed = Buffer.alloc(10)
    fixed.writeUInt16BE(type, 0)
    fixed.writeUInt16BE(kind, 2)
    fixed.writeUInt32BE(ttl, 4)
    fixed.writeUInt16BE(data.length, 8)
    return Buffer.concat([name, fixed, data])
  })
  return Buffer.concat([reply, ...parts])
}

const ip = (...bytes: number[]): Buffer => Buffer.from(bytes)
/** A pointer to the name of the question. */
const SAME = Buffer.from([0xc0, 12])

describe('the name of a query', () => {
  test.each([
    ['a plain one', query(wire('Api.Example.COM')), 'api.example.com'],
    ['an underscore', query(wire('_dmarc.example.com')), '_dmarc.example.com'],
    ['a dot inside a label', query(Buffer.from('\x0bapi.example\x03com\0', 'latin1')), '?.com'],
    ['a NUL inside a label', query(Buffer.from('\x04a\0bc\x03com\0', 'latin1')), '?.com'],
    ['the root', query(wire('')), null],
    ['a pointer', query(Buffer.from([0xc0, 12])), null],
    ['a label that is longer than the message', query(Buffer.from([63, 97, 0])), null],
    ['a name of more than 255 bytes', query(wire(Array(100).fill('abc').join('.'))), null],
    ['two questions', query(wire('a.example'), { questions: 2 }), null],
    ['no question', query(wire('a.example'), { questions: 0 }), null],
    ['an update', query(wire('a.example'), { opcode: 5 }), null],
    ['no message', Buffer.from([1, 2]), null],
  ])('%s', (_, message, name) => expect(nameAsked(message)).toBe(name))
})

describe('the answer to a name that is not allowed', () => {
  test('says that there is no such name, and repeats the question', () => {
    const asked = query(wire('a.example'))
    const reply = Buffer.from(blocked(asked))
    expect(reply.readUInt16BE(0)).toBe(0x1234)
    expect([(reply[2] ?? 0) & 0x80, (reply[3] ?? 0) & 0x0f]).toEqual([0x80, 3])
    expect([...reply.subarray(4)]).toEqual([...asked.subarray(4)])
  })

  test('says why to whom that may be said', () => {
    const asked = query(wire('a.example'), { more: Buffer.from([0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 0]) })
    const reply = Buffer.from(blocked(asked))
    expect(reply.readUInt16BE(10)).toBe(1)
    const record = reply.subarray(query(wire('a.example')).length)
    expect([record[0], record.readUInt16BE(1), record.readUInt16BE(9)]).toEqual([0, 41, record.length - 11])
    expect([record.readUInt16BE(11), record.readUInt16BE(13), record.readUInt16BE(15)]).toEqual([
      15,
      record.length - 15,
      15,
    ])
    expect(record.toString('latin1')).toContain('network.outbound')
  })
})

describe('where a name leads', () => {
  const leads = (reply: Buffer) =>
    leadsOf('www.example.com', reply).map(({ address, ttlSeconds }) => [address.toString(16), ttlSeconds])

  test('its own addresses, however it is written', () => {
    const records = [
      { name: SAME, data: ip(1, 2, 3, 4) },
      { name: wire('WWW.example.com'), data: ip(255, 0, 0, 1), ttl: 2 ** 31 },
      { name: SAME, type: TYPE.AAAA, data: Buffer.alloc(16, 7) },
      { name: SAME, kind: 3, data: ip(9, 9, 9, 9) },
    ]
    expect(leads(answer('www.example.com', records))).toEqual([
      ['1020304', 60],
      ['ff000001', 2 ** 31],
    ])
  })

  test('those of the names that it is another name of, as long as all on the way hold', () => {
    const records = [
      { name: wire('cdn.example.net'), data: ip(1, 1, 1, 1), ttl: 300 },
      { name: SAME, type: TYPE.CNAME, data: wire('alias.example.org'), ttl: 100 },
      { name: wire('alias.example.org'), type: TYPE.CNAME, data: wire('CDN.example.net'), ttl: 200 },
    ]
    expect(leads(answer('www.example.com', records))).toEqual([['1010101', 100]])
  })

  test('no more records of an answer are read than make sense, however many there are', () => {
    const many = (count: number, ...first: Record[]) =>
      answer('www.example.com', [
        ...first,
        ...Array.from({ length: count }, (_, index) => ({ name: SAME, data: ip(1, 2, index >> 8, index & 0xff) })),
      ])
    expect(leads(many(200))).toHaveLength(200)
    expect(leads(many(4000))).toHaveLength(256)
    const others = Array.from({ length: 256 }, () => ({ name: SAME, type: TYPE.AAAA, data: Buffer.alloc(16) }))
    expect(leads(many(1, ...others))).toEqual([])
  })

  test('names through pointers, of which several may follow each other', () => {
    const at = query(wire('www.example.com')).length
    const records = [
      // Its data is a name that ends in one of the question, at which the next ones point.
      { name: SAME, type: TYPE.CNAME, data: Buffer.from('\x03cdn\xc0\x10', 'latin1') },
      { name: Buffer.from([0xc0, at + 12]), data: ip(1, 1, 1, 1) },
      { name: Buffer.from([0xc0, at + 12]), data: ip(2, 2, 2, 2) },
    ]
    expect(leads(answer('www.example.com', records))).toEqual([
      ['1010101', 60],
      ['2020202', 60],
    ])
    // Each part of a name is short enough, both together may not be: then nothing can be read behind it.
    const behind = (count: number) => {
      const prefix = wire(Array(count).fill('abc').join('.')).subarray(0, -1)
      const name = Buffer.concat([prefix, SAME])
      return leads(
        answer('www.example.com', [
          { name, data: ip(1, 1, 1, 1) },
          { name: SAME, data: ip(1, 1, 1, 1) },
        ]),
      )
    }
    expect([behind(59).length, behind(60).length]).toEqual([1, 0])
  })

  test('nothing of an answer to more questions than one', () => {
    const reply = answer('www.example.com', [{ name: SAME, data: ip(1, 2, 3, 4) }])
    expect(leads(reply)).toHaveLength(1)
    reply.writeUInt16BE(2, 4)
    expect(leads(reply)).toEqual([])
  })

  test('nothing of names that nobody asked for, of circles, of refusals, of what is broken', () => {
    const foreign = { name: wire('other.example.com'), data: ip(1, 1, 1, 1) }
    expect(leads(answer('www.example.com', [foreign]))).toEqual([])
    const circle = [
      { name: SAME, type: TYPE.CNAME, data: wire('b.example') },
      { name: wire('b.example'), type: TYPE.CNAME, data: wire('www.example.com') },
    ]
    expect(leads(answer('www.example.com', circle))).toEqual([])
    const own = { name: SAME, data: ip(1, 1, 1, 1) }
    expect(leads(answer('www.example.com', [own], 3))).toEqual([])
    const whole = answer('www.example.com', [own])
    for (let length = 0; length < whole.length; length++) expect(leads(whole.subarray(0, length))).toEqual([])
    const toItself = { name: Buffer.from([0xc0, 33]), data: ip(1, 1, 1, 1) }
    expect(leads(answer('www.example.com', [toItself]))).toEqual([])
  })
})
